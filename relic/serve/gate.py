"""The first to see a request: pages of other sites are turned away, and every answer has the same headers."""

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from relic.serve.access import Refused

READING = ("GET", "HEAD", "OPTIONS")  # change nothing, and another site's page cannot see the answer
FRIENDS = {  # what a browser must hear before it lets an allowed page of another site ask and read
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-expose-headers": "retry-after",
    "vary": "origin",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}  # fmt: skip


class Gate:
    """ASGI around `app`; `answer` makes the response to a refusal. Without `origins` nobody is turned away: a router's
    servers say which pages may call."""

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...] | None, answer: Callable[[Refused], Response]):
        self.app, self.answer, self.open = app, answer, origins is None
        self.origins = {origin.lower() for origin in origins or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        origin = Headers(scope=scope).get("origin", "")
        friend = {"access-control-allow-origin": origin} | FRIENDS if origin.lower() in self.origins else {}

        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in (HEADERS | friend).items():
                    headers.setdefault(name, value)  # a server's own go through a router as they are
            await send(message)

        if friend and scope["type"] == "http" and scope["method"] == "OPTIONS":
            await Response(status_code=204)(scope, receive, with_headers)
            return
        changes = scope["type"] == "websocket" or scope["method"] not in READING
        if changes and not self.open and not self.welcome(Headers(scope=scope)):
            refused = self.answer(Refused(403, "pages of another site may not call this server", reason="origin"))
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, with_headers).send_denial_response(refused)
            else:
                await refused(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)

    def welcome(self, headers: Headers) -> bool:
        """No page calls (only browsers send an Origin), or the server's own does, or an allowed one.

        The scheme is not compared: a proxy that speaks TLS stands between."""
        origin = headers.get("origin", "").lower()
        return (
            not origin or origin in self.origins or origin.partition("://")[2] == headers.get("host", "").lower() != ""
        )
