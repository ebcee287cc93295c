"""Scripts of motion: how fast a camera wants to move along each of its axes, frame by frame. Knows no world.

A script is made of segments. In each a few axes are active, at a constant speed of either sign, so that every motion
and its opposite are equally frequent; averaging over neighbouring frames eases one segment into the next.
"""

import numpy as np

AXES = ("forward", "right", "up", "yaw", "pitch", "roll")  # m/s, then degrees/s; right, up and clockwise are positive
SEGMENT = (8, 25)  # frames
EASE = 7  # frames one change of speed takes
RETURN_SHARE = 0.25  # of the scripts
NUM_ACTIVE = (0.04, 0.5, 0.36, 0.1)  # probability of 0, 1, 2, 3 axes at once


def script(
    rng: np.random.Generator,
    num_frames: int,
    axes: tuple[str, ...] = AXES,
    *,
    walk_m_s: float = 1.5,
    turn_deg_s: float = 28.0,
) -> np.ndarray:
    """Desired velocities [T, 6] in the camera's frame, in m/s and degrees/s; 0 on the axes that are not in `axes`.

    Row t leads from frame t to t + 1 (the last row is not used). One script in four goes somewhere and comes back:
    its second leg is the first one, reversed in time, which retraces the track exactly where nothing is in the way.
    """
    unknown = set(axes) - set(AXES)
    if unknown or not axes:
        raise ValueError(f"axes are {axes}; they must be some of {AXES}")
    scale = np.array([walk_m_s] * 3 + [turn_deg_s] * 3)
    steps = num_frames - 1
    if rng.random() < RETURN_SHARE and steps >= 4:
        leg = int(rng.integers(min(24, steps // 2), steps // 2 + 1))
        away = _turn_away(rng, leg, turn_deg_s) if "yaw" in axes and rng.random() < 0.4 else _segments(rng, leg, axes)
        motion = np.concatenate([away, -away[::-1], _segments(rng, steps - 2 * leg, axes)])
    else:
        motion = _segments(rng, steps, axes)
    return np.concatenate([motion, np.zeros((num_frames - steps, 6))]) * scale


def return_leg(motion: np.ndarray) -> int:
    """Steps of the leg that a script [T, N] retraces from its start, 0 if it does not come back."""
    steps = len(motion) - 1
    fits = (n for n in range(steps // 2, 3, -1) if np.array_equal(motion[:n], -motion[2 * n - 1 : n - 1 : -1]))
    return next((n for n in fits if motion[:n].any()), 0)


def _segments(rng: np.random.Generator, num_steps: int, axes: tuple[str, ...]) -> np.ndarray:
    """Eased segments [num_steps, 6] in units of the mean speeds, starting and ending at rest."""
    motion = np.zeros((num_steps, 6))
    columns = [AXES.index(axis) for axis in axes]
    start = 0
    while start < num_steps:
        length = int(rng.integers(*SEGMENT))
        number = min(int(rng.choice(len(NUM_ACTIVE), p=NUM_ACTIVE)), len(columns))
        active = rng.choice(columns, number, replace=False)
        motion[start : start + length, active] = rng.choice([-1, 1], number) * rng.uniform(0.6, 1.4, number)
        start += length
    return _ease(motion)


def _turn_away(rng: np.random.Generator, num_steps: int, turn_deg_s: float) -> np.ndarray:
    """A turn of 60 to 120 degrees at 16 frames a second, or as far as twice the mean speed reaches."""
    motion = np.zeros((num_steps, 6))
    speed = min(rng.uniform(60, 120) * 16 / turn_deg_s / max(num_steps - EASE, 1), 2.0)
    motion[:, AXES.index("yaw")] = rng.choice([-1, 1]) * speed
    return _ease(motion)


def _ease(motion: np.ndarray) -> np.ndarray:
    """Speeds [N, 6] that start and end at rest and change over EASE frames, with a continuous acceleration."""
    half = EASE // 2
    kernel = np.convolve(np.ones(half + 1), np.ones(half + 1)) / (half + 1) ** 2
    moving = motion.copy()
    moving[:half], moving[max(len(motion) - half, 0) :] = 0, 0
    padded = np.pad(moving, ((half, half), (0, 0)))
    return sum((weight * padded[k : k + len(motion)] for k, weight in enumerate(kernel)), np.zeros_like(motion))
