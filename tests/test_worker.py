"""The engine's thread, and whether what it runs on is thought dead."""

import asyncio
import threading

import pytest
from fake_world import FakeWorld

from relic.serve import worker
from relic.serve.config import Serve
from relic.serve.worker import Worker


def test_an_engine_is_dead_when_a_call_lasts_too_long_though_its_caller_has_gone(monkeypatch):
    monkeypatch.setattr(worker, "STUCK_S", 0.05)

    async def run() -> list[bool]:
        found, done = Worker(FakeWorld(), Serve(run="fake")), threading.Event()
        call = asyncio.create_task(found.call(done.wait))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0.1)
        alive = [found.alive]
        done.set()
        await found.call(int)
        found.close()
        return [*alive, found.alive]

    assert asyncio.run(run()) == [False, True]


def test_an_engine_takes_as_long_as_it_likes_to_warm_up(monkeypatch):
    monkeypatch.setattr(worker, "STUCK_S", 0.05)

    async def run() -> bool:
        found, done = Worker(FakeWorld(), Serve(run="fake")), threading.Event()
        monkeypatch.setattr(found, "first_chunks", done.wait)
        warming = asyncio.create_task(found.warm_up())
        await asyncio.sleep(0.1)
        alive = found.alive
        done.set()
        await warming
        found.close()
        return alive

    assert asyncio.run(run())


@pytest.mark.parametrize(
    ("free_gib", "said"), [(None, ""), (10, ""), (9.5, "takes up to 5.0, so 1 of 2 slots surely fit"), (3, "so 0 of 2")]
)
def test_a_device_without_room_for_all_slots_is_said_when_the_engine_is_warm(free_gib, said, monkeypatch, caplog):
    free = None if free_gib is None else int(free_gib * 2**30)
    monkeypatch.setattr(FakeWorld, "free_bytes", free)
    worker = Worker(FakeWorld(), Serve(run="fake", slots=2, rewind_points=4))
    asyncio.run(worker.warm_up())
    worker.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (len(warnings), worker.fault) == (bool(said), "")
    assert said in "".join(warnings)
