"""How like its true place a generated frame is, beyond PSNR; and what so many walks can say of it."""

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from relic.evaluate.revisit import centred, of_length_1

WINDOW, SIGMA = 11, 1.5  # pixels a side, and standard deviation, of the Gaussian window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity [...] of pictures uint8 [..., H, W, 3], the mean over places and channels: Wang et al.,
    "Image quality assessment: from error visibility to structural similarity" (2004), eq. 13, with its window."""
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"pictures are {a.shape[-3]}x{a.shape[-2]}; SSIM's window needs at least {WINDOW} a side")
    line = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2)).double()
    line = line / line.sum()

    def mean(x: Tensor) -> Tensor:
        """Weighted means over the windows that lie in the picture, of [N, 1, H, W]."""
        return functional.conv2d(functional.conv2d(x, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))

    x, y = (rearrange(torch.from_numpy(z).double(), "... h w c -> (... c) 1 h w") for z in (a, b))
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    values = (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    return values.mean((1, 2, 3)).numpy().reshape(*a.shape[:-3], 3).mean(-1)


def fingerprints(frames: np.ndarray) -> np.ndarray:
    """What a place is recognised by [..., cells]: the mean grey of a frame's cells, of mean 0 and length 1; their
    products are the correlations of `revisit.similarities`."""
    return of_length_1(centred(frames.reshape(-1, *frames.shape[-3:]))).reshape(*frames.shape[:-3], -1)


def recognised(made: np.ndarray, known: np.ndarray, true: np.ndarray, within: int) -> np.ndarray:
    """Whether each frame [n, R] of n walks is taken for its own place: of all frames that all walks know, the likest is
    one of the same walk, at most `within` frames from the true one.

    Fingerprints made [n, R, cells] and known [n, T, cells]; true [R], the place of each frame among the T."""
    walks, length = known.shape[:2]
    likest = (made @ known.reshape(walks * length, -1).T).argmax(-1)
    own = likest // length == np.arange(walks)[:, None]
    return own & (abs(likest % length - true) <= within)


def interval(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of the walks' values [n] and its 95 % interval, by bootstrap over the walks."""
    return ratio(values, np.ones_like(values), resamples=resamples, seed=seed)


def ratio(gained: np.ndarray, whole: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of the walks' `gained` [n] over that of their `whole` [n], by bootstrap over the walks."""
    rows = np.random.default_rng(seed).integers(len(gained), size=(resamples, len(gained)))
    drawn = gained[rows].mean(1) / whole[rows].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(gained.mean() / whole.mean()), float(low), float(high))
