"""What goes through a router: requests and their answers, part by part, and streams, message by message.

Nothing is kept whole but a short body of a request that another replica may be asked next. What a slow reader does not
take waits in the replica, as it would without a router: here at most `queue` messages and the sockets' small buffers.
"""

import asyncio
import re
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import TypeVar

import httpx
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from relic.serve.access import CALLER, Access, Refused, network
from relic.serve.config import Router
from relic.serve.fleet import DIED, Fleet, Replica, RouterMetrics
from relic.serve.limits import Sockets
from relic.serve.reception import end, hello, peer, turn_away
from relic.serve.wire import MOVED

Found = TypeVar("Found")

HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "expect", CALLER,
}  # fmt: skip  # headers of one connection only, and the one that is the router's own to say
CONNECT_S = 2.0  # to a replica
NO_HOST = "the header Host is not a name and a port"
LAST_WORDS, LAST_WORD_S = 10, 0.1  # how often a replica that has broken off is asked, and the wait between
UNSENT = (1005, 1006, 1015)  # close codes that stand for none
PICTURE_BYTES = 1 << 24  # the largest message of a replica
RECEIVE_BUFFER = 1 << 16  # bytes: what waits there is not dropped any more


class Relay:
    def __init__(self, cfg: Router, access: Access, fleet: Fleet, metrics: RouterMetrics):
        self.cfg, self.access, self.fleet, self.metrics = cfg, access, fleet, metrics
        timeout = httpx.Timeout(cfg.answer_s, connect=CONNECT_S)
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=2.0)
        self.http = httpx.AsyncClient(timeout=timeout, trust_env=False, limits=limits)
        self.sockets = Sockets(cfg.sockets)
        self.http.headers.clear()  # a caller's are passed on as they are

    # --- requests -------------------------------------------------------------------------------------------------

    async def forward(
        self, request: Request, replica: Replica, content: bytes | AsyncIterator[bytes] | None
    ) -> httpx.Response:
        """A replica's answer, its body still to be read; `httpx.HTTPError` where there is none, or the replica dies.

        The target goes on as it was asked for: httpx would make /metrics of /web/../metrics. A length does not where it
        is not that of `content`."""
        host, _, port = replica.address.rpartition(":")
        url = httpx.URL(scheme="http", host=host.strip("[]"), port=int(port))
        target = request.scope["raw_path"] + (b"?" + query if (query := request.scope["query_string"]) else b"")
        headers = [*kept(request.headers.raw), (CALLER.encode(), self.introduced(request).encode())]
        if content is None or "transfer-encoding" in request.headers:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        built = self.http.build_request(
            request.method, url, headers=headers, content=content, extensions={"target": target}
        )
        return await while_alive(replica, self.http.send(built, stream=True))

    def introduced(self, caller: HTTPConnection) -> str:
        return self.access.introduce(peer(caller))

    # --- streams --------------------------------------------------------------------------------------------------

    async def stream(self, socket: WebSocket, identity: str) -> None:
        """A stream between a caller and the session's replica, until one of them ends it."""
        caller = network(peer(socket))
        self.sockets.check(caller)
        with self.metrics.streams.track_inprogress(), self.sockets.open.hold(caller):
            try:
                with self.sockets.silent.hold(caller):
                    await socket.accept()
                    first = await hello(socket, identity, self.access, self.cfg, self.sockets, caller)
                replica, upstream = await self.opened(socket, identity)
                async with upstream:
                    code, reason = await self.through(socket, upstream, first, replica, identity)
                await end(socket, code if code not in UNSENT else 1000, reason)
            except Refused as error:
                self.metrics.refused(error)
                await turn_away(socket, error)
            except WebSocketDisconnect:
                pass  # the caller has gone; its session waits for it at the replica

    async def opened(self, socket: WebSocket, identity: str) -> tuple[Replica, ClientConnection]:
        """Who has the session, and a connection to it; one that has just gone is looked for once more."""
        host = socket.headers.get("host", "")
        if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[\w:.]+\](:\d+)?", host):
            raise Refused(422, NO_HOST)
        path = socket.scope["raw_path"].decode()
        told = {name: socket.headers[name] for name in ("origin", "user-agent") if name in socket.headers}
        for _ in range(2):
            replica = await self.fleet.seek(identity)
            at, _, port = replica.address.rpartition(":")
            try:
                upstream = await connect(
                    f"ws://{host}{path}", host=at.strip("[]"), port=int(port), proxy=None, compression=None,
                    additional_headers={**told, CALLER: self.introduced(socket)}, user_agent_header=None,
                    open_timeout=CONNECT_S, ping_interval=None, close_timeout=1.0, max_size=PICTURE_BYTES,
                    max_queue=(self.cfg.queue, self.cfg.queue // 2),
                )  # fmt: skip
            except InvalidStatus as error:
                status = error.response.status_code
                if status not in (401, 403):
                    raise Refused(503, f"the server of this walk answers {status}", 1, reason="replica") from error
                raise Refused(status, "the server of this walk refuses the connection") from error
            except ValueError as error:
                raise Refused(422, NO_HOST) from error
            except (OSError, InvalidHandshake, InvalidMessage, EOFError):
                await self.fleet.ask(replica)
                continue
            upstream.transport.get_extra_info("socket").setsockopt(
                sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER
            )
            return replica, upstream
        raise Refused(503, "the server of this walk does not answer; come again in a moment", 1, reason="replica")

    async def through(
        self, socket: WebSocket, upstream: ClientConnection, first: str, replica: Replica, identity: str
    ) -> tuple[int, str]:
        """Passes messages on both ways; returns how the stream ends for the caller, a close code and its reason."""
        ways = [
            asyncio.create_task(way)
            for way in (self.down(upstream, socket), up(socket, upstream, first), replica.gone.wait())
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
        for result in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
                raise result
        received = upstream.protocol.close_rcvd
        if received is not None:
            if received.code == MOVED:
                self.fleet.leave(identity, replica)
            return received.code, received.reason
        for _ in range(LAST_WORDS):  # the connection broke: has the server died with it? A dying one may still accept
            await self.fleet.ask(replica)
            if replica.gone.is_set() or not replica.complaint:
                break
            await asyncio.sleep(LAST_WORD_S)
        if replica.gone.is_set() and not replica.draining:
            await socket.send_json({"type": "ended", "reason": "died", "message": DIED})
            return 1000, ""
        return MOVED, "the connection to the server was lost; connect again"

    async def down(self, upstream: ClientConnection, socket: WebSocket) -> None:
        """Pictures and messages of the replica; the next is read when the last one was taken."""
        while True:
            message = await upstream.recv()
            await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))
            self.metrics.messages.inc()


