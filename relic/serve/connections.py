"""The server's HTTP connections: so many at most, and none that holds its place without asking for something."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for the head of a request, from the connection's begin or the last answer; also the time between looks


class Bounded(H11Protocol):
    """uvicorn's protocol for HTTP/1.1; what becomes a WebSocket is looked after by `stream` from then on."""

    most: int
    head_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self.loop.call_later(self.head_s, self.look, self.cycle)

    def look(self, before: object) -> None:
        """Closes a connection on which no request has come since `before`, the one at the last look."""
        if self not in self.connections:
            return  # it has ended, or is a WebSocket
        if self.conn.their_state is h11.IDLE and self.cycle is before:
            self.transport.close()
        else:
            self.loop.call_later(self.head_s, self.look, self.cycle)


def bounded(most: int, head_s: float = HEAD_S) -> type[Bounded]:
    """The protocol with its limits, which uvicorn makes for every connection."""
    return type("Bounded", (Bounded,), {"most": most, "head_s": head_s})
