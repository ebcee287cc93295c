"""What a world gives: frames with the camera's pose for each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Recording:
    """T frames of one walk. A pose is camera-to-world, OpenCV axes (x right, y down, z forward), in metres."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    poses: np.ndarray  # float64 [T, 4, 4]
    intrinsics: np.ndarray  # float64 [4] fx fy cx cy in pixels; pixel i's centre is at i + 0.5
    depth: np.ndarray | None  # float32 [T, H, W] metres along z, inf where there is no surface
    fps: float
    world: str  # doom, rooms, or the folder's name
    place: str  # such as freedoom2/MAP01
    region: str  # train, known (test region of a known map) or unseen (map held out)
    seed: int
    tags: tuple[str, ...]  # static attributes of the scene, for the caption
