"""Scripts of actions, such as "w 2s, left 1s, w+left 0.5s": which keys are held, one after another, and for how long.

Keys are those of the page (serve/web/keys.js), or the actions' own names; `still` holds none. Loads no torch.
"""

import re
from typing import NamedTuple

from relic.mistakes import UserError, allowed

KEYS = {
    "w": "dolly_in", "s": "dolly_out", "a": "truck_left", "d": "truck_right", "r": "pedestal_up", "f": "pedestal_down",
    "up": "tilt_up", "down": "tilt_down", "left": "pan_left", "right": "pan_right", "e": "roll_cw", "q": "roll_ccw",
    "still": "static",
}  # fmt: skip
HELD = re.compile(r"(?P<keys>[^\s+]+(?:\s*\+\s*[^\s+]+)*)\s+(?P<length>\d+\.?\d*|\.\d+)\s*(?P<unit>s|f)")


class Held(NamedTuple):
    """Actions that are held together; none stands still."""

    actions: tuple[str, ...]
    num_frames: int


def parse(script: str, fps: float) -> list[Held]:
    """What is held, in order. A duration is in seconds (s), rounded to whole frames, or in frames (f)."""
    found = []
    for part in script.lower().split(","):
        match = HELD.fullmatch(part.strip())
        if match is None:
            raise UserError(
                f"the actions hold {part.strip()!r}; allowed are keys and how long, such as 'w 2s' or 'w+left 8f', "
                "between commas"
            )
        length, unit = float(match["length"]), match["unit"]
        num_frames = round(length * fps) if unit == "s" else round(length)
        if num_frames < 1 or (unit == "f" and num_frames != length):
            raise UserError(
                f"the actions hold {part.strip()!r}; allowed is a whole number of frames, or at least one frame's "
                f"time, {1 / fps:g} s"
            )
        actions = [action_of(key.strip()) for key in match["keys"].split("+")]
        found.append(Held(tuple(a for a in actions if a != "static"), num_frames))
    return found


def action_of(key: str) -> str:
    """The action of a key's name or of its own."""
    if key not in KEYS and key not in KEYS.values():
        raise UserError(f"there is no key {key!r}; {allowed(key, KEYS)}, or the actions' own names, such as dolly_in")
    return KEYS.get(key, key)
