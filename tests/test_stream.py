"""What waits for something new ends when it is cancelled, also in the moment in which there is something new."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_world import FakeWorld
from test_session import walk

from relic.serve.config import Serve
from relic.serve.scheduler import Scheduler
from relic.serve.stream import Stream
from relic.serve.wire import Picture


async def cancelled(task: asyncio.Task[None], new: asyncio.Event, turns: int) -> bool:
    """Whether a task has ended that is cancelled some turns of the loop after there was something new."""
    new.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=0.5)
    return task.cancelled()


@pytest.mark.parametrize("turns", range(5))
def test_a_stream_stops_showing(turns):
    async def run() -> bool:
        session, nothing = walk(), Any
        session.pace.queue.append(Picture(0, 0, np.eye(4), Future(), 0.0, due=1e12))
        transfer: Any = SimpleNamespace(scheduler=SimpleNamespace(metrics=None))
        stream = Stream(nothing, "x", transfer, nothing, nothing, nothing, nothing, "ann")
        task = asyncio.create_task(stream.show(session, session.attach(0.0)))
        await asyncio.sleep(0.01)
        return await cancelled(task, session.changed, turns)

    assert asyncio.run(run())


@pytest.mark.parametrize("turns", range(5))
def test_a_scheduler_stops(turns):
    async def run() -> bool:
        scheduler = Scheduler(FakeWorld(), Serve(run="fake"))
        task = asyncio.create_task(scheduler.run())
        while not scheduler.warm:
            await asyncio.sleep(0.01)
        ended = await cancelled(task, scheduler.wake, turns)
        scheduler.close()
        return ended

    assert asyncio.run(run())
