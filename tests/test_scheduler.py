"""Who gets the engine next; most of it is seen through the API (test_api.py)."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from fake_world import FakeWorld, wall

from relic.place import Folder
from relic.serve import scheduler
from relic.serve.config import Serve
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session
from relic.serve.snapshots import Snapshots
from relic.serve.transfer import Transfer


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


def test_an_engine_is_dead_when_a_call_lasts_too_long_but_not_while_it_warms_up(monkeypatch):
    monkeypatch.setattr(scheduler, "STUCK_S", 0.05)

    async def run() -> list[bool]:
        found = Scheduler(FakeWorld(), Serve(run="fake"))
        alive = []
        for found.warm in (False, True):
            done = threading.Event()
            call = asyncio.create_task(found.in_worker(done.wait))
            await asyncio.sleep(0.1)
            alive.append(found.alive)
            done.set()
            await call
        found.close()
        return [*alive, found.alive]

    assert asyncio.run(run()) == [True, False, True]


def test_who_walks_on_a_dead_device_is_not_waited_for(tmp_path):
    async def run() -> tuple[float, dict]:
        found = Scheduler(FakeWorld(), Serve(run="fake"))
        found.warm = True
        found.admit(principal="ann", image=wall(0, 1), asked=Asked(caption="", seed=0, speed=1.0))
        found.fault, began = "the device fell off the bus", time.monotonic()
        place = Snapshots(Folder(tmp_path), export="e", sign=str, lasts_s=60)
        await Transfer(found, place).drain(30.0)
        found.close()
        return time.monotonic() - began, found.sessions

    took_s, left = asyncio.run(run())
    assert took_s < 1
    assert not left


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
