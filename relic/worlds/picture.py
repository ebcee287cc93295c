"""From Doom's screen to our frames: area-averaged pixels, depth in metres, and words for what is seen."""

import colorsys
import math
from functools import lru_cache

import numpy as np

from relic.worlds.game import SCREEN

UNITS_PER_M = 32.0
# Map units a level of ViZDoom's depth, and at level 0. Fitted to the maps' geometry: walls say 9, floors 17, rms 2.4.
DEPTH_LEVEL, DEPTH_ZERO = 7.14, 12.0
SKY = 127  # the level of the sky, and of floors farther than 29 m; walls go on to 255
LIGHTS = ((42, "dark"), (65, "dim"), (90, "lit"), (256, "bright"))  # mean luminance below
COLOURS = ((15, "red"), (45, "brown"), (70, "yellow"), (165, "green"), (200, "turquoise"), (260, "blue"), (361, "red"))


@lru_cache
def _areas(number: int, size: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """The screen's lines, of `size`, that each of the `number` middle pixels covers, and their shares; [K, number]."""
    low = (size - number * pixel) / 2 + pixel * np.arange(number)
    lines = np.floor(low).astype(int) + np.arange(math.ceil(pixel) + 1)[:, None]
    shares = np.clip(np.minimum(low + pixel, lines + 1) - np.maximum(low, lines), 0, None) / pixel
    return lines.clip(0, size - 1), shares.astype(np.float32)


def shrink(screen: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean over each pixel's area, uint8 [height, width, 3], of the middle rows of a screen uint8 [240, 320, 3]."""
    # A sum over a few gathered copies: a matrix product would wake BLAS's threads a thousand times a second.
    pixel = SCREEN[1] / width
    rows, row_shares = _areas(height, SCREEN[0], pixel)
    columns, column_shares = _areas(width, SCREEN[1], pixel)
    tall = sum(share[:, None, None] * screen[line] for line, share in zip(rows, row_shares, strict=True))
    small = sum(share[:, None] * tall[:, line] for line, share in zip(columns, column_shares, strict=True))
    return (small + 0.5).astype(np.uint8)


def metres(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth along z float32 [height, width] at the pixels' centres, in steps of 0.22 m; inf in the sky."""
    pixel = SCREEN[1] / width
    rows = (SCREEN[0] / 2 + pixel * (np.arange(height) + 0.5 - height / 2)).astype(int)
    columns = (pixel * (np.arange(width) + 0.5)).astype(int)
    picked = levels[np.ix_(rows, columns)]
    return np.where(picked == SKY, np.inf, (picked * DEPTH_LEVEL + DEPTH_ZERO) / UNITS_PER_M).astype(np.float32)


def words(frames: np.ndarray, depth: np.ndarray, *, outdoor: bool) -> tuple[str, ...]:
    """Setting, kind of place, light and colour of frames uint8 [T, H, W, 3] with depth [T, H, W]."""
    red, green, blue = frames.mean((0, 1, 2))
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
    light = next(word for limit, word in LIGHTS if luminance < limit)
    colour = "grey" if saturation < 0.15 else next(word for limit, word in COLOURS if 360 * hue < limit)
    reach = float(np.median(depth))
    kind = "courtyard" if outdoor else "corridor" if reach < 4 else "room" if reach < 8 else "hall"
    return ("outdoor" if outdoor else "indoor", kind, light, colour)
