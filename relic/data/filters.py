"""The four filters of RELIC's section 3.2: camera motion, viewpoint stability, exposure, render quality.

Motion is measured in degrees a second and in the clip's mean non-zero step, never in scene units. A measure is named
like the threshold in `config.Filters` that it is held against: max_turn drops above its limit, min_clearance below.
"""

from dataclasses import asdict, dataclass

import numpy as np

from relic.data.config import Filters

JITTER_HZ = 3.0  # a hand or a walker steers below, noise of the tracking lies above
STILL = 1e-9  # scene units: the same as in geometry.actions.mean_step
MAX_SIDE = 128  # pixels; larger pictures are thinned out before luminance and change are measured


@dataclass(frozen=True)
class Measure:
    value: float
    frames: tuple[int, int]  # first and last frame where it is worst


@dataclass(frozen=True)
class Motion:
    """Velocities of a track: row t leads from frame t to t + 1."""

    velocity: np.ndarray  # [T-1, 3] along the camera's axes, clip-mean steps a frame
    turn: np.ndarray  # [T-1, 3] angular velocity about the camera's axes, degrees a second
    mean_step: float  # in scene units, 0 where nothing moves


def motion_of(poses: np.ndarray, fps: float) -> Motion:
    """Motion of camera-to-world poses [T, 4, 4]."""
    displacement = np.diff(poses[:, :3, 3], axis=0)
    length = np.linalg.norm(displacement, axis=-1)
    moving = length > STILL
    mean_step = float(length[moving].mean()) if moving.any() else 0.0
    relative = poses[:-1, :3, :3].transpose(0, 2, 1) @ poses[1:, :3, :3]
    axis = np.stack([relative[:, 2, 1] - relative[:, 1, 2], relative[:, 0, 2] - relative[:, 2, 0],
                     relative[:, 1, 0] - relative[:, 0, 1]], -1) / 2  # fmt: skip
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)  # 0 at a half turn too, which has no place in a clip
    cosine = (np.trace(relative, axis1=1, axis2=2)[:, None] - 1) / 2
    angle = np.degrees(np.arctan2(sine, cosine))
    direction = np.divide(axis, sine, out=np.tile(np.array([0.0, 1.0, 0.0]), (len(axis), 1)), where=sine > 1e-12)
    velocity = np.einsum("tji,tj->ti", poses[:-1, :3, :3], displacement) / (mean_step or 1.0)
    return Motion(velocity, angle * direction * fps, mean_step)


def worst(values: np.ndarray, offset: int = 0, span: int = 1) -> Measure:
    """The largest of values [N] and the frames it concerns; 0 over an empty one."""
    if not len(values):
        return Measure(0.0, (0, 0))
    index = int(values.argmax())
    return Measure(float(values[index]), (index + offset, index + offset + span))


def camera_motion(motion: Motion, fps: float, pixel_size: float | None) -> dict[str, Measure]:
    """Speed, abrupt rotation and velocity profile. pixel_size: a pixel's width in the scene where it is near."""
    whole = (0, len(motion.velocity))
    speed, turn = np.linalg.norm(motion.velocity, axis=-1), np.linalg.norm(motion.turn, axis=-1)
    found = {
        "max_step": worst(speed),
        "max_velocity_change": worst(np.linalg.norm(np.diff(motion.velocity, axis=0), axis=-1), span=2),
        "max_turn": worst(turn),
        "max_turn_acceleration": worst(np.linalg.norm(np.diff(motion.turn, axis=0), axis=-1) * fps, span=2),
        "max_still_share": Measure(float(((speed < 0.01) & (turn < 0.01 * fps)).mean()), whole),
    }
    if pixel_size is not None and motion.mean_step:
        found["min_step_pixels"] = Measure(motion.mean_step / pixel_size, whole)
    return found


