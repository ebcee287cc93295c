"""Storage of keys and values, allocated once, in FP8, bfloat16 or float32.

E4M3 has 3 bits of mantissa and ends at 448. Each token and head has a scale that brings its largest entry there, so
that the rounding of an entry is at most 2^-4 of itself, or, below 2^-13 of the row's largest, 2^-17 of that. The scale
is a power of two: dividing by it and multiplying with it round nothing, what is read and written again is the same, and
bfloat16 holds it exactly. One for each token and not for each chunk: it costs 2 bytes for `head_width`, a quiet token
beside a loud one keeps its bits, and the memory is the same whatever the size of the chunks.
"""

import copy
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

DTYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp32": torch.float32}
FP8_LARGEST = 448.0


def fp8_scale(x: Tensor) -> Tensor:
    """Scale [..., 1] of each row of x [..., N]: x over it has its largest entry at the end of E4M3."""
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_LARGEST


def power_of_two(scale: Tensor) -> Tensor:
    """The least power of two that is not below each scale; 1 for 0, and what is not finite stays so."""
    mantissa, exponent = torch.frexp(scale)
    return torch.exp2((exponent - (mantissa == 0.5).int()).to(scale.dtype)).maximum(scale)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 numbers of x [..., N], and each row's scale [..., 1]."""
    scale = power_of_two(fp8_scale(x))
    return (x / scale).to(torch.float8_e4m3fn), scale.bfloat16()


def multiplied(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 numbers that `rounded` has made so."""
    return codes.float() * scale.float()


class Store:
    """Numbers [..., n, K, head_width] (tokens, heads), read as float32. While memories share it (`owners`, those that
    still live; empty while one alone has it), it must not change."""

    def __init__(self, dtype: str, shape: tuple[int, ...], device: torch.device | str):
        self.data = torch.zeros(shape, dtype=DTYPES[dtype], device=device)
        self.scales = torch.ones(*shape[:-1], 1, dtype=torch.bfloat16, device=device) if dtype == "fp8" else None
        self.owners: WeakSet[Any] = WeakSet()

    def write(self, at: Any, x: Tensor) -> None:
        """Keeps x at an index of the data."""
        if self.scales is not None:
            self.data[at], self.scales[at] = rounded(x)
        else:
            self.data[at] = x.to(self.data.dtype)

    def read(self, at: Any) -> Tensor:
        """What is kept at an index of the data, float32."""
        return self.data[at].float() if self.scales is None else multiplied(self.data[at], self.scales[at])

    def copy(self) -> "Store":
        """The same numbers in storage of their own."""
        made = copy.copy(self)
        made.data, made.owners = self.data.clone(), WeakSet()
        made.scales = self.scales.clone() if self.scales is not None else None
        return made

    def own(self, owner: Any) -> "Store":
        """The store to write to: itself, or a copy for the owner that asks and leaves."""
        self.owners.discard(owner)
        return self.copy() if self.owners else self

    @property
    def num_bytes(self) -> int:
        """Bytes, scales included."""
        return sum(t.nbytes for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, as it lies there."""
        return {"data": self.data} | ({} if self.scales is None else {"scales": self.scales})
