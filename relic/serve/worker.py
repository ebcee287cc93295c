"""The engine's thread: its calls, one at a time, and whether the device still answers them. A few threads beside it
encode the pictures, which it does not wait for."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from relic.serve.config import Serve
from relic.serve.images import encode
from relic.serve.pace import Made
from relic.serve.session import static_row
from relic.serve.world import Engine, Walk

logger = logging.getLogger("relic.serve")

ENCODERS = 2  # threads
STUCK_S = 120.0  # a call that lasts longer means a dead device
THREAD = "engine"
LAST_S = 5.0  # for the call that the engine is in when the server has closed
GIB = 2**30  # bytes


class Worker:
    def __init__(self, engine: Engine, cfg: Serve):
        self.engine, self.cfg = engine, cfg
        self.fault = ""  # what has failed
        self.since: float | None = None  # when the call in work began
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self.encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encoder")

    @property
    def alive(self) -> bool:
        return not self.trouble

    @property
    def trouble(self) -> str:
        """Why the device is thought dead; empty while it is not."""
        since = self.since
        stuck = since is not None and time.monotonic() - since > STUCK_S
        return self.fault or (f"a call of the engine has lasted for more than {STUCK_S:.0f} s" if stuck else "")

    async def call(self, call, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.timed, call, *arguments)

    async def warm_up(self) -> None:
        """Takes as long as it takes; `fault` says what has failed."""
        await asyncio.get_running_loop().run_in_executor(self.thread, self.first_chunks)

    async def examine(self) -> None:
        """Asks whether the device still computes."""
        try:
            await self.call(self.engine.check)
        except Exception as error:
            self.fault = str(error)
            logger.exception("the device is lost")

    def close(self) -> None:
        for threads in (self.thread, self.encoders):
            threads.shutdown(wait=False, cancel_futures=True)

    # --- in the thread --------------------------------------------------------------------------------------------

    def timed(self, call, *arguments):
        """A call whose asker may be gone before it ends."""
        self.since = time.monotonic()
        try:
            return call(*arguments)
        finally:
            self.since = None

    def advance(
        self, walk: Walk, actions: np.ndarray, kind: str, deliver: Callable[[list[Made], float, float], object]
    ) -> float:
        """Seconds of a chunk, whose pictures are delivered latent by latent, with the time of two clocks."""
        began = time.perf_counter()
        for frames, poses in walk.step(actions):
            encoded = [self.encoders.submit(encode, frame, kind, self.cfg.jpeg_quality) for frame in frames]
            deliver(list(zip(encoded, poses, strict=True)), time.monotonic(), 1e3 * time.time())
        return time.perf_counter() - began

    def first_chunks(self) -> None:
        """Makes a few chunks that nobody sees, so that the first visitor does not wait for kernels."""
        world = self.engine.world
        image = world.examples[0].image if world.examples else np.zeros((world.height, world.width, 3), np.uint8)
        try:
            walk = self.engine.open(image, "", 0)
            for _ in range(self.engine.warm_chunks):
                seconds = self.advance(walk, np.stack([static_row()] * walk.num_actions), "jpeg", lambda *_: None)
            logger.info("warm: a chunk takes %.0f ms", 1e3 * seconds)
            self.compare(walk)
        except Exception as error:
            self.fault = str(error)
            logger.exception("the engine does not run")

    def compare(self, walk: Walk) -> None:
        """Warns where the device has no room for as many walks as there are slots, when this one has ended."""
        if self.engine.free_bytes is None:
            return
        slots, points = self.cfg.slots, self.cfg.rewind_points
        free = self.engine.free_bytes + sum(walk.storage().values())
        each = walk.most_bytes(points=points, every=math.ceil(self.cfg.rewind_every_s * self.engine.world.fps))
        if free < slots * each:
            logger.warning(
                "the device has %.1f GiB for walks; one with %d moments to go back to takes up to %.1f, so %d of %d "
                "slots surely fit: lower --slots or --rewind-points",
                free / GIB, points, each / GIB, free // each, slots,
            )  # fmt: skip


def hanging() -> bool:
    """A call of the engine does not come back."""
    calls = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]
    for thread in calls:
        thread.join(LAST_S)
    return any(thread.is_alive() for thread in calls)
