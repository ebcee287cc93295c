"""Rotary position embedding over (time, row, column), Wan's axes, with YaRN along time for longer videos.

Positions are floats: a pooled cell is rotated at its centre. The pairs are neighbours (0, 1), (2, 3), ..., as Wan's. Of
a head's D channels, 2 (D // 6) turn by row, as many by column, the rest by time.

YaRN (arXiv 2309.00071, "NTK by parts"): a temporal frequency that turns at least `RAMP[1]` times over the trained
length is kept, one that turns less than `RAMP[0]` times is slowed by the factor frames / trained_frames, between them
linear. A language model's ramp (1, 32) would slow nearly all of a video's few temporal frequencies. No attention
temperature: it would act on rows and columns too.
"""

import functools
import math

import torch
from torch import Tensor

BASE = 10000.0
CPU = torch.device("cpu")
RAMP = (0.25, 1.0)  # turns over the trained length


def axis_frequencies(width: int) -> Tensor:
    """Radians a unit [width / 2], from fast to slow."""
    return BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


@functools.lru_cache(maxsize=64)
def frequencies(head_width: int, trained_frames: int, frames: int, device: torch.device = CPU) -> Tensor:
    """Radians a unit for every pair of channels and axis: [head_width / 2, 3], one axis non-zero a row.

    Kept on the device, so that a pass copies nothing there."""
    space = 2 * (head_width // 6)
    time = axis_frequencies(head_width - 2 * space)
    turns = time * trained_frames / (2 * math.pi)
    kept = ((turns - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)
    factor = max(1.0, frames / trained_frames)
    time = time * (kept + (1 - kept) / factor)
    table = torch.zeros(head_width // 2, 3, dtype=torch.float64)
    table[: len(time), 0] = time
    table[len(time) : len(time) + space // 2, 1] = axis_frequencies(space)
    table[len(time) + space // 2 :, 2] = axis_frequencies(space)
    return table.to(device)


def angles(positions: Tensor, table: Tensor) -> Tensor:
    """Angles [..., N, head_width / 2] float32 of positions [..., N, 3]."""
    return (positions.double() @ table.mT).float()


def cos_sin(angle: Tensor) -> Tensor:
    """Cosines and sines [..., N, 1, head_width / 2, 2], what `turn` takes, of angles [..., N, head_width / 2]."""
    return torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(-3)


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Rotates the channel pairs of x [..., N, K, head_width] by the cosines and sines of their angles.

    As complex numbers in one pass over memory; a compiler fuses only real ones, so it is given those."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        turned = turned_pairs(pairs, by)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(by))
    return turned.flatten(-2).to(x.dtype)


def turned_pairs(pairs: Tensor, by: Tensor) -> Tensor:
    """The same in real numbers."""
    (even, odd), (cos, sin) = pairs.unbind(-1), by.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
