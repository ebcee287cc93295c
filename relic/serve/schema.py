"""The bodies of the HTTP API, in and out, and what each error means: what openapi.json is made of."""

import string
from typing import Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relic.serve import images, wire
from relic.serve.access import Refused
from relic.serve.config import FORMATS, PICTURES, Serve

MEANINGS = {
    401: "there is no API key or token",
    403: "the API key or token is wrong or another session's, or the page is another site's",
    404: "there is no such thing",
    408: "the body did not come in time",
    409: "the caller has as many walks as one may have, or the server cannot do this",
    410: "the session has ended; the sentence says why",
    413: "the body or the image is too large, or takes too much to decode",
    415: "the body is not JSON",
    422: "a value is wrong; the sentence says what is allowed",
    429: "all places are taken, or the caller asks too often",
    503: "the server is warming up, closing, busy or out of order",
}
BASE64 = f"{string.ascii_letters}{string.digits}+/=".encode()
SECONDS = "until it is worth to ask again"
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "the picture"}}
EXAMPLE = Path(description="what `image` of an example ends in")


class Failure(BaseModel):
    """Any refusal: one sentence."""

    error: str


class NewSession(BaseModel):
    """How a walk begins: an example's id or an image, and how to walk."""

    model_config = ConfigDict(extra="forbid", strict=True)
    example: str | None = Field(None, description="an id of GET /v1/world")
    image: str | None = Field(None, description=f"{', '.join(FORMATS)} in base64")
    prompt: str | None = Field(None, description="what the world looks like; an example brings its own")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    speed: float = Field(1.0, gt=0, description="of the motions; GET /v1/world says the highest")
    format: Literal["jpeg", "webp"] = Field("jpeg", description="of the pictures; the first bytes of each say it too")


def parse(body: bytes, cfg: Serve) -> NewSession:
    """What a body asks for, or `Refused`. Nothing but an image is long; of a million keys each would be named as wrong,
    while all walks wait."""
    beside, most = len(body.translate(None, BASE64)), 1024 + 4 * cfg.prompt_characters
    if beside > most:
        raise Refused(413, f"the body has {beside} bytes that are not of base64; allowed are {most}")
    try:
        asked = NewSession.model_validate_json(body)
        wire.parse_speed(asked.speed, cfg)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, what, fields = ".".join(map(str, first["loc"])), first["msg"], ", ".join(NewSession.model_fields)
        if name in NewSession.model_fields:
            said = f"{name} is {images.shown(first['input'])}; {what.replace('Input', 'it')}"
        else:
            said = f"{images.shown(name)} is unknown" if name else f"the body: {what}"
            said += f"; allowed are {fields}"
        raise Refused(422, said) from error
    except ValueError as error:
        raise Refused(422, str(error)) from error
    if asked.prompt is not None and len(asked.prompt) > cfg.prompt_characters:
        raise Refused(422, f"the prompt has {len(asked.prompt)} characters; allowed are {cfg.prompt_characters}")
    if (asked.example is None) == (asked.image is None):
        raise Refused(422, "give either an example or an image")
    return asked


class Created(BaseModel):
    """A session, and how to walk in it."""

    id: str
    token: str = Field(description="for the first message of the stream, and as the bearer of GET and DELETE")
    token_seconds: float
    url: str = Field(description="of the WebSocket")
    path: str
    lease_seconds: float = Field(description="how long the walk keeps its place without a connection")
    longest_seconds: float
    prompt: str
    seed: int
    speed: float
    format: str
    export: str = Field(description="the key of what is served")


class Report(BaseModel):
    """A session as it is now."""

    id: str
    seed: int
    prompt: str
    state: str = Field(description="open (nobody is connected), walking, resting or ended")
    paused: bool
    chunk_ms: float
    decode_ms: float
    turnaround_ms: float
    fps: float
    pictures: int = Field(description="of a chunk")
    chunks: int
    made: int = Field(description="pictures")
    shown: int
    dropped: int
    rewind_s: list[float] = Field(description="seconds back of the moments one can go back to")
    seconds_left: float


class ExampleShown(BaseModel):
    id: str
    caption: str
    place: str
    image: str = Field(description="the path of its picture")


class ImageLimits(BaseModel):
    formats: list[str]
    bytes: int
    pixels: int


class WorldShown(BaseModel):
    """What a caller must know of the world and of the server."""

    recipe: str
    width: int
    height: int
    fps: float
    actions: list[str] = Field(description="all names, in the order of the 13 numbers")
    trained: dict[str, float] = Field(description="the actions that the world knows, and their usual size")
    examples: list[ExampleShown]
    about: dict[str, Any]
    slots: int
    free: int
    ready: bool
    key_needed: bool
    max_speed: float
    max_magnitude: float
    prompt_characters: int
    image: ImageLimits
    picture_formats: list[str] = list(PICTURES)


class Replica(BaseModel):
    """A server of several, as its router sees it."""

    process: str = Field(description="another one after every start")
    name: str = Field(description="of its host, which is a pod's")
    ready: bool
    draining: bool
    slots: int
    active: int
    sessions: list[str] = Field(description="ids, those on their way here included")
    export: str


class Health(BaseModel):
    alive: bool
    fault: str


class Readiness(BaseModel):
    ready: bool
    warm: bool
    draining: bool
    slots: int
    active: int


def tidy(document: dict[str, Any]) -> None:
    """Takes out FastAPI's own 422, which it lists wherever a path has a parameter: a text is never wrong there."""
    for path in document["paths"].values():
        for operation in path.values():
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of an operation for the refusals that it may answer."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": Failure, "description": MEANINGS[status]}
        if status in (429, 503):
            found[status]["headers"] = {"Retry-After": {"description": SECONDS, "schema": {"type": "integer"}}}
    return found


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The entry of a JSON body that is read by hand, because its size must be bounded while it comes."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}, "required": True}}
