"""The server's HTTP connections: so many at most, and none that holds its place without asking for something."""

import asyncio

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
        """Closes a connection that has no request in work and had none since `before`, the one at the last look.

        So a body that still comes when its request has long been refused is not read for ever."""
        if self not in self.connections:
            return  # it has ended, or is a WebSocket
        if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(self.head_s, self.look, self.cycle)


def bounded(most: int, head_s: float = HEAD_S) -> type[Bounded]:
    """The protocol with its limits, which uvicorn makes for every connection."""
    return type("Bounded", (Bounded,), {"most": most, "head_s": head_s})
