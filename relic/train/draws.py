"""All that is random in a training step: a function of (seed, step) and, for a sample's own, of its place in the batch.

So it does not depend on which process computes a sample, or on how many there are, and nothing random is in a
checkpoint. Processes that share a sample draw the same."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Draws:
    """`shared` draws what a whole batch has in common; the methods draw for each of `rows`, from its own stream."""

    def __init__(self, key: tuple[int, ...], rows: Iterable[int]):
        """key: (seed, step) or longer; rows: places in the global batch."""
        self.key, self.rows = key, list(rows)
        self.shared = np.random.default_rng(key)
        # + 1: to a seed's sequence a zero at the end is nothing
        self.own = [np.random.default_rng((*key, row + 1)) for row in self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal [B, *shape] float32."""
        return torch.stack([torch.from_numpy(own.standard_normal(shape, np.float32)) for own in self.own])

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1)."""
        return torch.stack([torch.from_numpy(own.random(shape, np.float32)) for own in self.own])

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64 in 0 .. high - 1."""
        return torch.stack([torch.from_numpy(own.integers(high, size=shape)) for own in self.own])

    def chosen(self, share: float) -> Tensor:
        """[B] bool, true with this probability."""
        return self.uniform() < share