async def up(socket: WebSocket, upstream: ClientConnection, first: str) -> None:
    """The caller's messages, the first of which was read already."""
    await upstream.send(first)
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        await upstream.send(message["bytes"] if text is None else text)


def kept(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.decode("latin-1").lower() not in HOP]


def headers_of(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Those that are passed on; the router says its own date."""
    return [pair for pair in kept(answer.headers.raw) if pair[0].lower() != b"date"]


async def while_alive(replica: Replica, work: Awaitable[Found]) -> Found:
    """What `work` comes to; `httpx.ReadError` where the replica dies before."""
    task, gone = asyncio.ensure_future(work), asyncio.create_task(replica.gone.wait())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise httpx.ReadError("the server has died")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait([task])  # who closes the answer finds nobody reading it


async def read(answer: httpx.Response, replica: Replica) -> Response:
    """A replica's answer as the caller's, read to its end: a session, or why there is none."""
    try:
        data = await while_alive(replica, answer.aread())
    finally:
        await answer.aclose()
    response = Response(data, answer.status_code)
    response.raw_headers = headers_of(answer)
    return response


def answered(answer: httpx.Response, replica: Replica) -> Response:
    """A replica's answer as the caller's, passed on as it comes."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            source = answer.aiter_raw()
            while part := await while_alive(replica, anext(source, b"")):
                yield part
        finally:
            await answer.aclose()

    response = StreamingResponse(parts(), answer.status_code)
    response.raw_headers = headers_of(answer)
    return response
