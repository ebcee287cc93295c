"""Captions say what is there, never how the camera or anything else moves: motion is the actions' matter (section 3.3).

A recorded clip's caption is composed of its place, its tags and the light and colour of its first second; an imported
one comes with its file and is checked.
"""

import re

import numpy as np

KINDS = ("corridor", "room", "hall", "courtyard", "yard", "cave", "area", "space")
SETTINGS = ("indoor", "outdoor")
LIGHTS = ((32, "very dark"), (45, "dark"), (70, "dim"), (150, "well-lit"), (256, "bright"))  # mean luminance below
HUES = (
    (15, "red"), (45, "brown"), (70, "yellow"), (165, "green"), (200, "turquoise"), (260, "blue"), (330, "purple"),
    (361, "red"),
)  # fmt: skip

FORBIDDEN = frozenset(
    """camera cameraman pan pans panning panned tilt tilts tilting dolly dollies zoom zooms zooming truck trucking
    pedestal roll rolls rolling orbit orbits orbiting tracking handheld drone footage shot viewpoint viewer pov move
    moves moving moved movement motion walk walks walking walked run runs running fly flies flying drive drives driving
    turn turns turning rotate rotates rotating rotation approach approaches approaching advance advances advancing
    glide glides gliding follow follows following travel travels travelling traveling enter enters entering leave
    leaves leaving spin spins spinning forward forwards backward backwards toward towards fast slow quickly slowly
    suddenly
    """.split()  # noqa: SIM905
)


def forbidden_words(caption: str) -> list[str]:
    """The camera and motion words of a caption, in its order."""
    return [word for word in re.findall(r"[a-z]+", caption.lower()) if word in FORBIDDEN]


def check(caption: str, source: str) -> str:
    """An imported caption as it is, or a ValueError where it speaks of the camera or of motion, or says nothing."""
    caption = " ".join(caption.split())
    if not caption:
        raise ValueError(f"the caption of {source} is empty; describe what is there")
    if words := forbidden_words(caption):
        raise ValueError(
            f"the caption of {source} says {', '.join(map(repr, words))}; only static attributes are allowed"
        )
    return caption


def light_of(frames: np.ndarray) -> str:
    """A word for the mean luminance of frames uint8 [T, H, W, 3]."""
    luminance = float((frames.mean((0, 1, 2)) * (0.299, 0.587, 0.114)).sum())
    return next(word for limit, word in LIGHTS if luminance < limit)


def colour_of(frames: np.ndarray) -> str:
    """A word for the mean colour of frames uint8 [T, H, W, 3]."""
    red, green, blue = frames.mean((0, 1, 2))
    high, low = max(red, green, blue), min(red, green, blue)
    if high - low < 0.12 * high or high < 1:
        return "grey"
    if high == red:
        hue = 60 * ((green - blue) / (high - low)) % 360
    elif high == green:
        hue = 60 * (2 + (blue - red) / (high - low))
    else:
        hue = 60 * (4 + (red - green) / (high - low))
    return next(word for limit, word in HUES if hue < limit)


def describe(frames: np.ndarray, *, place: str, tags: tuple[str, ...]) -> str:
    """Such as "a dark brown indoor corridor of MAP01 with brick walls"; frames uint8 [T, H, W, 3], the first second."""
    setting = next((tag for tag in tags if tag in SETTINGS), "")
    kind = next((tag for tag in tags if tag in KINDS), "place")
    others = [tag for tag in tags if tag not in (setting, kind)]
    details = [tag for tag in others if " " in tag]  # "brick walls"
    adjectives = [tag for tag in others if " " not in tag] or [light_of(frames), colour_of(frames)]
    noun = " ".join(filter(None, [*adjectives, setting, kind]))
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun} of {place.replace('/', ' ')}" + (f" with {' and '.join(details)}" if details else "")
