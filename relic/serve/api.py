"""The session API: a walk is created by POST, walked over a WebSocket and ended by DELETE. Page and probes beside it.

What is refused is refused with one sentence, {"error": "..."}; `stream` says it its own way.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from relic.geometry.actions import ACTIONS
from relic.serve import wire
from relic.serve.access import Access, Refused, bearer
from relic.serve.config import FORMATS, Serve
from relic.serve.engine import Engine, World
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session
from relic.serve.stream import Stream

WEB = Path(__file__).parent / "web"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}  # fmt: skip


class NewSession(BaseModel):
    """The body of POST /v1/sessions: an example's id or an image, and how to walk."""

    model_config = ConfigDict(extra="forbid", strict=True)
    example: str | None = None
    image: str | None = Field(None, description=f"{', '.join(FORMATS)} in base64")
    prompt: str | None = Field(None, description="what the world looks like; an example brings its own")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    speed: float = Field(1.0, gt=0)


def build(engine: Engine, cfg: Serve, access: Access, scheduler: Scheduler) -> FastAPI:
    """The application around an engine that is loaded."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(scheduler.run())
        try:
            yield
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            scheduler.close()

    app = FastAPI(title="relic", lifespan=lifespan, docs_url=None, redoc_url=None)
    world = engine.world

    @app.middleware("http")
    async def with_headers(request: Request, follow: Any) -> Response:
        response = await follow(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {} if error.retry_after_s is None else {"retry-after": str(math.ceil(error.retry_after_s))}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": error.sentence}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)

    def principal_of(request: Request) -> str:
        address = request.client.host if request.client else "unknown"
        return access.principal(request.headers.get("authorization"), address)

    def own_session(request: Request, identity: str) -> Session:
        """The session, for who holds its token or the API key that made it."""
        said = bearer(request.headers.get("authorization"))
        holder = access.key_holder(said)
        if holder is None:
            access.check(said, identity)
        session = scheduler.find(identity)
        if holder not in (None, session.principal):
            raise Refused(403, "the session belongs to another API key")
        return session

    @app.post("/v1/sessions", status_code=201, openapi_extra=body_of(NewSession))
    async def create(request: Request) -> dict:
        principal = principal_of(request)
        scheduler.check_room(principal)  # before any work on its image
        asked = await read_body(request, cfg)
        image, caption = await start_of(asked, world, cfg)
        session = scheduler.admit(
            principal=principal,
            image=image,
            asked=Asked(caption=caption, seed=asked.seed, speed=speed_of(asked.speed, cfg)),
        )
        return opened(request, session)

    def opened(request: Request, session: Session) -> dict:
        """How a new session is walked."""
        path = f"/v1/sessions/{session.id}/stream"
        scheme = "wss" if request.url.scheme == "https" else "ws"
        return {
            "id": session.id, "token": access.issue(session.id), "token_seconds": cfg.token_s,
            "url": f"{scheme}://{request.url.netloc}{path}", "path": path, "lease_seconds": cfg.lease_s,
            "longest_seconds": cfg.session_s, "prompt": session.asked.caption, "seed": session.asked.seed,
            "speed": session.asked.speed, "export": world.export,
        }  # fmt: skip

    @app.get("/v1/sessions/{identity}")
    async def show(request: Request, identity: str) -> dict:
        session = own_session(request, identity)
        return {
            "id": session.id,
            "seed": session.asked.seed,
            "prompt": session.asked.caption,
            **session.report(time.monotonic()),
        }

    @app.delete("/v1/sessions/{identity}", status_code=204)
    async def delete(request: Request, identity: str) -> None:
        scheduler.finish(own_session(request, identity), "deleted", "it was deleted")

    @app.post("/v1/sessions/{identity}/branch", status_code=201)
    async def branch(request: Request, identity: str) -> dict:
        return opened(request, await scheduler.branch(own_session(request, identity)))

    @app.websocket("/v1/sessions/{identity}/stream")
    async def walk(socket: WebSocket, identity: str) -> None:
        await Stream(socket, identity, scheduler, access, world, cfg).run()

    @app.get("/v1/world")
    async def show_world() -> dict:
        examples = [
            {"id": e.id, "caption": e.caption, "place": e.place, "image": f"/v1/examples/{place}.jpg"}
            for place, e in enumerate(world.examples)
        ]
        return {
            "recipe": world.recipe, "width": world.width, "height": world.height, "fps": world.fps,
            "actions": list(ACTIONS), "trained": world.actions, "examples": examples, "about": world.about,
            "slots": cfg.slots, "free": max(0, cfg.slots - len(scheduler.sessions)), "ready": scheduler.ready,
            "key_needed": access.keys_needed, "max_speed": cfg.max_speed,
            "max_magnitude": cfg.max_magnitude, "prompt_characters": cfg.prompt_characters,
            "image": {"formats": FORMATS, "bytes": cfg.image_bytes, "pixels": cfg.image_pixels},
        }  # fmt: skip

    pictures = {f"{place}.jpg": wire.encode_jpeg(example.image, 95) for place, example in enumerate(world.examples)}

    @app.get("/v1/examples/{name}", response_class=Response)
    async def example(name: str) -> Response:
        if name not in pictures:
            raise Refused(404, f"there is no example {wire.shown(name)}; there are {len(pictures)}")
        return Response(pictures[name], media_type="image/jpeg")

    @app.get("/healthz")
    async def health() -> JSONResponse:
        return JSONResponse({"alive": scheduler.alive, "fault": scheduler.fault}, 200 if scheduler.alive else 503)

    @app.get("/readyz")
    async def readiness() -> JSONResponse:
        said: dict[str, bool | int] = {"ready": scheduler.ready, "warm": scheduler.warm, "draining": scheduler.draining}
        said |= {"slots": cfg.slots, "active": len(scheduler.sessions)}
        return JSONResponse(said, 200 if scheduler.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        gauges = {"relic_sessions_active": len(scheduler.sessions), "relic_session_slots": cfg.slots}
        return "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in gauges.items())

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    return app


# --- what a request asks for --------------------------------------------------------------------------------------


def body_of(model: type[BaseModel]) -> dict:
    """The OpenAPI entry of a JSON body that is read by hand, because its size must be bounded while it comes."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}, "required": True}}


