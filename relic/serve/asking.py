"""What a request asks for: its body, with a bound on bytes and time, and the picture and words of the start."""

import numpy as np
from fastapi import Request
from pydantic import ValidationError

from relic.serve import images, wire
from relic.serve.access import Refused
from relic.serve.config import Serve
from relic.serve.door import Busy, Door
from relic.serve.engine import World
from relic.serve.limits import parts_of
from relic.serve.schema import NewSession

MOST_BODIES = 8  # that are read at a time; each is held in memory


class Bodies:
    """The bodies that are being read."""

    def __init__(self) -> None:
        self.num_reading = 0

    async def read(self, request: Request, cfg: Serve) -> NewSession:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":  # a page of another site cannot send this type without asking first
            raise Refused(415, f"the content type is {images.shown(kind)}; allowed is application/json")
        if self.num_reading >= MOST_BODIES:
            raise Refused(503, f"{self.num_reading} callers send a body already", 2, reason="bodies")
        self.num_reading += 1
        try:
            return parse(b"".join([part async for part in parts_of(request, cfg.body_bytes)]))
        finally:
            self.num_reading -= 1


def parse(body: bytes) -> NewSession:
    try:
        return NewSession.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        said = "" if not first["loc"] else f" is {images.shown(first['input'])}"
        allowed = ", ".join(NewSession.model_fields)
        raise Refused(422, f"{place}{said}: {first['msg']}; allowed are {allowed}") from error


async def start_of(asked: NewSession, world: World, cfg: Serve, door: Door) -> tuple[np.ndarray, str]:
    """The start image uint8 [H, W, 3] and the caption."""
    if asked.prompt is not None and len(asked.prompt) > cfg.prompt_characters:
        raise Refused(422, f"the prompt has {len(asked.prompt)} characters; allowed are {cfg.prompt_characters}")
    if (asked.example is None) == (asked.image is None):
        raise Refused(422, "give either an example or an image")
    if asked.example is not None:
        example = world.example(asked.example)
        if example is None:
            known = ", ".join(e.id for e in world.examples[:8])
            raise Refused(422, f"there is no example {images.shown(asked.example)}; there are {known}")
        return example.image, example.caption if asked.prompt is None else asked.prompt
    assert asked.image is not None
    try:
        data = images.from_base64(asked.image, cfg.image_bytes)
        image = await door.decode(data, height=world.height, width=world.width, most_pixels=cfg.image_pixels)
    except Busy as error:
        raise Refused(503, str(error), 5, reason="image_door") from error
    except images.TooLarge as error:
        raise Refused(413, str(error)) from error
    except ValueError as error:
        raise Refused(422, str(error)) from error
    return image, asked.prompt or ""


def speed_of(speed: float, cfg: Serve) -> float:
    try:
        return wire.parse_speed(speed, cfg)
    except ValueError as error:
        raise Refused(422, str(error)) from error
