"""How callers are received, at a server and at a router alike: who they are, the hello of a stream, and how a refusal
is said.

What ends a stream says so first, {"type": "error", "code", "message"}, and closes with 4000 + the HTTP status that
would have said the same. Loads no torch.
"""

import contextlib
import math
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from relic.serve import wire
from relic.serve.access import Access, Refused
from relic.serve.config import Router, Serve
from relic.serve.images import shown
from relic.serve.limits import Sockets


def peer(connection: HTTPConnection) -> str:
    """The address that a connection comes from."""
    return connection.client.host if connection.client else "unknown"


async def hello(
    socket: WebSocket, identity: str, access: Access, cfg: Serve | Router, sockets: Sockets, caller: str
) -> str:
    """The first message of a stream, whose token opens the session, or `Refused`."""
    try:
        async with sockets.patience(caller, cfg.hello_s):
            text = await receive(socket)
        message = wire.parse(text, cfg)
    except TimeoutError as error:
        said = f"no hello came within {cfg.hello_s:g} s, or before another caller needed the place"
        raise Refused(408, said) from error
    except wire.TooLarge as error:
        raise Refused(413, str(error)) from error
    except ValueError as error:
        raise Refused(422, str(error)) from error
    if message["type"] != "hello":
        raise Refused(401, f"the first message is {message['type']!r}; it must be hello with the session's token")
    access.check(message.get("token"), identity)
    assert text is not None
    return text


async def receive(socket: WebSocket) -> str | None:
    """The text of the next message; None of a binary one."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    return message.get("text")


async def end(socket: WebSocket, code: int, reason: str = "", *, last: dict | None = None) -> None:
    """The last sentence, if there is one, and the close code; a caller who is gone hears neither."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        if socket.client_state == socket.application_state == WebSocketState.CONNECTED:
            if last is not None:
                await socket.send_json(last)
            await socket.close(code, reason)


async def turn_away(socket: WebSocket, error: Refused) -> None:
    last = {"type": "error", "code": error.status, "message": error.sentence}
    await end(socket, 4000 + error.status, last=last)


async def nowhere(socket: WebSocket) -> None:
    """A WebSocket to a path that has none."""
    raise Refused(404, f"there is no stream at {shown(socket.url.path)}; a walk's is /v1/sessions/ID/stream")


def answer(error: Refused) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"retry-after": str(math.ceil(error.retry_after_s))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": error.sentence}, error.status, headers)


async def failed(request: Request, error: HTTPException) -> JSONResponse:
    """There is no such path, or it has not this method."""
    said = f"{request.method} {shown(request.url.path)}: {error.detail}"
    return JSONResponse({"error": said}, error.status_code, error.headers)


async def left(request: Request, error: ClientDisconnect) -> Response:
    """To a caller who has gone in the middle of a request: nobody reads it."""
    return Response(status_code=400)


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPException: failed, ClientDisconnect: left,
}  # fmt: skip
