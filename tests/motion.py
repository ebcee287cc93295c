"""How a picture moves: dense Lucas-Kanade over a pyramid, and the shift and expansion that fit it best. For tests.

Contracting pictures take new content in at the border and expanding ones lose it, which biases the fit to expansion;
backwards in time the same bias has the other sign of motion, so half the difference of both directions is free of it.
"""

import itertools
from typing import NamedTuple

import numpy as np

RADIUS = 5  # pixels around a pixel that share its flow
LEVELS, ITERATIONS = 3, 3
MARGIN = 3  # pixels at the border that do not count


class Motion(NamedTuple):
    """Summed over a video's frames: pixels to the right and down, and growth as a share of the size."""

    right: float
    down: float
    expansion: float


def motion(frames: np.ndarray) -> Motion:
    """The motion of a video uint8 [T, H, W, 3]."""
    grey = frames.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    halves = [(fit(a, b) - fit(b, a)) / 2 for a, b in itertools.pairwise(grey)]
    return Motion(*np.sum(halves, 0))


def fit(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(right, down, expansion) of the flow from picture a [H, W] to b, weighted by how well each pixel's is known."""
    u, v, known = flow(a, b)
    half_height, half_width = (np.array(a.shape) - 1) / 2
    y, x = np.mgrid[: len(a), : a.shape[1]] - np.array([half_height, half_width])[:, None, None]
    inside = [
        abs(p) < half - MARGIN
        for p, half in ((x, half_width), (y, half_height), (x + u, half_width), (y + v, half_height))
    ]
    weight = (np.sqrt(known) * np.logical_and.reduce(inside)).ravel()
    one, zero = np.ones_like(weight), np.zeros_like(weight)
    rows = np.stack([np.stack([one, zero, x.ravel()], 1), np.stack([zero, one, y.ravel()], 1)])
    moved = np.stack([u.ravel(), v.ravel()])
    return np.linalg.lstsq((rows * weight[:, None]).reshape(-1, 3), (moved * weight).ravel(), rcond=None)[0]


def flow(a: np.ndarray, b: np.ndarray, levels: int = LEVELS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flow (u right, v down) [H, W] from a to b, and the smaller eigenvalue, about, of each pixel's gradients."""
    u, v = np.zeros_like(a), np.zeros_like(a)
    if levels > 1:
        u, v = (2 * np.kron(f, np.ones((2, 2))) for f in flow(halved(a), halved(b), levels - 1)[:2])
    y, x = np.mgrid[: len(a), : a.shape[1]]
    down, right = np.gradient(a)
    xx, xy, yy = mean(right**2) + 1e-4, mean(right * down), mean(down**2) + 1e-4
    determinant = xx * yy - xy**2
    for _ in range(ITERATIONS):
        error = a - sampled(b, x + u, y + v)
        p, q = mean(right * error), mean(down * error)
        u, v = u + (yy * p - xy * q) / determinant, v + (xx * q - xy * p) / determinant
    return u, v, determinant / (xx + yy)


def mean(x: np.ndarray) -> np.ndarray:
    """Mean over a square of RADIUS around every pixel."""
    for axis in (0, 1):
        summed = np.cumsum(
            np.pad(x, [(RADIUS + 1, RADIUS) if i == axis else (0, 0) for i in (0, 1)], mode="edge"), axis
        )
        size, places = 2 * RADIUS + 1, np.arange(x.shape[axis])
        x = (summed.take(places + size, axis) - summed.take(places, axis)) / size
    return x


def halved(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3))


def sampled(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A picture [H, W] at fractional columns x and rows y, between four pixels; beyond the border its edge."""
    height, width = picture.shape
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    column, row = x.astype(int), y.astype(int)
    a, b = x - column, y - row
    above = picture[row, column] * (1 - a) + picture[row, column + 1] * a
    below = picture[row + 1, column] * (1 - a) + picture[row + 1, column + 1] * a
    return above * (1 - b) + below * b