async def read_body(request: Request, cfg: Serve) -> NewSession:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":  # a page of another site cannot send this type without asking first
        raise Refused(415, f"the content type is {kind!r}; allowed is application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > cfg.body_bytes:
            raise Refused(413, f"the body is larger than {cfg.body_bytes} bytes; an image may have {cfg.image_bytes}")
    try:
        return NewSession.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        said = "" if not first["loc"] else f" is {wire.shown(first['input'])}"
        allowed = ", ".join(NewSession.model_fields)
        raise Refused(422, f"{place}{said}: {first['msg']}; allowed are {allowed}") from error


async def start_of(asked: NewSession, world: World, cfg: Serve) -> tuple[Any, str]:
    """The start image uint8 [H, W, 3] and the caption."""
    if asked.prompt is not None and len(asked.prompt) > cfg.prompt_characters:
        raise Refused(422, f"the prompt has {len(asked.prompt)} characters; allowed are {cfg.prompt_characters}")
    if (asked.example is None) == (asked.image is None):
        raise Refused(422, "give either an example or an image")
    if asked.example is not None:
        example = world.example(asked.example)
        if example is None:
            known = ", ".join(e.id for e in world.examples[:8])
            raise Refused(422, f"there is no example {wire.shown(asked.example)}; there are {known}")
        return example.image, example.caption if asked.prompt is None else asked.prompt
    assert asked.image is not None
    try:
        image = await asyncio.to_thread(wire.read_image, asked.image, cfg, height=world.height, width=world.width)
    except wire.TooLarge as error:
        raise Refused(413, str(error)) from error
    except ValueError as error:
        raise Refused(422, str(error)) from error
    return image, asked.prompt or ""


def speed_of(speed: float, cfg: Serve) -> float:
    try:
        return wire.parse_speed(speed, cfg)
    except ValueError as error:
        raise Refused(422, str(error)) from error
