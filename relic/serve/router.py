"""`relic router`: one address for several servers. Loads no torch.

A new walk goes to the emptiest server; everything about a walk goes to the server that has it. A server that drains is
emptied, walk by walk, into others that serve the same export. Docs: docs/serving.md, "Several servers".
"""

import asyncio
import contextlib
import json
import logging
import resource
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute, request_response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from relic.serve import logs, reception
from relic.serve.access import Access, Refused, network, read_secret
from relic.serve.config import Router
from relic.serve.fleet import Fleet, Replica, RouterMetrics
from relic.serve.gate import Gate
from relic.serve.images import shown
from relic.serve.limits import Shares, parts_of
from relic.serve.listener import address, bind, settings
from relic.serve.metrics import Exposition
from relic.serve.moving import Mover
from relic.serve.pod_cost import PodCosts
from relic.serve.relay import Relay, answered, read

logger = logging.getLogger("relic.serve.router")

TOKEN_S = 60.0  # the life of a router's own token
KEPT_BYTES = 1 << 16  # a body that is no longer can be sent again, to the next replica
TRIES = 4  # replicas that are asked for a new walk
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
BUSY = (429, 503)  # answers after which the next replica is asked
MOST_REQUESTS = 64  # on their way to servers, half of them one caller's at most; fewer than a server's connections
FORWARDED = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def main(cfg: Router) -> None:
    """Routes until a signal comes."""
    logs.configure(cfg.log_format)
    secret = read_secret(cfg.token_secret)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a stream is two files, and usual are 1024 of them
    with bind(cfg.host, cfg.port) as listener:
        logs.announce(cfg.log_format, f"the router to {cfg.replicas}", address(listener))
        make_server(cfg, secret).run(sockets=[listener])


def make_server(cfg: Router, secret: bytes) -> uvicorn.Server:
    app = build(cfg, Access({}, TOKEN_S, secret))
    return uvicorn.Server(settings(app, most=cfg.sockets, message_bytes=cfg.message_bytes))


