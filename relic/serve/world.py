"""What an engine is: a world, walks in it, and what a walk goes on from."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from relic.serve.decoding import Pictures


@dataclass(frozen=True)
class Example:
    """A start image of a held-out walk."""

    id: str
    caption: str
    place: str
    image: np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True)
class World:
    """What a caller must know of the model that is served."""

    recipe: str
    height: int
    width: int
    fps: float
    actions: dict[str, float]  # the trained actions and their usual magnitude
    examples: tuple[Example, ...]
    about: dict[str, object]  # shown on the page: memory, chunk, steps, device
    export: str = ""  # its key

    def example(self, identity: str) -> Example | None:
        return next((example for example in self.examples if example.id == identity), None)


@dataclass(frozen=True)
class State:
    """All that a walk goes on from."""

    tensors: dict[str, Tensor]  # on the CPU
    facts: dict[str, Any]  # as JSON has them


class Walk(Protocol):
    @property
    def decode_s(self) -> float:
        """Of the last step, the codec's share."""
        ...

    @property
    def num_actions(self) -> int:
        """Frames of the next chunk."""
        ...

    def storage(self) -> dict[int, int]:
        """Bytes of the device's memory that the walk holds, by their address: branches share some."""
        ...

    def most_bytes(self, *, points: int, every: int) -> int:
        """Bytes that the walk holds at most beside its last `points` branches, one made every `every` frames; its
        first chunks must be made."""
        ...

    def step(self, actions: np.ndarray) -> Pictures:
        """Frames uint8 [n, H, W, 3] and poses [n, 4, 4] of actions [num_actions, 13], latent by latent as they are
        decoded, the start image before the first. To be read to its end before any other call."""
        ...

    def branch(self) -> "Walk":
        """A walk that goes on from here on its own."""
        ...

    def state(self) -> State: ...


class Engine(Protocol):
    world: World
    warm_chunks: int  # of a walk that warms it up

    @property
    def free_bytes(self) -> int | None:
        """Of the device's memory, what nobody has taken; None of a CPU."""
        ...

    def open(self, image: np.ndarray, caption: str, seed: int) -> Walk: ...

    def restore(self, state: State) -> Walk:
        """The walk whose state it is, as it was. ValueError of a state that this engine cannot go on from."""
        ...

    def check(self) -> None:
        """Raises when the device does not compute any more."""
        ...
