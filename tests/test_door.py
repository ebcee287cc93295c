"""The image door: a stranger's file is decoded elsewhere, and whatever it does there, the server gets a sentence."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relic.serve import images
from relic.serve.door import MOST_INSIDE, Busy, Door, Doorman
from relic.serve.images import TooLarge

ANN: dict[str, Any] = {"caller": "ann", "height": 32, "width": 48, "most_pixels": 32_000_000}
BOB = {**ANN, "caller": "bob"}


def file(kind: str = "PNG", size: tuple[int, int] = (60, 20), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 200).save(buffer, kind)
    return buffer.getvalue()


def pid_of(door: Door) -> int:
    assert door.doorman is not None
    return door.doorman.process.pid


def through(call: Callable[[Door], Awaitable[None]], *, seconds: float = 10.0, memory: int = 1 << 30) -> None:
    async def run() -> None:
        door = Door(seconds=seconds, memory=memory)
        try:
            await call(door)
        finally:
            await door.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_door_makes_of_a_file_what_fit_makes(kind):
    async def walk(door: Door) -> None:
        data = file(kind)
        assert (await door.decode(data, **ANN) == images.fit(data, height=32, width=48, most_pixels=1200)).all()

    through(walk)


def test_one_process_sees_all_images_and_has_neither_torch_nor_secrets(monkeypatch):
    monkeypatch.setenv("RELIC_API_KEY", "correct-horse-battery")

    async def walk(door: Door) -> None:
        await door.decode(file(), **ANN)
        first = pid_of(door)
        with pytest.raises(ValueError, match="of no known format; allowed is a PNG, JPEG or WEBP in base64"):
            await door.decode(b"GIF89a", **ANN)
        await door.decode(file("WEBP"), **ANN)
        assert pid_of(door) == first
        with open(f"/proc/{first}/maps") as maps, open(f"/proc/{first}/environ") as environment:
            assert "libtorch" not in maps.read()
            assert "RELIC_API_KEY" not in environment.read()
        assert len(os.listdir(f"/proc/{first}/fd")) == 3

    through(walk)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded():
    with pytest.raises(TooLarge, match="20000x10; allowed are 32 pixels"):
        images.fit(file(size=(20000, 10)), height=32, width=48, most_pixels=32)


def test_a_bomb_that_passes_the_count_of_pixels_meets_the_limit_of_memory():
    async def walk(door: Door) -> None:
        with pytest.raises(TooLarge, match="needs more memory than one may take"):
            await door.decode(file(size=(12_000, 12_000), mode="L"), **{**ANN, "most_pixels": 1 << 40})
        await door.decode(file(), **ANN)

    through(walk, memory=1 << 28)


def test_an_image_that_takes_too_long_ends_its_process_and_the_next_one_finds_another():
    async def walk(door: Door) -> None:
        await door.start()
        first = pid_of(door)
        with pytest.raises(TooLarge, match=r"took longer than 0.3 s"):
            await door.decode(file(size=(8000, 4000), mode="RGBA"), **ANN)
        assert not os.path.exists(f"/proc/{first}")
        door.seconds = 10.0
        assert (await door.decode(file(), **ANN)).shape == (32, 48, 3)

    through(walk, seconds=0.3)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_process_that_dies_costs_one_image_and_not_the_server(when):
    async def walk(door: Door) -> None:
        await door.start()
        if when == "during":
            asyncio.get_running_loop().call_later(0.1, os.kill, pid_of(door), signal.SIGKILL)
        else:
            os.kill(pid_of(door), signal.SIGKILL)
            await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="could not be decoded"):
            await door.decode(file(size=(8000, 4000), mode="RGBA"), **ANN)
        assert (await door.decode(file(), **ANN)).shape == (32, 48, 3)

    through(walk)


def test_images_wait_for_one_another_and_not_without_bound():
    async def walk(door: Door) -> None:
        asked = [door.decode(file(), **who) for who in (ANN, BOB) for _ in range(MOST_INSIDE // 2 + 3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(result, Busy) for result in found) == 6
        assert sum(isinstance(result, np.ndarray) for result in found) == MOST_INSIDE
        assert not door.inside
        await door.decode(file(), **ANN)

    through(walk)


def test_one_callers_slow_images_let_another_have_the_next_turn():
    async def walk(door: Door) -> None:
        await door.start()
        done: list[str] = []

        async def bring(who: str, size: tuple[int, int]) -> None:
            await door.decode(file(size=size), **{**ANN, "caller": who})
            done.append(who)

        await asyncio.gather(*(bring("ann", (3000, 3000)) for _ in range(3)), bring("bob", (60, 20)))
        assert done == ["ann", "bob", "ann", "ann"]

    through(walk)


def test_a_caller_that_waits_too_long_for_others_is_told_so():
    async def walk(door: Door) -> None:
        await door.turn.acquire()
        with pytest.raises(Busy, match=r"other images took longer than 0.1 s;"):
            await door.decode(file(), **ANN)
        assert not door.inside

    through(walk, seconds=0.05)


def test_a_process_that_answers_nonsense_is_believed_nothing():
    async def walk(door: Door) -> None:
        here, there = socket.socketpair()
        with there:
            end, lie = there.fileno(), r"printf '\0\377\377\377\177'; cat"
            liar = subprocess.Popen(["sh", "-c", lie], stdin=end, stdout=end)
        door.doorman = Doorman(liar, *await asyncio.open_connection(sock=here))
        with pytest.raises(ValueError, match="could not be decoded"):
            await door.decode(file(), **ANN)

    through(walk)


def test_a_zip_bomb_in_a_pngs_text_is_a_sentence():
    text = zlib.compress(b"\0" * 200_000_000)
    chunk = b"zTXtComment\0\0" + text
    data = file()
    data = data[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]

    async def walk(door: Door) -> None:
        with pytest.raises(ValueError, match="the image is broken"):
            await door.decode(data, **ANN)

    through(walk)