def build(cfg: Router, access: Access) -> Gate:
    """The application. It asks all replicas once before it answers anybody."""
    counted = RouterMetrics()
    fleet = Fleet(cfg, access, counted)
    relay = Relay(cfg, access, fleet, counted)
    mover = Mover(cfg, access, fleet, counted)
    costs = PodCosts() if cfg.deletion_cost else None
    asked = Shares(MOST_REQUESTS)
    work: list[asyncio.Task[None]] = []  # without end

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await fleet.resolve()
        await fleet.ask_all()
        for task in (fleet.run(), mover.run(), *([costs.run(fleet)] if costs else [])):
            work.append(asyncio.create_task(task))
            work[-1].add_done_callback(tell)
        try:
            yield
        finally:
            for one in work:
                one.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await fleet.http.aclose()
            await relay.http.aclose()

    async def create(request: Request) -> Response:
        """A new walk, at the emptiest replica; where one refuses, at the next."""
        content, whole = await beginning(parts_of(request, cfg.body_bytes))
        refusals: list[Response] = []
        for replica in fleet.by_load()[:TRIES]:
            if whole is None:
                await fleet.ask(replica)  # it cannot be asked twice, so its news are waited for
                if not replica.ready or replica.room < 1:
                    continue
            replica.coming += 1
            try:
                answer = await relay.forward(request, replica, content if whole is None else whole)
                if answer.status_code not in BUSY:
                    return await created(answer, replica)
                refusals.append(await read(answer, replica))
            except httpx.TransportError as error:
                if not await nobody_heard(error, replica, again=whole is not None):
                    raise
                continue
            finally:
                replica.coming -= 1
            if whole is None:
                break
        if not refusals:
            raise fleet.nobody()
        return min(refusals, key=lambda one: one.status_code)  # "full" (429) says more than "closing" (503)

    async def created(answer: httpx.Response, replica: Replica) -> Response:
        """The answer to who began or branched a walk, whose server is known from now on."""
        if answer.status_code != 201:
            return answered(answer, replica)
        response = await read(answer, replica)
        fleet.settle(json.loads(bytes(response.body))["id"], replica)
        return response

    async def session(request: Request) -> Response:
        """Whatever is asked about a walk, at the replica that has it."""
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        for _ in range(2):
            replica = await fleet.seek(request.path_params["identity"])
            try:
                answer = await relay.forward(request, replica, parts_of(request, cfg.body_bytes) if has_body else None)
                return await created(answer, replica)
            except httpx.TransportError as error:
                if not await nobody_heard(error, replica, again=not has_body):
                    raise
        raise Refused(503, "the server of this walk does not answer; come again in a moment", 1, reason="replica")

    async def anything(request: Request) -> Response:
        """The page and what it needs, from any replica."""
        for replica in fleet.by_load()[:TRIES]:
            try:
                return answered(await relay.forward(request, replica, None), replica)
            except httpx.TransportError as error:
                if not await nobody_heard(error, replica, again=True):
                    raise
        raise fleet.nobody()

    async def nobody_heard(error: httpx.TransportError, replica: Replica, *, again: bool) -> bool:
        """Whether a request that found no answer may go on to another replica: it was not sent, or who has heard it has
        died since, and it can be sent `again`."""
        await fleet.ask(replica)
        return isinstance(error, NOT_SENT) or (again and replica.gone.is_set())

    async def stream(socket: WebSocket) -> None:
        await relay.stream(socket, socket.path_params["identity"])

    async def health(request: Request) -> JSONResponse:
        alive = not any(task.done() for task in work)
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    async def readiness(request: Request) -> JSONResponse:
        ready = sum(replica.ready for replica in fleet.replicas.values())
        return JSONResponse({"ready": ready > 0, "replicas": len(fleet.replicas), "replicas_ready": ready},
                            200 if ready else 503)  # fmt: skip

    async def metrics(request: Request) -> Response:
        return Exposition(counted.show(fleet.replicas.values()))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        counted.refused(error)
        return reception.answer(error)

    async def unanswered(request: Request, error: Exception) -> Response:
        logger.warning("%s %s: %s", request.method, shown(request.url.path), type(error).__name__)
        return JSONResponse({"error": "the server did not answer as it should; come again in a moment"}, 502)

    one = "/v1/sessions/{identity}"
    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/healthz", health), Route("/readyz", readiness), Route("/metrics", metrics),
            Route("/v1/sessions", Shared(create, asked), methods=["POST"]),
            Route(one, Shared(session, asked), methods=FORWARDED),
            Route(one + "/{rest:path}", Shared(session, asked), methods=FORWARDED),
            WebSocketRoute(one + "/stream", stream), WebSocketRoute("/{path:path}", reception.nowhere),
            Route("/{path:path}", Shared(anything, asked), methods=["GET", "HEAD", "OPTIONS"]),
        ],
        exception_handlers={**reception.HANDLERS, Refused: refused, httpx.HTTPError: unanswered},
    )  # fmt: skip
    return Gate(app, origins=None, answer=reception.answer)


class Shared:
    """An endpoint of which a caller has its share only, from a request's head to the end of its answer."""

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]], asked: Shares):
        self.app, self.asked = request_response(endpoint), asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = network(scope["client"][0] if scope["client"] else "unknown")
        if not self.asked.left(caller):
            all, own = self.asked.held.total(), self.asked.held[caller]
            raise Refused(503, f"{all} requests are on their way already, {own} of them yours", 2, reason="requests")
        with self.asked.hold(caller):
            await self.app(scope, receive, send)


def tell(task: asyncio.Task[None]) -> None:
    """Logs why a task ended that was to have no end."""
    if not task.cancelled():
        logger.error("a part of the router has failed", exc_info=task.exception())


async def beginning(parts: AsyncIterator[bytes]) -> tuple[AsyncIterator[bytes], bytes | None]:
    """A body, and the whole of it where it is short."""
    read = bytearray()
    async for part in parts:
        read += part
        if len(read) > KEPT_BYTES:
            break
    else:
        return parts, bytes(read)

    async def again() -> AsyncIterator[bytes]:
        yield bytes(read)
        async for part in parts:
            yield part

    return again(), None
