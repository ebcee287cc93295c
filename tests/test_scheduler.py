"""Who gets the engine next; most of it is seen through the API (test_api.py)."""

import asyncio
from collections.abc import Callable

import pytest
from fake_world import FakeWorld

from relic.serve.config import Serve
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session


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


@pytest.mark.parametrize("call", ["open", "branch"])
def test_a_walk_that_ends_while_the_engine_works_on_it_leaves_nothing_on_the_device(call, monkeypatch):
    async def run() -> Session:
        scheduler = Scheduler(FakeWorld(), Serve(run="fake"))
        image = scheduler.engine.world.examples[0].image
        session = Session("one", principal="me", image=image, asked=Asked(caption="", seed=0, speed=1.0),
                          cfg=scheduler.cfg, fps=40.0, now=0.0)  # fmt: skip
        scheduler.begun(session)
        worked = scheduler.in_worker

        async def ending(asked: Callable, *arguments: object) -> object:
            found = await worked(asked, *arguments)
            if asked.__name__ == call:
                scheduler.finish(session, "bye", "the page said bye")
            return found

        monkeypatch.setattr(scheduler, "in_worker", ending)
        await scheduler.step(session)
        scheduler.close()
        return session

    session = asyncio.run(run())
    assert session.over
    assert session.walks() == []
