"""Who gets the engine next; most of it is seen through the API (test_api.py)."""

import asyncio

import pytest
from fake_world import FakeWorld

from relic.serve.config import Serve
from relic.serve.scheduler import Scheduler


@pytest.mark.parametrize("turns", range(5))
def test_it_ends_when_it_is_cancelled_as_somebody_wakes_it(turns):
    async def run() -> bool:
        scheduler = Scheduler(FakeWorld(), Serve(run="fake"))
        task = asyncio.create_task(scheduler.run())
        while not scheduler.warm:
            await asyncio.sleep(0.01)
        scheduler.wake.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=2)
        scheduler.close()
        return task.cancelled()

    assert asyncio.run(run())