def jitter(velocity: np.ndarray, fps: float, floor: float) -> float:
    """Share of a velocity's [N, 3] power above 3 Hz; a motion under `floor` a frame counts as none.

    The mean stays in: a steady walk with a small tremble is steady."""
    power = (np.abs(np.fft.rfft(velocity, axis=0)) ** 2).sum(-1)
    power[1:] *= 2  # the spectrum's other half
    fast = np.fft.rfftfreq(len(velocity), 1 / fps) > JITTER_HZ
    return float(power[fast].sum() / (power.sum() + (floor * len(velocity)) ** 2))


def reversals(velocity: np.ndarray, fps: float, floor: float) -> float:
    """How often a second a velocity's [N, 3] main axis changes its sign, counting only motion above `floor`."""
    main = velocity[:, (velocity**2).sum(0).argmax()]
    signs = np.sign(main[np.abs(main) > floor])
    return float((signs[1:] != signs[:-1]).sum() * fps / max(len(main), 1))


def viewpoint_stability(motion: Motion, fps: float, nearest: np.ndarray | None) -> dict[str, Measure]:
    """Micro-jitter, oscillation and, where the nearest depth [T] is known, near-collision."""
    whole = (0, len(motion.velocity))
    found = {
        "max_turn_jitter": Measure(jitter(motion.turn, fps, 0.5), whole),
        "max_step_jitter": Measure(jitter(motion.velocity, fps, 0.02), whole),
        "max_reversals": Measure(max(reversals(motion.turn, fps, 2.0), reversals(motion.velocity, fps, 0.1)), whole),
    }
    if nearest is not None and motion.mean_step:
        index = int(nearest.argmin())
        found["min_clearance"] = Measure(float(nearest[index] / motion.mean_step), (index, index))
    return found


