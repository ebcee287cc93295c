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
from relic.serve.access import Access, read_secret
from relic.serve.config import Serve
from relic.serve.listener import address, bind
from relic.serve.world import Example, State, World

TRAINED = ("dolly_in", "dolly_out", "truck_left", "truck_right", "pan_left", "pan_right")


def wall(x: float, scale: float) -> np.ndarray:
    """Frame uint8 [32, 48, 3] of the wall seen from x at a scale."""
    rows, columns = np.mgrid[-16:16, -24:24] / scale
    stripes = np.stack([np.sin((columns + x) / 5), np.cos(rows / 4), np.sin((columns + x + rows) / 11)], -1)
    return (127 + 120 * stripes).astype(np.uint8)


class FakeWalk:
    def __init__(self, world: "FakeWorld", image: np.ndarray, caption: str, num_actions: int = 4):
        self.world, self.image, self.caption, self.num_actions = world, image, caption, num_actions
        self.actions = torch.zeros(0, 13)
        self.x, self.scale, self.decode_s = 0.0, 1.0, 0.0

    def storage(self) -> dict[int, int]:
        return {id(self.image): self.image.nbytes, id(self.actions): self.actions.nbytes}

    def most_bytes(self, *, points: int, every: int) -> int:
        return (1 + points) * 2**30

    def step(self, actions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Two frames at a time, as if each two were a latent."""
        assert len(actions) == self.num_actions
        self.world.steps.append((threading.current_thread().name, id(self)))
        if self.caption == "broken":
            raise RuntimeError("the kernel is broken")
        if not len(self.actions):
            yield self.image[None], np.eye(4)[None]
        for part in torch.from_numpy(actions).float().split(2):
            time.sleep(self.world.chunk_s * len(part) / len(actions))
            self.actions = torch.cat([self.actions, part])
            frames = [self.move(row) for row in signed(part).tolist()]
            yield np.stack(frames), integrate(self.actions, Actions(degrees_per_unit=3.0))[-len(part) :].numpy()

    def move(self, row: list[float]) -> np.ndarray:
        forward, right, _, _, pan, _ = row
        self.x, self.scale = self.x + right + 2 * pan, min(4.0, max(0.5, self.scale * (1 + 0.02 * forward)))
        return wall(self.x, self.scale)

    def branch(self) -> "FakeWalk":
        found = FakeWalk(self.world, self.image, self.caption, self.num_actions)
        found.actions, found.x, found.scale = self.actions, self.x, self.scale
        return found

    def state(self) -> State:
        tensors = {"image": torch.from_numpy(self.image.copy()), "actions": self.actions}
        return State(tensors, {"caption": self.caption, "x": self.x, "scale": self.scale})


class FakeWorld:
    """An engine that answers at once, or after `chunk_s`."""

    free_bytes: int | None = None

    def __init__(self, chunk_s: float = 0.0):
        self.chunk_s, self.warm_chunks = chunk_s, 3
        self.steps: list[tuple[str, int]] = []  # thread and walk of every step
        examples = tuple(Example(f"e{i}", f"wall {i}", "test", wall(20.0 * i, 1)) for i in range(3))
        about: dict[str, object] = {"memory": "fp8", "capacity": 8, "parameters": 5_600_000, "steps": 4}
        about |= {"linears": "FP8 weights in bfloat16", "device": "CPU, 1 thread"}
        self.world = World("fake", 32, 48, 40.0, dict.fromkeys(TRAINED, 1.0), examples, about)

    def open(self, image: np.ndarray, caption: str, seed: int) -> FakeWalk:
        return FakeWalk(self, image, caption)

    def restore(self, state: State) -> FakeWalk:
        walk = FakeWalk(self, state.tensors["image"].numpy(), state.facts["caption"])
        walk.actions, walk.x, walk.scale = state.tensors["actions"], state.facts["x"], state.facts["scale"]
        return walk

    def check(self) -> None:
        pass


class Place(str):
    """The address of a running server, with its parts at hand."""

    server: app.Server
    secret: bytes


@contextlib.contextmanager
def serving(engine: FakeWorld, keys: dict[str, str] | None = None, **dials) -> Iterator[Place]:
    """A real server around an engine, on a free port, in a thread."""
    cfg = Serve(**{"run": "fake", "port": 0, **dials})
    listener = bind(cfg.host, cfg.port)
    place = Place(address(listener))
    place.server = app.make_server(engine, cfg, Access(keys or {}, cfg.token_s, read_secret(cfg.token_secret)))
    thread = threading.Thread(target=place.server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not place.server.scheduler.warm and thread.is_alive() and not place.server.scheduler.worker.fault:
            time.sleep(0.005)
        yield place
    finally:
        place.server.should_exit = True
        thread.join()
