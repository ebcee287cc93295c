"""A walk drawn without a world: a textured panorama slides by as the camera turns. For tests of data."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from relic.geometry import se3
from relic.worlds.recording import Recording

FPS = 16.0
INTRINSICS = np.array([48.0, 48.0, 48.0, 32.0])
STEADY = np.full(60, 2.0)  # degrees a frame


@lru_cache(1)
def panorama() -> np.ndarray:
    """uint8 [96, 1200, 3], mid-grey with structure at every scale."""
    rng = np.random.default_rng(0)
    layers = [rng.random((96 // cell, 1200 // cell)) * 120 * cell / 32 for cell in (2, 4, 8, 16)]
    grown = [np.asarray(Image.fromarray(layer).resize((1200, 96), Image.Resampling.BICUBIC)) for layer in layers]
    grey = sum(grown) + 60
    return np.clip(np.stack([grey, grey * 0.9, grey * 0.7], -1), 5, 250).astype(np.uint8)


def track(turns: np.ndarray = STEADY, step: float = 0.1, origin: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Poses [T, 4, 4]: each frame turns right by turns [T-1] degrees and goes `step` forward."""
    yaw = torch.from_numpy(np.radians(np.concatenate([[0.0], np.cumsum(turns)])))
    forward = torch.stack([yaw.sin(), torch.zeros_like(yaw), yaw.cos()], -1)
    position = torch.tensor(origin, dtype=torch.float64) + step * (forward.cumsum(0) - forward[:1])
    return se3.pose(se3.axis_rotation(1, yaw), position).numpy()


def frames_of(poses: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, 64, 96, 3] of the panorama seen at each pose's yaw."""
    yaw = np.unwrap(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))
    left = np.round(yaw * INTRINSICS[0]).astype(int) % 1100
    return np.stack([panorama()[16:80, x : x + 96] for x in left])


def recording(index: int = 0, *, poses: np.ndarray | None = None, region: str = "train") -> Recording:
    """A good walk; the index changes where it begins."""
    poses = track(origin=(5.0 + index, 0, 0)) if poses is None else poses
    return Recording(
        frames=frames_of(poses), poses=poses, intrinsics=INTRINSICS, depth=None, fps=FPS, world="doom",
        place="a panorama", region=region, seed=index, tags=("indoor", "room"),
    )  # fmt: skip
