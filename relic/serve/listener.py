"""The port of a server or of a router, and its connections: so many at most, none that holds its place without asking
for something, and none that keeps all others waiting by what it sends in pieces. Loads no torch."""

import asyncio
import errno
import socket
import time
from collections import Counter
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from relic.serve.access import network
from relic.serve.config import FRAMES_PER_S
from relic.serve.limits import Bucket

HEAD_S = 10.0  # for the head of a request, from the connection's begin or the last answer; also the time between looks
CLOSE_S = 5  # for requests to end when the server closes
SEND_BUFFER = 1 << 16  # bytes: pictures that lie in a socket's buffer can no longer be dropped
SMALL_PART = 256  # bytes of a part of a body
SMALL_PARTS_PER_S = 100.0  # of a connection; as many at once
PIECE = 4096  # bytes that are looked at before anything else has its turn


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, or one sentence about why there is none. Port 0 takes a free one."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host is {host!r}, which has no address; give one of this machine") from error
    listener = socket.socket(family, kind, protocol)  # asyncio sends at once (TCP_NODELAY) only where TCP is named
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.bind(place)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} on {host} is in use; choose another by --port, or 0 for a free one"
        else:
            said = f"{host}:{port} cannot be taken ({error.strerror}); choose another --host or --port"
        raise ValueError(said) from error
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Parts(h11.Connection):
    """A connection by which a body comes in parts. Who floods it with small ones is cut off, by `flooded`."""

    def __init__(self, flooded: Callable[[], None]):
        super().__init__(h11.SERVER)
        self.flooded, self.small = flooded, Bucket(SMALL_PARTS_PER_S, SMALL_PARTS_PER_S, time.monotonic())

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Data) and len(event.data) < SMALL_PART and self.small.take(time.monotonic()):
            self.flooded()
            return h11.NEED_DATA
        return event


class Bounded(H11Protocol):
    """uvicorn's protocol for HTTP/1.1; what becomes a WebSocket is `Streaming` from then on."""

    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn = Parts(transport.abort)
        self.network = network(self.client[0]) if self.client else "unknown"
        if len(self.connections) > self.most and not self.displace():
            transport.abort()
        else:
            self.loop.call_later(HEAD_S, self.look, self.cycle, 0)

    def displace(self) -> bool:
        """Closes a connection of who has the most, one that waits for its caller, unless that would be a loss to who
        has no more than this one's caller."""
        open = [one for one in self.connections if isinstance(one, Bounded) and not one.transport.is_closing()]
        ((largest, count),) = Counter(one.network for one in open).most_common(1)
        waiting = (one for one in open if one.network == largest and one.waits())
        loser = next(waiting, None) if count > sum(one.network == self.network for one in open) else None
        if loser is not None:
            loser.transport.abort()
        return loser is not None

    def waits(self) -> bool:
        """Whether it is the caller's turn: to ask for something, or to take what was answered."""
        return self.cycle is None or self.cycle.response_complete or self.transport.get_write_buffer_size() > 0

    def look(self, before: object, unread: int) -> None:
        """Closes a connection whose caller has done nothing since the last look, which saw the request `before`, and so
        many bytes of answers `unread`.

        So a body that still comes when its request has long been refused is not read for ever, and an answer that
        nobody takes is not kept."""
        if self not in self.connections:
            return  # it has ended, or is a WebSocket
        still = self.transport.get_write_buffer_size()
        if self.cycle is before and still == unread and self.waits():
            self.transport.abort()
        else:
            self.loop.call_later(HEAD_S, self.look, self.cycle, still)


class Streaming(WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets. Who sends more frames than anybody has use for, messages or not, is cut off,
    and so is who does not take what was said at the end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.rate = Bucket(FRAMES_PER_S, FRAMES_PER_S, time.monotonic())
        self.loop.call_later(HEAD_S, self.look, False)

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            if self in self.connections and not self.transport.is_closing():
                super().data_received(data[at : at + PIECE])

    def handle_events(self) -> None:
        if any(self.rate.take(time.monotonic()) for _ in self.conn.events):
            self.transport.abort()
        else:
            super().handle_events()

    def handle_ping(self) -> None:
        """Answers where answers are taken; else who pings and never reads would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def look(self, closing: bool) -> None:
        """Cuts off whoever has been told the end, before the last look, and has not taken it."""
        if self in self.connections and closing:
            self.transport.abort()
        elif self in self.connections:
            self.loop.call_later(HEAD_S, self.look, self.transport.is_closing())


def settings(app: ASGIApp, *, most: int, message_bytes: int) -> uvicorn.Config:
    """How uvicorn serves `app`: `most` connections, nothing said of itself, no header of a proxy believed."""
    return uvicorn.Config(
        app, http=type("Bounded", (Bounded,), {"most": most}), ws=Streaming,
        ws_max_size=4 * message_bytes, ws_per_message_deflate=False, proxy_headers=False, server_header=False,
        access_log=False, log_config=None, log_level="warning", timeout_graceful_shutdown=CLOSE_S,
    )  # fmt: skip
