"""What every importer has in common: a track is checked at the door, resampled by timestamp and cut into clips.

Poses are camera-to-world in OpenCV axes from here on. A fault is a ValueError of one sentence that names the file.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from relic.geometry import se3

OFF_ROTATION = 1e-2  # how far a pose's 3x3 may be from a rotation, in any entry: rounded files are off a little
OFF_CENTRE = 0.2  # of the frame's size: a principal point further from the middle belongs to another size
JUMP = 10.0  # median steps in one frame: a cut of the film, not a motion


@dataclass(frozen=True)
class Track:
    """One video's checked track. Frame n was taken at timestamps[n] from poses[n]."""

    name: str
    source: Path  # a video, or a folder of images
    poses: np.ndarray  # float64 [N, 4, 4]
    intrinsics: np.ndarray  # float64 [4] in pixels of the source
    timestamps: np.ndarray  # float64 [N] seconds
    valid: np.ndarray  # bool [N]
    about: dict


@dataclass(frozen=True)
class Window:
    """One clip to be of a track: which source frame is shown, and the pose, at each instant."""

    track: Track
    start: float  # seconds
    nearest: np.ndarray  # int [T]
    poses: np.ndarray  # float64 [T, 4, 4]

    @property
    def region(self) -> str:
        return self.track.about.get("region", "train")

    @property
    def caption(self) -> str:
        return self.track.about.get("caption", "")


def check_poses(poses: np.ndarray, valid: np.ndarray, path: Path) -> np.ndarray:
    """Poses [N, 4, 4] with their rotations projected onto SO(3); the identity where they are not valid."""
    if poses.ndim != 3 or poses.shape[1:] not in ((4, 4), (3, 4)):
        raise ValueError(f"c2w of {path} has the shape {poses.shape}; it must be [N, 4, 4]")
    whole = np.tile(np.eye(4), (len(poses), 1, 1))
    whole[valid, :3] = poses[valid, :3]
    if not np.isfinite(whole).all():
        frame = int(np.argwhere(~np.isfinite(whole).all((1, 2)))[0, 0])
        raise ValueError(f"pose {frame} of {path} is not finite; mark missing poses with valid = false")
    rotation = torch.from_numpy(whole[:, :3, :3])
    determinant = torch.linalg.det(rotation)
    if (determinant <= 0).any():
        frame = int(determinant.argmin())
        raise ValueError(
            f"pose {frame} of {path} has a determinant of {determinant[frame]:.3g}; a rotation has 1, a mirror -1"
        )
    nearest = se3.nearest_rotation(rotation)
    off = (nearest - rotation).abs().amax((1, 2))
    if off.max() > OFF_ROTATION:
        frame = int(off.argmax())
        raise ValueError(
            f"pose {frame} of {path} is {off[frame]:.3g} off a rotation; at most {OFF_ROTATION} is allowed"
        )
    whole[:, :3, :3] = nearest.numpy()
    return whole


def check_intrinsics(intrinsics: np.ndarray, height: int, width: int, path: Path) -> np.ndarray:
    """Intrinsics [4] in pixels that fit frames of height x width; [N, 4] must be one camera's, which does not zoom."""
    if intrinsics.shape[-1:] != (4,) or intrinsics.ndim > 2:
        raise ValueError(
            f"intrinsics of {path} have the shape {intrinsics.shape}; they must be [4] or [N, 4]: fx fy cx cy"
        )
    rows = intrinsics.reshape(-1, 4)
    middle = np.median(rows, axis=0)
    if not np.isfinite(rows).all() or (middle[:2] <= 0).any():
        raise ValueError(f"intrinsics of {path} are {middle.tolist()}; they must be finite, and fx and fy positive")
    if (np.abs(rows / middle - 1) > 0.01).any():
        raise ValueError(f"intrinsics of {path} change by more than 1 %; a zooming camera cannot be read")
    off = np.abs(middle[2:] / (width, height) - 0.5)
    if (off > OFF_CENTRE).any():
        raise ValueError(
            f"intrinsics of {path} have their principal point at {middle[2]:g}, {middle[3]:g} px but its frames are "
            f"{width}x{height}; it must lie within {OFF_CENTRE:.0%} of the middle"
        )
    return middle


