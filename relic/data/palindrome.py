"""Palindromes (section 3.4 of RELIC): a walk to a pivot and back the way it came, so that a model sees places again.

The pivot t* is drawn from U(T/2, T). As printed the paper shows f_{t*} twice; here the way back begins with the frame
before it. Frames and poses go back, in pixels and before the causal codec; actions are computed anew from the poses,
for swapping each label for its opposite is wrong where a motion mixes turning and moving.
"""

import hashlib

import numpy as np


def indices(num_frames: int, pivot: int) -> np.ndarray:
    """Frame numbers int64 [T] of the palindrome: 0 .. pivot, then back to 2 pivot - (T - 1); T stays."""
    if not (num_frames - 1) / 2 <= pivot < num_frames - 1:
        raise ValueError(f"pivot is {pivot} of {num_frames} frames; it must be from half to the last but one")
    return pivot - np.abs(np.arange(num_frames) - pivot)


def pivot_of(num_frames: int, *, seed: int, clip: str, share: float) -> int | None:
    """The pivot of a clip's palindrome, or None where the clip gets none; a pure function of seed and clip id."""
    words = np.frombuffer(hashlib.sha256(f"{seed} {clip}".encode()).digest(), np.uint64)
    chance, place = (words[:2] >> np.uint64(11)) / 2.0**53  # in [0, 1)
    if chance >= share or num_frames < 3:
        return None
    first = num_frames // 2
    return int(first + place * (num_frames - 1 - first))
