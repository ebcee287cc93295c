"""The door for uploaded images: a process of its own decodes them, one at a time, with limited memory and time. Of one
caller one image at most is at work or waits beside others' for its turn.

A decoder is C code that reads what a stranger wrote. Here it has no torch, no model, no secret in its environment, no
open file but two pipes, `image_memory` bytes of address space, `image_seconds` of CPU and no child processes. Whatever
happens to it, the caller hears one sentence, the server goes on, and the next image finds a new process.

    request   HEAD (height, width, most pixels, length) and the file's bytes
    answer    REPLY (0 pixels, 1 wrong, 2 too large; length) and pixels uint8 [H, W, 3], or the sentence in UTF-8
"""

import asyncio
import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from relic.serve import images
from relic.serve.access import Refused
from relic.serve.config import Serve
from relic.serve.images import KINDS, TooLarge

if TYPE_CHECKING:  # the process that decodes loads neither
    from relic.serve.engine import World
    from relic.serve.schema import NewSession

HEAD = struct.Struct("<IIQI")
REPLY = struct.Struct("<BI")
MOST_SAID = 4096  # bytes of a sentence
MOST_INSIDE = 8  # images, the one at work included, half of them one caller's at most; each is held in memory
INHERITED = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # what Python needs to find its packages
CRASHED = f"the image could not be decoded; allowed is a {KINDS} in base64"


class Busy(Exception):
    """More images wait than the door can take."""


@dataclass(frozen=True)
class Doorman:
    """A process that decodes, and the socket to it."""

    process: subprocess.Popen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Door:
    """The process and who waits for it. `close` it in the end; it starts with the first image if not by `start`."""

    def __init__(self, *, seconds: float, memory: int):
        self.seconds, self.memory = seconds, memory
        self.turn = asyncio.Lock()
        self.turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by caller
        self.inside: Counter[str] = Counter()  # by caller
        self.doorman: Doorman | None = None

    async def decode(self, data: bytes, *, caller: str, height: int, width: int, most_pixels: int) -> np.ndarray:
        """The middle of an image file as uint8 [height, width, 3]; ValueError, TooLarge or Busy in one sentence."""
        all, own = self.inside.total(), self.inside[caller]
        if all >= MOST_INSIDE or own >= MOST_INSIDE // 2:
            raise Busy(f"{all} images wait to be decoded already, {own} of them yours; come again in a moment")
        self.inside[caller] += 1
        try:
            async with contextlib.AsyncExitStack() as turns:
                patience_s = 2 * self.seconds  # longer than another caller's slowest image
                try:
                    async with asyncio.timeout(patience_s):
                        await turns.enter_async_context(self.turns.setdefault(caller, asyncio.Lock()))
                        await turns.enter_async_context(self.turn)
                except TimeoutError as error:
                    raise Busy(f"other images took longer than {patience_s:g} s; come again in a moment") from error
                try:
                    async with asyncio.timeout(self.seconds):
                        return await self._ask(data, height=height, width=width, most_pixels=most_pixels)
                except TimeoutError as error:
                    raise TooLarge(f"the image took longer than {self.seconds:g} s to decode") from error
        finally:
            self.inside[caller] -= 1
            self.inside += Counter()  # forgets whoever has none

    async def start(self) -> None:
        async with self.turn:
            await self._start()

    async def close(self) -> None:
        doorman, self.doorman = self.doorman, None
        if doorman is not None:
            doorman.process.kill()
            doorman.writer.transport.abort()  # what it was still to be sent is of no use to anybody
            await asyncio.to_thread(doorman.process.wait)

    async def _start(self) -> Doorman:
        if self.doorman is None:
            here, there = socket.socketpair()
            env = {name: os.environ[name] for name in INHERITED if name in os.environ}
            env["OPENBLAS_NUM_THREADS"] = "1"  # each thread would take its share of the address space
            command = [sys.executable, "-m", "relic.serve.door", str(self.seconds), str(self.memory)]
            with there:
                end = there.fileno()
                process = subprocess.Popen(command, stdin=end, stdout=end, stderr=subprocess.DEVNULL, env=env)
            self.doorman = Doorman(process, *await asyncio.open_connection(sock=here))
        return self.doorman

    async def _ask(self, data: bytes, *, height: int, width: int, most_pixels: int) -> np.ndarray:
        answered = False
        try:
            doorman = await self._start()
            doorman.writer.write(HEAD.pack(height, width, most_pixels, len(data)) + data)
            await doorman.writer.drain()
            kind, length = REPLY.unpack(await doorman.reader.readexactly(REPLY.size))
            if length > max(height * width * 3, MOST_SAID):
                raise ValueError(CRASHED)
            answer = await doorman.reader.readexactly(length)
            answered = True
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ValueError(CRASHED) from error
        finally:
            if not answered:  # late, dead or in the middle of an answer: the next image finds another process
                await self.close()
        if kind == 0:
            return np.frombuffer(answer, np.uint8).reshape(height, width, 3)
        raise (TooLarge if kind == 2 else ValueError)(answer.decode(errors="replace"))


async def start_of(asked: "NewSession", world: "World", cfg: Serve, door: Door, caller: str) -> tuple[np.ndarray, str]:
    """The start image uint8 [H, W, 3] and the caption of a new walk, or `Refused`."""
    if asked.example is not None:
        example = world.example(asked.example)
        if example is None:
            known = ", ".join(e.id for e in world.examples[:8])
            raise Refused(422, f"there is no example {images.shown(asked.example)}; there are {known}")
        return example.image, example.caption if asked.prompt is None else asked.prompt
    assert asked.image is not None
    try:
        data = images.from_base64(asked.image, cfg.image_bytes)
        image = await door.decode(
            data, caller=caller, height=world.height, width=world.width, most_pixels=cfg.image_pixels
        )
    except Busy as error:
        raise Refused(503, str(error), 5, reason="image_door") from error
    except TooLarge as error:
        raise Refused(413, str(error)) from error
    except ValueError as error:
        raise Refused(422, str(error)) from error
    return image, asked.prompt or ""


# --- in the process -------------------------------------------------------------------------------------------------


def attend(seconds: float, memory: int) -> None:
    """Answers requests on the standard streams until they end."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    images.fit(_smallest(), height=2, width=2, most_pixels=1)  # loads the decoders
    for limit, value in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    while head := source.read(HEAD.size):
        height, width, most_pixels, length = HEAD.unpack(head)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))
        kind, answer = answer_to(source.read(length), height=height, width=width, most_pixels=most_pixels)
        sink.write(REPLY.pack(kind, len(answer)) + answer)
        sink.flush()


def answer_to(data: bytes, *, height: int, width: int, most_pixels: int) -> tuple[int, bytes]:
    try:
        allowed = f"{KINDS} in base64"
        return 0, images.fit(data, height=height, width=width, most_pixels=most_pixels, allowed=allowed).tobytes()
    except TooLarge as error:
        return 2, str(error).encode()
    except ValueError as error:
        return 1, str(error).encode("utf-8", "replace")
    except MemoryError:
        return 2, b"the image needs more memory than one may take"


def _smallest() -> bytes:
    return images.encode(np.zeros((1, 1, 3), np.uint8), "webp", 50)


if __name__ == "__main__":
    attend(float(sys.argv[1]), int(sys.argv[2]))