def check_times(times: np.ndarray | None, num_frames: int, path: Path) -> np.ndarray:
    if times is None:
        raise ValueError(f"{path} has no timestamps; a folder of images needs one in seconds for each image")
    times = np.asarray(times, np.float64)
    if times.shape != (num_frames,):
        raise ValueError(f"{path} has {times.size} timestamps for {num_frames} frames; each frame needs one")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(f"timestamps of {path} do not increase; they must, in seconds")
    return times


def check_direction(frames: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, source: Path) -> None:
    """Refuse poses that are world-to-camera: with them the pictures go the wrong way whenever the camera turns.

    Two frames a quarter of a second apart are laid over one another as the rotation says, and as its inverse says."""
    gap, (height, width) = 4, frames.shape[1:3]
    grey = frames.mean(-1)
    ahead = (poses[:-gap, :3, :3].transpose(0, 2, 1) @ poses[gap:, :3, :3])[
        :, :, 2
    ]  # the later view's axis, seen before
    shifts = (ahead[:, :2] / np.maximum(ahead[:, 2:], 1e-3) * intrinsics[:2]).round().astype(int)
    errors = [
        (misfit(grey[t], grey[t + gap], x, y), misfit(grey[t], grey[t + gap], -x, -y))
        for t, (x, y) in enumerate(shifts)
        if max(abs(x), abs(y)) >= 2 and abs(x) < width / 4 and abs(y) < height / 4
    ]
    if len(errors) < 4:
        return
    said, inverse = np.sum(errors, 0)
    if said > 1.3 * inverse:
        raise ValueError(
            f"{source} turns against its poses; c2w must be camera-to-world, and these seem to be world-to-camera"
        )


def misfit(before: np.ndarray, after: np.ndarray, x: int, y: int) -> float:
    """Mean difference of two grey pictures [H, W] where pixel (i, j) of the later was (i + y, j + x) before."""
    height, width = before.shape
    first = before[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
    return float(np.abs(first - after[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]).mean())


def resample(track: Track, fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Instants [M], nearest frame [M], slerped poses [M, 4, 4] and validity [M] of a track at `fps`."""
    times = track.timestamps
    instants = times[0] + np.arange(int((times[-1] - times[0]) * fps + 1e-6) + 1) / fps
    after = np.searchsorted(times, instants - 1e-6).clip(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return instants, np.zeros(1, int), track.poses, track.valid
    before = after - 1
    share = ((instants - times[before]) / (times[after] - times[before])).clip(0, 1)
    nearest = np.where(share < 0.5, before, after)
    exact = np.minimum(share, 1 - share) < 1e-3
    interval = np.maximum(np.median(np.diff(times)), 1 / fps)
    close = times[after] - times[before] < 1.5 * interval
    valid = np.where(exact, track.valid[nearest], track.valid[before] & track.valid[after] & close)
    return instants, nearest, slerp(track.poses[before], track.poses[after], share), valid


def slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Poses [M, 4, 4] at share [M] of the way from poses a to poses b [M, 4, 4]."""
    first, last, weight = torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(share)[:, None]
    turn = se3.log(first[:, :3, :3].mT @ last[:, :3, :3])
    rotation = first[:, :3, :3] @ se3.exp(weight * turn)
    return se3.pose(rotation, torch.lerp(first[:, :3, 3], last[:, :3, 3], weight)).numpy()


def cut(track: Track, num_frames: int, fps: float) -> list[Window]:
    """The windows of a track: runs of valid instants without a jump of the camera, each cut from its start on."""
    instants, nearest, poses, valid = resample(track, fps)
    step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
    moving = step[step > 1e-9]
    jump = np.flatnonzero(step > JUMP * np.median(moving)) + 1 if len(moving) else np.zeros(0, int)
    edges = np.unique(np.concatenate([[0, len(instants)], jump, np.flatnonzero(np.diff(valid.astype(int))) + 1]))
    starts = [
        start
        for first, last in pairwise(edges)
        if valid[first]
        for start in range(first, last - num_frames + 1, num_frames)
    ]
    return [
        Window(track, float(instants[s]), nearest[s : s + num_frames], poses[s : s + num_frames]) for s in starts
    ]  # fmt: skip
