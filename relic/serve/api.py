"""The session API: a walk is created by POST, walked over a WebSocket and ended by DELETE. Page and probes beside it.

What is refused is refused with one sentence, {"error": "..."}; `stream` says it its own way.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from socket import gethostname
from typing import Annotated

from fastapi import FastAPI, Request, Response, Security, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.requests import HTTPConnection

from relic import __version__
from relic.geometry.actions import ACTIONS
from relic.serve import images, reception, schema
from relic.serve.access import CALLER, Access, Refused, bearer, network
from relic.serve.config import FORMATS, Serve
from relic.serve.door import Door, start_of
from relic.serve.gate import Gate
from relic.serve.limits import Bodies, Creates, Sockets
from relic.serve.metrics import Exposition
from relic.serve.schema import errors
from relic.serve.session import Asked, Session
from relic.serve.stream import Stream
from relic.serve.transfer import Transfer
from relic.serve.world import Engine

WEB = Path(__file__).parent / "web"
ABOUT = "Walks in a world. A walk itself is a WebSocket, which docs/serving.md describes."
ROUTER = HTTPBearer(scheme_name="router", description="the router's token", auto_error=False)
KEY = HTTPBearer(scheme_name="key", description="an API key, where the server has a file of them", auto_error=False)
TOKEN = HTTPBearer(scheme_name="token", description="a session's token, or its creator's API key", auto_error=False)


def build(engine: Engine, cfg: Serve, access: Access, transfer: Transfer) -> Gate:
    """The application around an engine that is loaded."""
    door = Door(seconds=cfg.image_seconds, memory=cfg.image_memory)
    creates, sockets, bodies = Creates(cfg.creates_per_minute), Sockets(cfg.most_sockets), Bodies()
    world, scheduler, process = engine.world, transfer.scheduler, secrets.token_urlsafe(12)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = [asyncio.create_task(scheduler.run()), asyncio.create_task(transfer.tidy())]
        for task in work:
            task.add_done_callback(scheduler.part_ended)
        opening = asyncio.create_task(door.start())
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, opening, return_exceptions=True)  # a door that did not open ends no server
            await door.close()
            scheduler.close()

    app = FastAPI(
        title="relic", version=__version__, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None,
        exception_handlers=reception.HANDLERS,
    )  # fmt: skip

    def answer(error: Refused) -> JSONResponse:
        scheduler.metrics.refused(error)
        return reception.answer(error)

    @app.exception_handler(Refused)
    async def refused(connection: HTTPConnection, error: Refused) -> JSONResponse:
        return answer(error)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server has failed in this request; its log says how"}, 500)

    def caller_of(connection: HTTPConnection) -> str:
        """The address, which a router may tell."""
        return access.caller(connection.headers.get(CALLER), reception.peer(connection))

    def owner(request: Request, identity: str) -> Callable[[str], None]:
        """Refuses sessions of another principal, for who holds this one's token or an API key."""
        said = bearer(request.headers.get("authorization"))
        holder = access.key_holder(said)
        if holder is None:
            access.check(said, identity)

        def check(principal: str) -> None:
            if holder not in (None, principal):
                raise Refused(403, "the session belongs to another API key")

        return check

    def own_session(request: Request, identity: str) -> Session:
        """The session, for who holds its token or the API key that made it."""
        check = owner(request, identity)
        session = scheduler.find(identity)
        check(session.principal)
        return session

    @app.post(
        "/v1/sessions",
        status_code=201,
        response_model=schema.Created,
        responses=errors(401, 403, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=schema.body_of(schema.NewSession),
        dependencies=[Security(KEY)],
    )
    async def create(request: Request) -> dict:
        """Begins a walk in a free place."""
        principal = access.principal(request.headers.get("authorization"), caller_of(request))
        scheduler.check_room(principal)  # before any work on its image
        creates.take(principal, time.monotonic())
        asked = schema.parse(await bodies.read(request, principal, cfg), cfg)
        image, caption = await start_of(asked, world, cfg, door, principal)
        said = Asked(caption=caption, seed=asked.seed, speed=asked.speed, format=asked.format)
        return opened(request, scheduler.admit(principal=principal, image=image, asked=said))

    def opened(request: Request, session: Session) -> dict:
        """How a new session is walked."""
        path, asked = f"/v1/sessions/{session.id}/stream", session.asked
        scheme = "wss" if request.url.scheme == "https" else "ws"
        return {
            "id": session.id, "token": access.issue(session.id), "token_seconds": cfg.token_s,
            "url": f"{scheme}://{request.url.netloc}{path}", "path": path, "lease_seconds": cfg.lease_s,
            "longest_seconds": cfg.session_s, "prompt": asked.caption, "seed": asked.seed, "speed": asked.speed,
            "format": asked.format, "export": world.export,
        }  # fmt: skip

    own = errors(401, 403, 404, 410)

    @app.get("/v1/sessions/{identity}", response_model=schema.Report, responses=own, dependencies=[Security(TOKEN)])
    async def show(request: Request, identity: str) -> dict:
        """How a walk is going."""
        session = own_session(request, identity)
        asked = session.asked
        return {"id": session.id, "seed": asked.seed, "prompt": asked.caption, **session.report(time.monotonic())}

    @app.delete("/v1/sessions/{identity}", status_code=204, responses=own | errors(503), dependencies=[Security(TOKEN)])
    async def delete(request: Request, identity: str) -> None:
        """Ends a walk, also one that lies between two servers; one that has ended already has ended."""
        if not await transfer.discard(identity, owner(request, identity)) and identity not in scheduler.ended:
            scheduler.finish(own_session(request, identity), "deleted", "it was deleted")

    @app.post(
        "/v1/sessions/{identity}/branch",
        status_code=201,
        response_model=schema.Created,
        responses=own | errors(409, 429, 503),
        dependencies=[Security(TOKEN)],
    )
    async def branch(request: Request, identity: str) -> dict:
        """Begins a walk that goes on from the present moment of this one, which goes on by itself."""
        session = own_session(request, identity)
        scheduler.check_room(session.principal)
        creates.take(session.principal, time.monotonic())
        return opened(request, await scheduler.branch(session))

    @app.websocket("/v1/sessions/{identity}/stream")
    async def walk(socket: WebSocket, identity: str) -> None:
        caller = network(caller_of(socket))
        sockets.check(caller)
        await Stream(socket, identity, transfer, access, world, cfg, sockets, caller).run()

    app.websocket("/{path:path}")(reception.nowhere)

    @app.get("/v1/world", response_model=schema.WorldShown)
    async def show_world() -> dict:
        """The world, what the server allows, and whether it has room."""
        examples = [
            {"id": e.id, "caption": e.caption, "place": e.place, "image": f"/v1/examples/{place}.jpg"}
            for place, e in enumerate(world.examples)
        ]
        return {
            "recipe": world.recipe, "width": world.width, "height": world.height, "fps": world.fps,
            "actions": list(ACTIONS), "trained": world.actions, "examples": examples, "about": world.about,
            "slots": cfg.slots, "free": max(0, cfg.slots - scheduler.num_taken), "ready": scheduler.ready,
            "key_needed": access.keys_needed, "max_speed": cfg.max_speed,
            "max_magnitude": cfg.max_magnitude, "prompt_characters": cfg.prompt_characters,
            "image": {"formats": FORMATS, "bytes": cfg.image_bytes, "pixels": cfg.image_pixels},
        }  # fmt: skip

    pictures = {f"{place}.jpg": images.encode(e.image, "jpeg", 95) for place, e in enumerate(world.examples)}

    @app.get("/v1/examples/{name}", response_class=Response, responses=schema.JPEG | errors(404))
    async def example(name: Annotated[str, schema.EXAMPLE]) -> Response:
        """The start picture of an example."""
        if name not in pictures:
            raise Refused(404, f"there is no example {images.shown(name)}; there are {len(pictures)}")
        return Response(pictures[name], media_type="image/jpeg")

    @app.get("/v1/replica", response_model=schema.Replica, responses=errors(401, 403), dependencies=[Security(ROUTER)])
    async def replica(request: Request) -> dict:
        """This server and its walks, for the router."""
        access.check_router(request.headers.get("authorization"))
        return {
            "process": process, "name": gethostname(), "ready": scheduler.ready, "draining": scheduler.draining,
            "slots": cfg.slots, "active": scheduler.num_taken,
            "sessions": [*scheduler.sessions, *scheduler.arriving], "export": world.export,
        }  # fmt: skip

    @app.post(
        "/v1/sessions/{identity}/move",
        status_code=202,
        responses=own | errors(409),
        dependencies=[Security(ROUTER)],
    )
    async def move(request: Request, identity: str) -> None:
        """Begins to move a walk to another server: it is saved, and its client told to come again."""
        access.check_router(request.headers.get("authorization"))
        transfer.move(scheduler.find(identity))

    @app.get("/healthz", response_model=schema.Health, responses={503: {"model": schema.Health}})
    async def health() -> JSONResponse:
        """Whether the device works."""
        worker = scheduler.worker
        return JSONResponse({"alive": worker.alive, "fault": worker.trouble}, 200 if worker.alive else 503)

    @app.get("/readyz", response_model=schema.Readiness, responses={503: {"model": schema.Readiness}})
    async def readiness() -> JSONResponse:
        """Whether walks are admitted."""
        said: dict[str, bool | int] = {"ready": scheduler.ready, "warm": scheduler.warm, "draining": scheduler.draining}
        said |= {"slots": cfg.slots, "active": scheduler.num_taken}
        return JSONResponse(said, 200 if scheduler.ready else 503)

    @app.get("/metrics", response_class=Exposition)
    async def show_metrics() -> Response:
        """All that is counted, for Prometheus."""
        return Exposition(scheduler.metrics.show(
            active=scheduler.num_taken, slots=cfg.slots, ready=scheduler.ready, streams=sockets.open.held.total(),
            walk_bytes=scheduler.num_bytes,
        ))  # fmt: skip

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    schema.tidy(app.openapi())  # which keeps it
    return Gate(app, origins=cfg.origins, answer=answer)