def thin(pictures: np.ndarray) -> np.ndarray:
    """Every n-th row and column of pictures [T, H, W, ...], so that the cost does not grow with the resolution."""
    step = -(-max(pictures.shape[1:3]) // MAX_SIDE)
    return pictures[:, ::step, ::step]


def luminance_of(frames: np.ndarray) -> np.ndarray:
    """Luminance [T, H, W] float32 in 0..255 of frames uint8 [T, H, W, 3] (BT.601)."""
    return thin(frames).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def exposure(luminance: np.ndarray, fps: float) -> dict[str, Measure]:
    """Under- and over-exposure, clipping and flicker of luminance [T, H, W]."""
    whole = (0, len(luminance) - 1)
    mean = luminance.mean((1, 2))
    clipped = ((luminance < 4) | (luminance > 251)).mean((1, 2))
    second = max(1, min(len(clipped), round(fps)))
    sums = np.cumsum(np.concatenate([[0.0], clipped]))
    return {
        "min_luminance": Measure(float(mean.mean()), whole),
        "max_luminance": Measure(float(mean.mean()), whole),
        "max_clipped_share": worst((sums[second:] - sums[:-second]) / second, span=second - 1),
        "max_flicker": Measure(float(np.sqrt((np.diff(mean, 2) ** 2).mean())) if len(mean) > 2 else 0.0, whole),
    }


def flat_share(frames: np.ndarray) -> np.ndarray:
    """Share [T] of exactly uniform 4x4 blocks: a renderer's texture has grain, a missing one has none."""
    num_frames, height, width, _ = frames.shape
    rows = frames[:, : height // 8 * 8].reshape(num_frames, -1, 8, width, 3)[:, :, :4]  # every other row of blocks
    colours = rows.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    blocks = colours[..., : width // 4 * 4].reshape(num_frames, -1, 4, width // 4, 4)
    return (blocks == blocks[:, :, :1, :, :1]).all((2, 4)).mean((1, 2))


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Means over 3x3 pixels of pictures [T, H, W], so that a warp may take the nearest pixel."""
    wide = np.pad(pictures, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def residual(
    pictures: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, depth: np.ndarray | None, gap: int
) -> np.ndarray:
    """Mean difference [T - gap] between each picture and the one `gap` frames before, seen from its pose.

    Without depth [T, H, W] everything is infinitely far: turns are undone, parallax stays."""
    count, (height, width) = len(pictures) - gap, pictures.shape[1:]
    fx, fy, cx, cy = intrinsics
    y, x = np.mgrid[1:height:2, 1:width:2]  # every other pixel is enough
    rays = np.stack([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, np.ones(x.shape)]).reshape(3, -1).astype(np.float32)
    relative = (np.linalg.inv(poses[:-gap]) @ poses[gap:]).astype(np.float32)
    nearness = np.zeros((count, 1), np.float32) if depth is None else 1 / depth[gap:, y, x].reshape(count, -1)
    points = relative[:, :3, :3] @ rays + relative[:, :3, 3:] * nearness[:, None]
    ahead = np.maximum(points[:, 2], 1e-3)
    column, row = points[:, 0] / ahead * fx + cx, points[:, 1] / ahead * fy + cy
    seen = (points[:, 2] > 1e-3) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = np.where(seen, row, 0).astype(int) * width + np.where(seen, column, 0).astype(int)
    before = np.take_along_axis(pictures[:-gap].reshape(count, -1), source, axis=1)
    difference = np.abs(pictures[gap:, y, x].reshape(count, -1) - before) * seen
    return difference.sum(1) / np.maximum(seen.sum(1), 1)


def pops(luminance: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    """How far [T-1] each frame's change exceeds its neighbours', after what the motion explains is taken out.

    A pop that stays (a texture, a level of detail) is one large difference between small ones. A flash that goes is a
    frame unlike both neighbours, which are like each other. The mean is taken out: that is flicker's matter."""
    pictures = blurred(luminance - luminance.mean((1, 2), keepdims=True))
    floor = 0.1 * float(pictures.std()) + 0.5  # levels: grain, and what a warp gets wrong
    change = residual(pictures, poses, intrinsics, depth, 1)
    around = np.pad(change, 1, mode="reflect")
    stays = change / (np.maximum(around[:-2], around[2:]) + floor)
    flash = np.minimum(change[:-1], change[1:]) / (residual(pictures, poses, intrinsics, depth, 2) + floor)
    return np.maximum(stays, np.append(flash, 0.0))


def missing_share(frames: np.ndarray) -> np.ndarray:
    """Share [T] of pixels in the magenta that engines draw for a missing texture."""
    red, green, blue = np.moveaxis(frames[:, ::2, ::2], -1, 0)
    return ((red > 180) & (blue > 180) & (green < 60)).mean((1, 2))


def measure(
    frames: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, fps: float, depth: np.ndarray | None = None
) -> dict[str, dict[str, Measure]]:
    """Every filter's measures of frames uint8 [T, H, W, 3] with poses [T, 4, 4]: {filter: {metric: Measure}}."""
    motion, luminance = motion_of(poses, fps), luminance_of(frames)
    nearest = pixel_size = None
    if depth is not None:
        coarse = depth[:, ::2, ::2].reshape(len(depth), -1)
        nearest, near = np.quantile(coarse, (0.02, 0.1), axis=-1, method="lower")  # [T] each; sky is infinite
        pixel_size = float(np.median(near) / intrinsics[0])
        depth = thin(depth)
    intrinsics = intrinsics * (luminance.shape[2] / frames.shape[2])
    return {
        "camera_motion": camera_motion(motion, fps, pixel_size),
        "viewpoint_stability": viewpoint_stability(motion, fps, nearest),
        "exposure": exposure(luminance, fps),
        "render_quality": {
            "max_flat_share": worst(flat_share(frames), span=0),
            "max_missing_share": worst(missing_share(frames), span=0),
            "max_pop": worst(pops(luminance, poses, intrinsics, depth)),
        },
    }


def reasons(measures: dict[str, dict[str, Measure]], limits: Filters) -> list[dict]:
    """Why a clip is dropped: filter, metric, value, threshold and frames of every measure beyond its limit."""
    thresholds, found = asdict(limits), []
    for name, metrics in measures.items():
        for metric, measured in metrics.items():
            value, threshold = measured.value, thresholds[name][metric]
            if value > threshold if metric.startswith("max_") else value < threshold:
                about = {"filter": name, "metric": metric, "value": value, "threshold": threshold}
                found.append({**about, "frames": list(measured.frames)})
    return found
