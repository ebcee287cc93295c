"""One connection to a walk, without a network: how it ends, and what it may do once another has taken the walk over."""

import asyncio
import json
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from fake_world import FakeWorld

from relic.serve.access import Access, Refused
from relic.serve.config import Serve
from relic.serve.limits import Sockets
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session
from relic.serve.stream import Stream
from relic.serve.transfer import Transfer
from relic.serve.wire import Picture

CFG = Serve(run="fake")
TAKEN = "another connection has taken this walk over"


class Deaf:
    """A socket whose reader takes nothing after `most` messages; it says what is put into `said`."""

    def __init__(self, most: int):
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.sent: list[dict] = []
        self.most = most

    async def send_json(self, message: dict) -> None:
        if len(self.sent) == self.most:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def receive(self) -> dict[str, Any]:
        return {"type": "websocket.receive", "text": await self.said.get()}


def walked(most: int) -> tuple[Session, Deaf, "asyncio.Task[None]", Scheduler]:
    world = FakeWorld()
    scheduler, socket = Scheduler(world, CFG), Deaf(most)
    session = Session("one", principal="me", image=None, asked=Asked(caption="", seed=0, speed=1.0), cfg=CFG, fps=16.0,
                      now=time.monotonic())  # fmt: skip
    scheduler.begun(session)
    access = Access({}, 60.0, b"s" * 32)
    transfer = Transfer(scheduler, None)
    stream = Stream(socket, "one", transfer, access, world.world, CFG, Sockets(8), "me")  # type: ignore[arg-type]
    return session, socket, asyncio.create_task(stream.walk(session)), scheduler


def put(session: Session, in_s: float = 0.0) -> "Future[bytes]":
    """A picture to be shown, whose encoding is not done."""
    encoded: Future[bytes] = Future()
    session.pace.put(Picture(0, 0, np.eye(4), encoded, 0.0), time.monotonic() + in_s)
    return encoded


@pytest.mark.parametrize("message", [{"type": "action", "seq": 7, "keys": ["pan_left"]}, {"type": "bye"}])
def test_a_connection_that_was_taken_over_steers_and_ends_nothing(message):
    async def run() -> None:
        session, socket, old, scheduler = walked(most=1)
        session.tell({"type": "state"})  # which its reader does not take
        await asyncio.sleep(0.01)
        session.attach(time.monotonic())
        socket.said.put_nowait(json.dumps(message))
        with pytest.raises(Refused, match=TAKEN):
            await asyncio.wait_for(old, 2)
        assert (session.pending, session.over, list(scheduler.sessions)) == ([], None, ["one"])

    asyncio.run(run())


def test_a_connection_that_was_taken_over_takes_no_notices_of_the_new_one():
    async def run() -> None:
        session, socket, old, _ = walked(most=99)
        send = socket.send_json

        async def slowly(message: dict) -> None:
            await send(message)
            if message["type"] == "first":
                session.attach(time.monotonic())

        socket.send_json = slowly  # type: ignore[method-assign]
        for kind in ("first", "second"):
            session.tell({"type": kind})
        with pytest.raises(Refused, match=TAKEN):
            await asyncio.wait_for(old, 2)
        assert [notice["type"] for notice in session.notices] == ["second"]

    asyncio.run(run())


def test_what_an_old_connection_could_not_say_is_said_by_the_new_one():
    async def run() -> None:
        session, _, old, _ = walked(most=1)
        session.tell({"type": "rewound"})  # which its reader does not take
        await asyncio.sleep(0.01)
        session.attach(time.monotonic())
        old.cancel()
        await asyncio.wait([old])
        assert [notice["type"] for notice in session.notices] == ["rewound"]

    asyncio.run(run())


def test_a_picture_that_is_encoded_when_another_connection_comes_is_the_new_one_s():
    async def run() -> None:
        session, _, old, _ = walked(most=99)
        encoded = put(session)
        await asyncio.sleep(0.01)
        session.attach(time.monotonic())
        encoded.set_result(b"jpeg")
        with pytest.raises(Refused, match=TAKEN):
            await asyncio.wait_for(old, 2)
        assert (session.pace.num_shown, len(session.pace.queue)) == (0, 1)

    asyncio.run(run())


def test_a_refusal_behind_a_wrong_message_ends_the_stream():
    async def run() -> None:
        session, socket, stream, _ = walked(most=99)
        put(session, in_s=100.0)
        await asyncio.sleep(0.01)
        for message in ("{}", "x" * 9000):  # the first wakes who shows pictures at the moment when it is cancelled
            socket.said.put_nowait(message)
        with pytest.raises(Refused, match="the message has 9000 characters"):
            await asyncio.wait_for(stream, 2)

    asyncio.run(run())


def test_a_picture_is_encoded_also_when_its_connection_goes():
    async def run() -> None:
        session, socket, stream, _ = walked(most=99)
        encoded = put(session)
        await asyncio.sleep(0.01)
        socket.said.put_nowait("x" * 9000)
        await asyncio.wait([stream])
        assert isinstance(stream.exception(), Refused)
        assert [picture.encoded for picture in session.pace.queue] == [encoded]  # for who comes back
        assert not encoded.cancelled()  # a walk goes back to this picture, or its branch begins with it

    asyncio.run(run())
