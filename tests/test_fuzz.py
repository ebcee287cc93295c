"""Strangers' messages and images: more than 100,000 of them, and nothing but a sentence comes of any.

Seeded: the same inputs every time. What is made of them is half nonsense and half nearly right, because nonsense alone
never gets past the first check."""

import asyncio
import base64
import io
import json
import math
import random
import resource
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_world import TRAINED
from PIL import Image

from relic.serve import images, wire
from relic.serve.config import FORMATS, Serve
from relic.serve.door import Door

CFG = Serve(run="fake", image_bytes=4000)
WORLD = dict.fromkeys(TRAINED, 1.0)
LIMITS = {"height": 16, "width": 24, "most_pixels": 100_000}
MOST_GROWTH = 64 << 20  # bytes of this process
NUM_MESSAGES, NUM_IMAGES, NUM_THROUGH = 120_000, 120_000, 1000


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_GROWTH


def outcome(call: Callable[[], object]) -> str:
    """What became of one input; anything but an answer or a sentence fails the test."""
    said = None
    try:
        call()
    except ValueError as error:
        said = error
    if said is None:
        return "read"
    assert len(str(said)) < 400
    json.dumps(str(said), ensure_ascii=False).encode()  # can be sent
    return type(said).__name__


# --- messages -------------------------------------------------------------------------------------------------------


def value(draw: random.Random, depth: int = 0) -> object:
    """Anything that JSON can say, with a liking for what hurts."""
    plain: list[object] = [
        None, True, False, 0, -1, 1, 2**31, 2**32, 2**64, 10**300, -0.0, 0.5, 1e308, float("nan"), float("inf"), "",
        "static", "dolly_in", "fly", "\ud800", "\0", "é" * 40, "x" * 300, draw.random() * 3, draw.randrange(2**33),
    ]  # fmt: skip
    if depth < 3 and draw.random() < 0.25:
        inside = [value(draw, depth + 1) for _ in range(draw.choice((0, 1, 2, 13, 14)))]
        return inside if draw.random() < 0.6 else {str(key): key for key in inside}
    return draw.choice(plain)


def message(draw: random.Random) -> str:
    """A message that is nearly right: each field, if it is there, is wrong as often as not."""
    right: dict[str, Callable[[], object]] = {
        "type": lambda: draw.choice(wire.MESSAGES), "seq": lambda: draw.randrange(2**32),
        "keys": lambda: draw.sample(TRAINED, 2) if draw.random() < 0.5 else [draw.random() for _ in range(13)],
        "speed": lambda: draw.random() * 2.5, "seconds": lambda: draw.random() * 9, "at": draw.random,
        "token": lambda: "a.b",
    }  # fmt: skip
    wrong = draw.choice((0.0, 0.3, 0.6))
    fields = {name: value(draw) if draw.random() < wrong else make() for name, make in right.items()}
    text = json.dumps({name: said for name, said in fields.items() if draw.random() > wrong / 2})
    if draw.random() < 0.3:
        at = draw.randrange(len(text))
        text = (
            text[:at]
            + draw.choice(("", "{", "]", '"', "\\", "9" * 5000, "[" * 4000, "\ud83d", "NaN", chr(draw.randrange(256))))
            + text[at + draw.randrange(3) :]
        )
    return text


def take(text: str) -> None:
    """What a stream does with a message."""
    said = wire.parse(text, CFG)
    if said["type"] == "action":
        seq, row = wire.parse_action(said, WORLD, CFG, 1.0)
        assert 0 <= seq < 2**32
        assert row.shape == (13,)
        assert np.isfinite(row).all()
        assert (row >= 0).all()
    elif said["type"] == "rewind":
        assert 0 < wire.parse_rewind(said) < 1e6
    elif said["type"] == "ping":
        at = wire.parse_at(said)
        assert at is None or (isinstance(at, int | float) and math.isfinite(at))


