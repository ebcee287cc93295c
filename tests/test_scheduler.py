"""Who gets the engine next; most of it is seen through the API (test_api.py)."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable

import pytest
import torch
from fake_world import FakeWalk, FakeWorld, wall

from relic.place import Folder
from relic.serve.access import Refused
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


def test_who_walks_on_a_dead_device_is_not_waited_for(tmp_path):
    async def run() -> tuple[float, dict]:
        found = Scheduler(FakeWorld(), Serve(run="fake"))
        found.warm = True
        found.admit(principal="ann", image=wall(0, 1), asked=Asked(caption="", seed=0, speed=1.0))
        found.worker.fault, began = "the device fell off the bus", time.monotonic()
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
        worked = scheduler.worker.call

        async def ending(asked: Callable, *arguments: object) -> object:
            found = await worked(asked, *arguments)
            if asked.__name__ == call:
                scheduler.finish(session, "bye", "the page said bye")
            return found

        monkeypatch.setattr(scheduler.worker, "call", ending)
        await scheduler.step(session)
        scheduler.close()
        return session

    session = asyncio.run(run())
    assert session.over
    assert session.walks() == []


def begun(scheduler: Scheduler) -> Session:
    """A new session of a scheduler that is warm."""
    scheduler.warm = True
    return scheduler.admit(principal="me", image=wall(0, 1), asked=Asked(caption="", seed=0, speed=1.0))


def no_room(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_walk_goes_on_without_the_moment_that_the_device_has_no_room_for(monkeypatch, caplog):
    async def run() -> tuple[Session, list[int]]:
        scheduler, kept = Scheduler(FakeWorld(), Serve(run="fake", rewind_every_s=0.15)), []
        session = begun(scheduler)
        for branch in (no_room, FakeWalk.branch, FakeWalk.branch):
            with monkeypatch.context() as patch:
                patch.setattr(FakeWalk, "branch", branch)
                await scheduler.step(session)
            kept.append(len(session.moments))
        scheduler.close()
        return session, kept

    session, kept = asyncio.run(run())
    assert (session.over, session.pace.num_chunks, kept) == (None, 3, [0, 0, 1])
    assert "no room for a moment to go back to: CUDA out of memory" in caplog.text


def test_who_asks_for_a_branch_that_the_device_has_no_room_for_is_told_and_walks_on(monkeypatch):
    async def run() -> Session:
        scheduler = Scheduler(FakeWorld(), Serve(run="fake"))
        session = begun(scheduler)
        for _ in range(2):
            await scheduler.step(session)
        monkeypatch.setattr(FakeWalk, "branch", no_room)
        session.pace.clear(0.0)
        with pytest.raises(ValueError, match="no room on the device to go back"):
            await scheduler.rewind(session, 1.0)
        with pytest.raises(Refused, match="no room on the device for another walk"):
            await scheduler.branch(session)
        await scheduler.step(session)
        scheduler.close()
        return session

    session = asyncio.run(run())
    assert (session.over, session.pace.num_chunks) == (None, 3)


def test_a_walk_that_has_failed_leaves_nothing_on_the_device_and_the_others_go_on(monkeypatch):
    async def run() -> tuple[list, list[bool]]:
        scheduler = Scheduler(FakeWorld(), Serve(run="fake", slots=3, sessions_each=3))
        failing, other = begun(scheduler), begun(scheduler)
        for session in (failing, other):
            await scheduler.step(session)
        held = [weakref.ref(walk) for walk in failing.walks()]
        with monkeypatch.context() as patch:
            patch.setattr(FakeWalk, "move", no_room)
            patch.setattr("relic.serve.scheduler.logger.disabled", True)  # pytest keeps its records, with frames
            await scheduler.step(failing)
        await scheduler.step(other)
        left = [walk() is not None for walk in held]
        scheduler.close()
        return [failing.over, other.over, scheduler.worker.fault], left

    gc.disable()
    try:
        (why, other, fault), left = asyncio.run(run())
    finally:
        gc.enable()
    assert (why[0], other, fault) == ("failed", None, "")
    assert left == [False, False]


def test_a_server_that_closes_at_once_does_not_say_how_long_a_walk_can_go_on():
    async def run() -> list[list[dict]]:
        said = []
        for grace_s in (0.0, 0.01):
            scheduler = Scheduler(FakeWorld(), Serve(run="fake"))
            session = begun(scheduler)
            await scheduler.drain(grace_s)
            said.append(list(session.notices))
            scheduler.close()
        return said

    at_once, later = asyncio.run(run())
    assert at_once == []
    assert [notice["state"] for notice in later] == ["draining"]
