"""The stream of a walk over a WebSocket: hello, then actions in and pictures out until one side ends it.

The token travels in the first message, never in the URL. A wrong message is answered by one sentence, {"type": "error",
"code", "message"}, and the walk goes on.
"""

import asyncio
import contextlib
import time

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from relic.serve import wire
from relic.serve.access import Access, Refused
from relic.serve.config import Serve
from relic.serve.limits import Messages, Sockets
from relic.serve.reception import hello, receive, turn_away
from relic.serve.session import REWINDS_PER_S, Session
from relic.serve.transfer import Transfer
from relic.serve.world import World


class Stream:
    """One connection to the session `identity`."""

    def __init__(self, socket: WebSocket, identity: str, transfer: Transfer, access: Access, world: World, cfg: Serve,
                 sockets: Sockets, caller: str):  # fmt: skip
        self.socket, self.identity, self.transfer, self.access = socket, identity, transfer, access
        self.world, self.cfg, self.sockets, self.caller = world, cfg, sockets, caller
        self.scheduler, self.metrics = transfer.scheduler, transfer.scheduler.metrics

    async def run(self) -> None:
        with self.sockets.open.hold(self.caller):
            try:
                with self.sockets.silent.hold(self.caller):
                    await self.socket.accept()
                    await hello(self.socket, self.identity, self.access, self.cfg, self.sockets, self.caller)
                    session = await self.transfer.find(self.identity)
                await self.walk(session)
            except Refused as error:
                self.metrics.refused(error)
                await turn_away(self.socket, error)
            except WebSocketDisconnect:
                pass  # the page has gone; its lease runs

    async def walk(self, session: Session) -> None:
        connection = session.attach(time.monotonic())
        self.scheduler.wake.set()
        try:
            await self.socket.send_json({
                "type": "ready", "session": session.id, "token": self.access.issue(session.id), "fps": session.fps,
                "width": self.world.width, "height": self.world.height, "header_bytes": wire.HEADER.size,
                "paused": session.paused,
            })  # fmt: skip
            work = self.listen(session, connection), self.show(session, connection)
            tasks = [asyncio.create_task(one) for one in work]
            _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
        finally:
            session.detach(connection, time.monotonic())

    async def listen(self, session: Session, connection: int) -> None:
        """Takes messages in; a wrong one is answered by a sentence and forgotten, as is one over the rate."""
        messages = Messages(self.cfg.messages_per_s, time.monotonic())
        while True:
            try:
                text = await receive(self.socket)
                check(session, connection)
                if not messages.take(time.monotonic()):
                    continue
                message = wire.parse(text, self.cfg)
                if message["type"] == "action":
                    seq, row = wire.parse_action(message, self.world.actions, self.cfg, session.asked.speed)
                    session.act(seq, row, time.monotonic())
                    self.scheduler.wake.set()
                elif message["type"] == "pause":
                    session.pause()
                    session.tell({"type": "state", **session.report(time.monotonic())})
                elif message["type"] == "resume":
                    session.resume(time.monotonic())
                    session.tell({"type": "state", **session.report(time.monotonic())})
                    self.scheduler.wake.set()
                elif message["type"] == "rewind":
                    seconds = wire.parse_rewind(message)
                    if session.rewinds.take(time.monotonic()):
                        raise ValueError(f"rewinds come too fast; allowed is {REWINDS_PER_S:g} a second")
                    await self.scheduler.rewind(session, seconds)
                elif message["type"] == "ping":
                    session.tell({"type": "pong", "at": wire.parse_at(message), "token": self.access.issue(session.id)})
                elif message["type"] == "bye":
                    self.scheduler.finish(session, "bye", "the page said bye")
                else:
                    raise ValueError(f"hello was said already; allowed now are {', '.join(wire.MESSAGES[1:])}")
            except wire.TooLarge as error:
                raise Refused(413, str(error)) from error
            except ValueError as error:
                session.tell({"type": "error", "code": 422, "message": str(error)})

    async def show(self, session: Session, connection: int) -> None:
        """Sends what is there, every picture when it is due."""
        while True:
            session.changed.clear()
            check(session, connection)
            while session.notices:
                notice = session.notices[0]
                await self.socket.send_json(notice)
                if session.notices and session.notices[0] is notice:  # else another connection has said it
                    session.notices.popleft()
                check(session, connection)
            if session.over is not None and session.over[0] == "moved":
                token = self.access.issue(session.id)
                await self.socket.send_json({"type": "moved", "token": token, "message": session.over[1]})
                await self.socket.close(wire.MOVED)
                return
            if session.over is not None:
                await self.socket.send_json({"type": "ended", "reason": session.over[0], "message": session.over[1]})
                await self.socket.close(1000)
                return
            picture = session.pace.next(time.monotonic())
            if picture is not None:
                try:
                    await asyncio.shield(asyncio.wrap_future(picture.encoded))  # which may be a moment's to go back to
                    check(session, connection)
                except (asyncio.CancelledError, Refused):
                    session.pace.put_back(picture)
                    raise
                await self.socket.send_bytes(wire.pack(picture, 1e3 * time.time()))
                self.metrics.frames_sent.inc()
                answer_s = session.answer_s(picture.receipt, time.monotonic())
                if answer_s is not None:
                    self.metrics.answer.observe(answer_s)
                continue
            with contextlib.suppress(TimeoutError):
                # not wait_for: of a cancellation and a change at once, it forgets the cancellation
                async with asyncio.timeout(session.pace.wait_s(time.monotonic())):
                    await session.changed.wait()


def check(session: Session, connection: int) -> None:
    """`Refused` where the walk is another connection's by now."""
    if session.connection != connection:
        raise Refused(409, "another connection has taken this walk over")
