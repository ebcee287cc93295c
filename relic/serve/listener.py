"""The port of a server or router, and connections that do not say what they want in time. Loads no torch."""

import asyncio
import errno
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SEND_BUFFER = 1 << 16  # bytes: pictures that lie in a socket's buffer can no longer be dropped


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, or one sentence about why there is none. Port 0 takes a free one."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host is {host!r}, which has no address; give one of this machine") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
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


def impatient(*, header_s: float, most: int) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, but a connection whose next request's head is not there `header_s` after its first byte (or
    after it was opened) is closed, and so is one beyond the `most` that may be open. uvicorn bounds neither."""

    class Impatient(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self.deadline = self.loop.call_later(header_s, self.give_up)

        def data_received(self, data: bytes) -> None:
            if self.deadline is None and (self.cycle is None or self.cycle.response_complete):
                self.deadline = self.loop.call_later(header_s, self.give_up)
            super().data_received(data)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self.stop_waiting()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self.stop_waiting()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_waiting()
            super().connection_lost(exc)

        def stop_waiting(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def give_up(self) -> None:
            self.deadline = None
            self.transport.close()

    return Impatient