def test_no_message_breaks_the_parser():
    draw, found = random.Random(9), Counter[str]()
    for number in range(NUM_MESSAGES):
        text = message(draw) if number % 4 else "".join(map(chr, draw.choices(range(0x250), k=draw.randrange(40))))
        found[outcome(lambda text=text: take(text))] += 1
    assert min(found["read"], found["ValueError"]) > NUM_MESSAGES // 20
    assert set(found) <= {"read", "ValueError", "TooLarge"}


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"type":"action","seq":1,"keys":[['])
def test_no_depth_breaks_the_parser(opening):
    shut = {"[": "]", "{": "}"}
    for depth in [*range(1, 1400, 7), *range(900, 1000), 4000]:
        closing = "".join(shut[letter] for letter in reversed(opening * depth) if letter in shut)
        assert outcome(lambda depth=depth, closing=closing: take(opening * depth + "1" + closing)) != "read"


# --- images ---------------------------------------------------------------------------------------------------------


def files() -> list[bytes]:
    """Small images of every format and mode that a decoder treats differently."""
    noise = np.random.default_rng(9).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a place"
    found = []
    for kind in FORMATS:
        modes = {"PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA")}[
            kind
        ]
        for mode in modes:
            buffer = io.BytesIO()
            Image.fromarray(noise).convert("RGB" if mode == "CMYK" else "L" if mode == "I;16" else mode).convert(
                mode
            ).save(buffer, kind, exif=exif, **({"progressive": mode == "L"} if kind == "JPEG" else {}))
            found.append(buffer.getvalue())
    frames = [Image.fromarray(np.roll(noise, shift, 0)) for shift in range(3)]
    for kind in ("PNG", "WEBP"):  # moving ones
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        found.append(buffer.getvalue())
    return found


def mutated(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    kind = draw.randrange(6)
    if kind == 0:  # cut
        return data[: draw.randrange(len(data))]
    if kind == 1:  # nonsense behind a true beginning
        return data[: draw.randrange(4, 40)] + draw.randbytes(draw.randrange(200))
    if kind == 2:  # another file's end
        other = draw.choice(others)
        return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(min(len(changed), 60) if kind == 3 else len(changed))] = draw.choice(
            (0, 1, 127, 128, 255, draw.randrange(256))
        )
    if kind == 5 and data[:4] == b"\x89PNG":  # with sums that are right, so that the decoder goes on
        return resummed(bytes(changed))
    return bytes(changed)


def resummed(png: bytes) -> bytes:
    """The PNG with the right checksum behind each chunk."""
    out, at = png[:8], 8
    while at + 8 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        out += png[at:end] + zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return out


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def zeros(megabytes: int) -> bytes:
    """So many zeros, packed."""
    pack = zlib.compressobj()
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(megabytes)) + pack.flush()


def bombs() -> list[bytes]:
    """Little files that say they are large, or become so."""
    found, png = [], files()[0]
    for side in (300, 9_000, 60_000):
        header = side.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
        found.append(png[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zeros(80)) + chunk(b"IEND", b""))
    for name in (b"zTXt", b"iCCP"):
        found.append(png[:33] + chunk(name, b"a\0\0" + zeros(100)) + png[33:])
    for kind in ("WEBP", "JPEG"):
        buffer = io.BytesIO()
        Image.new("L", (4000, 900)).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def test_no_image_breaks_the_decoders():
    draw, found, whole = random.Random(9), Counter[str](), files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about files that are odd
        for number in range(NUM_IMAGES):
            data = mutated(whole[number % len(whole)], draw, whole)
            encoded = base64.b64encode(data).decode() if number % 5 else data.decode("latin-1")
            if number % 5 == 1:
                at = draw.randrange(len(encoded) + 1)
                encoded = encoded[:at] + draw.choice(("=", "\n", "é", "data:")) + encoded[at:]
            found[outcome(lambda text=encoded: images.fit(images.from_base64(text, CFG.image_bytes), **LIMITS))] += 1
    assert min(found["read"], found["ValueError"], found["TooLarge"]) > NUM_IMAGES // 100
    assert set(found) == {"read", "ValueError", "TooLarge"}


def test_the_door_answers_for_every_image_and_outlives_them():
    async def walk() -> Counter[str]:
        draw, found, whole = random.Random(10), Counter[str](), files()
        door = Door(seconds=10, memory=1 << 29)
        try:
            for data in [*bombs(), *(mutated(draw.choice(whole), draw, whole) for _ in range(NUM_THROUGH))]:
                try:
                    found[str((await door.decode(data, caller="ann", **LIMITS)).shape)] += 1
                except ValueError as error:
                    found[type(error).__name__] += 1
            for data in whole:
                assert (await door.decode(data, caller="ann", **LIMITS)).shape == (16, 24, 3)
        finally:
            await door.close()
        return found

    found = asyncio.run(walk())
    assert set(found) == {"(16, 24, 3)", "ValueError", "TooLarge"}
    assert sum(found.values()) == NUM_THROUGH + 7
