"""What a checkpoint is made of: fragments of named tensors, whoever holds them.

A tensor is known by its name and its whole shape, a fragment by where it begins in the flattened tensor. So how the
fragments were cut, by data-parallel shards (ZeRO), by several processes or not at all, is no part of the format, and
what was saved under one cut is read under another.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from relic.model.tensors import NAMES


class Fragment(NamedTuple):
    """A run of one tensor's elements in this process's memory."""

    name: str  # "student/weights/blocks.0.ffn.0.weight", "student/exp_avg/…"
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # of `data` in the flattened whole tensor
    data: Tensor  # [n], contiguous; live: saved from, and restored into in place
    everywhere: bool  # every process holds the same

    @property
    def stop(self) -> int:
        return self.start + self.data.numel()


class Part(Protocol):
    """Something that lives through a training and is saved with it."""

    def fragments(self) -> list[Fragment]:
        """What this process holds, with the same names, shapes and cuts in every call."""

    def restored(self) -> None:
        """Told after the fragments of the last call have been filled."""


class Whole:
    """Tensors that every process holds whole, as a part: `name`/KEY of each."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]):
        self.name, self.tensors = name, tensors
        self.copies: list[tuple[Tensor, Tensor]] = []

    def fragments(self) -> list[Fragment]:
        found, self.copies = [], []
        for key, value in self.tensors.items():
            tensor = value.detach()
            flat = tensor.contiguous().view(-1)
            if not tensor.is_contiguous():  # such as channels_last, whose memory is in another order than its elements
                self.copies.append((tensor, flat))
            found.append(Fragment(f"{self.name}/{key}", tuple(tensor.shape), 0, flat, True))
        return found

    def restored(self) -> None:
        for tensor, flat in self.copies:
            tensor.copy_(flat.view(tensor.shape))
