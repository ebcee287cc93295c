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


def shared(fragments: Sequence[Fragment], rank: int, world: int) -> list[Fragment]:
    """What one process writes: its own fragments, and of those that are everywhere an equal part of the bytes."""
    common = [fragment for fragment in fragments if fragment.everywhere]
    total, at = sum(fragment.data.nbytes for fragment in common), 0
    mine = [fragment for fragment in fragments if not fragment.everywhere and fragment.data.numel()]
    for fragment in common:
        size, count = fragment.data.element_size(), fragment.data.numel()
        first, last = (
            min(max(math.ceil((total * one // world - at) / size), 0), count) for one in (rank, rank + 1)
        )  # fmt: skip
        if first < last:
            mine.append(fragment._replace(start=fragment.start + first, data=fragment.data[first:last]))
        at += fragment.data.nbytes
    return mine


class Image:
    """A safetensors file of fragments, header included, in host memory: made once and filled again at every save."""

    def __init__(self, fragments: Sequence[Fragment], *, pinned: bool):
        self.layout = layout(fragments)
        header: dict[str, Any] = {}
        at = 0
        for fragment in aligned(fragments):
            whole = fragment.data.numel() == math.prod(fragment.shape)
            begin, at = at, at + fragment.data.nbytes
            header[fragment.name if whole else f"{fragment.name}@{fragment.start}"] = {
                "dtype": NAMES[fragment.data.dtype],
                "shape": list(fragment.shape) if whole else [fragment.data.numel()],
                "data_offsets": [begin, at],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        self.first = 8 + len(text)  # of the data, in the file
        self.memory = torch.empty(self.first + at, dtype=torch.uint8, pin_memory=pinned)
        self.bytes = self.memory.numpy().data
        self.bytes[: self.first] = struct.pack("<Q", len(text)) + text

    def fill(self, fragments: Sequence[Fragment]) -> None:
        """Copies what the fragments hold now, from wherever it is."""
        assert layout(fragments) == self.layout, "a part is cut otherwise than at the last save"
        at = self.first
        for fragment in aligned(fragments):
            begin, at = at, at + fragment.data.nbytes
            self.memory[begin:at].view(fragment.data.dtype).copy_(fragment.data, non_blocking=True)
        if self.memory.is_pinned():
            torch.cuda.synchronize()

    def index(self) -> dict[str, dict[str, Any]]:
        """Of each tensor its dtype, its shape and its pieces: where they begin in it, their length, their place in the
        file in bytes."""
        found: dict[str, dict[str, Any]] = {}
        at = self.first
        for name, shape, start, count, dtype in self.layout:
            entry = found.setdefault(name, {"dtype": NAMES[dtype], "shape": list(shape), "pieces": []})
            entry["pieces"].append([start, count, at])
            at += count * dtype.itemsize
        return found


def aligned(fragments: Sequence[Fragment]) -> list[Fragment]:
    """In the order in which they lie in a file: each begins at a multiple of its elements' size."""
    return sorted(fragments, key=lambda fragment: (-fragment.data.element_size(), fragment.name, fragment.start))


def layout(fragments: Sequence[Fragment]) -> list[tuple[str, tuple[int, ...], int, int, torch.dtype]]:
    return [(f.name, f.shape, f.start, f.data.numel(), f.data.dtype) for f in aligned(fragments)]


def gap(shape: Sequence[int], pieces: Sequence[list[int]]) -> int | None:
    """The first element of a tensor that no piece (start, length, …) holds; None where there is none."""
    at = 0
    for start, count, *_ in sorted(pieces):
        if start > at:
            return at
        at = max(at, start + count)
    return at if at < math.prod(shape) else None
