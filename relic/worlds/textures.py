"""Periodic patterns of noise and masonry, made once and blurred in advance, so that nothing flickers far away."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEXELS = 128  # a period
LEVELS = 13  # of blur, two an octave, the last one nearly flat


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Periodic noise in 0..1 with spectrum 1 / frequency^slope, longer along v by stretch."""
    ky, kx = np.meshgrid(np.fft.fftfreq(TEXELS) * TEXELS * stretch, np.fft.rfftfreq(TEXELS) * TEXELS, indexing="ij")
    spectrum = np.fft.rfft2(rng.normal(size=(TEXELS, TEXELS))) / np.maximum(np.hypot(kx, ky), 1) ** slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(TEXELS, TEXELS))
    return np.clip(0.5 + noise / (5 * noise.std()), 0, 1)


@lru_cache(1)
def patterns() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name: how much there is of the second colour, and the value that multiplies both; [v, u] in 0..1."""
    rng = np.random.default_rng(0)
    v, u = np.meshgrid(*[(np.arange(TEXELS) + 0.5) / TEXELS] * 2, indexing="ij")
    worn, cloudy, grain = 0.75 + 0.25 * _noise(rng, 0.8), _noise(rng, 1.6), _noise(rng, 1.2, stretch=8)
    radius, ring = np.hypot(u - 0.5, v - 0.5), np.maximum(abs(u - 0.5), abs(v - 0.5))

    def courses(rows: int, columns: int, shift: float, gap: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the gaps are (of that width, in periods), and a brightness a brick, plank or tile."""
        row = np.floor(v * rows).astype(int)
        along = (u * columns + row * shift) % columns
        edge_u, edge_v = np.minimum(along % 1, 1 - along % 1), np.minimum(v * rows % 1, 1 - v * rows % 1)
        each = rng.uniform(0.72, 1, (rows, columns))[row, along.astype(int)]
        return np.minimum(edge_u / columns, edge_v / rows) < gap / 2, each * worn

    gap, plank = courses(3, 8, 0, 0.012)
    return {
        "brick": courses(8, 4, 0.5, 0.02),
        "stone": courses(4, 3, 0.4, 0.024),
        "tiles": courses(4, 4, 0, 0.02),
        "planks": (0.8 * grain, plank * (1 - 0.5 * gap)),
        "checker": ((np.floor(4 * u) + np.floor(4 * v)) % 2, worn),
        "diamonds": ((np.floor(4 * (u + v)) + np.floor(4 * (u - v))) % 2, worn),
        "stripes": (u * 8 % 1 < 0.4, worn),
        "plaster": (0.5 * cloudy, worn),
        "marble": (1 - np.clip(abs(cloudy - 0.5) * 8, 0, 1), worn),
        "moss": (np.clip(4 * cloudy - 1.5, 0, 1), worn),
        "target": (radius * 8 % 2 < 1, np.where(ring > 0.45, 0.15, 1)),
        "rug": ((ring * 10 % 2 < 1) ^ (abs(u - 0.5) + abs(v - 0.5) < 0.2), worn),
    }


@lru_cache(1)
def _book() -> Tensor:
    """[1, 2, rows, u]: every pattern at every blur, full size, below one another: one bilinear look-up does it all."""
    k = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(TEXELS), torch.fft.rfftfreq(TEXELS), indexing="ij"))
    blur = torch.stack([torch.exp(-2 * (math.pi * k * 0.4 * 2 ** (level / 2)) ** 2) for level in range(LEVELS)])
    sharp = torch.from_numpy(np.array(list(patterns().values()), np.float32))  # [pattern, 2, v, u]
    book = torch.fft.irfft2(torch.fft.rfft2(sharp)[:, :, None] * blur, s=(TEXELS, TEXELS))
    book = F.pad(book.transpose(0, 1).flatten(1, 2), (0, 1, 0, 1), mode="circular")  # the last texel is the first again
    return book.flatten(1, 2)[None]


def look_up(pattern: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """Mix and value [N] of pattern numbers [N] at u, v [N], blurred to a footprint [N]; lengths are in periods."""
    level = (2 * torch.log2(footprint * TEXELS)).round().clamp(0, LEVELS - 1)
    row = (pattern * LEVELS + level) * (TEXELS + 1) + (v - v.floor()) * TEXELS
    grid = torch.stack([2 * (u - u.floor()) - 1, 2 * row / (_book().shape[2] - 1) - 1], -1)
    mix, value = F.grid_sample(_book(), grid[None, None], align_corners=True)[0, :, 0]
    return mix, value
