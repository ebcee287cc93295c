"""A stand-in for the student: a striped wall that slides when the camera pans and swells when it walks."""

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch

from relic.geometry.actions import integrate, signed
from relic.geometry.config import Actions
from relic.serve import app
from relic.serve.access import Access
from relic.serve.config import Serve
from relic.serve.engine import Example, World

TRAINED = ("dolly_in", "dolly_out", "truck_left", "truck_right", "pan_left", "pan_right")


def wall(x: float, scale: float) -> np.ndarray:
    """Frame uint8 [32, 48, 3] of the wall seen from x at a scale."""
    rows, columns = np.mgrid[-16:16, -24:24] / scale
    stripes = np.stack([np.sin((columns + x) / 5), np.cos(rows / 4), np.sin((columns + x + rows) / 11)], -1)
    return (127 + 120 * stripes).astype(np.uint8)


class FakeWalk:
    def __init__(self, world: "FakeWorld", caption: str):
        self.world, self.caption, self.num_actions = world, caption, 4
        self.actions = torch.zeros(0, 13)
        self.x, self.scale, self.decode_s = 0.0, 1.0, 0.0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.world.steps.append((threading.current_thread().name, id(self)))
        time.sleep(self.world.chunk_s)
        if self.caption == "broken":
            raise RuntimeError("the kernel is broken")
        self.actions = torch.cat([self.actions, torch.from_numpy(actions).float()])
        frames = []
        for forward, right, _, _, pan, _ in signed(torch.from_numpy(actions)).tolist():
            self.x, self.scale = self.x + right + 2 * pan, min(4.0, max(0.5, self.scale * (1 + 0.02 * forward)))
            frames.append(wall(self.x, self.scale))
        return np.stack(frames), integrate(self.actions, Actions(degrees_per_unit=3.0))[-len(actions) :].numpy()


class FakeWorld:
    """An engine that answers at once, or after `chunk_s`."""

    def __init__(self, chunk_s: float = 0.0):
        self.chunk_s, self.warm_chunks = chunk_s, 3
        self.steps: list[tuple[str, int]] = []  # thread and walk of every step
        examples = tuple(Example(f"e{i}", f"wall {i}", "test", wall(20.0 * i, 1)) for i in range(3))
        about: dict[str, object] = {"memory": "fp8", "capacity": 8}
        self.world = World("fake", 32, 48, 40.0, dict.fromkeys(TRAINED, 1.0), examples, about)

    def open(self, image: np.ndarray, caption: str, seed: int) -> FakeWalk:
        return FakeWalk(self, caption)

    def check(self) -> None:
        pass


class Place(str):
    """The address of a running server, with its parts at hand."""

    server: app.Server


@contextlib.contextmanager
def serving(engine: FakeWorld, keys: dict[str, str] | None = None, **dials) -> Iterator[Place]:
    """A real server around an engine, on a free port, in a thread."""
    cfg = Serve(**{"run": "fake", "port": 0, **dials})
    listener = app.bind(cfg)
    place = Place(app.address(listener))
    place.server = app.make_server(engine, cfg, Access(keys or {}, cfg.token_s))
    thread = threading.Thread(target=place.server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not place.server.scheduler.warm and thread.is_alive() and not place.server.scheduler.fault:
            time.sleep(0.005)
        yield place
    finally:
        place.server.should_exit = True
        thread.join()
