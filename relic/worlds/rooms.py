"""Walks in procedural houses with all six degrees of freedom, as clips of the regions train, known and unseen."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from relic.geometry import se3
from relic.worlds.config import Rooms
from relic.worlds.house import House, box_of, build, is_free
from relic.worlds.raycast import cast, render
from relic.worlds.recording import Recording
from relic.worlds.walker import script

REGIONS = ("train", "known", "unseen")
UNSEEN = 1_000_000  # house numbers from here on are held out, whatever cfg.num_worlds is
NUM_ATTEMPTS = 8
CLOSE_M = 1.2  # a wall nearer than this fills the picture
UP_SHARE = 0.5  # of the script's speed: the ceiling is nearer than the walls
LOOKING_NORTH = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # columns right, down, forward


def rotations(angles: Tensor) -> Tensor:
    """Camera-to-world [T, 3, 3] of yaw, pitch, roll [T, 3] in degrees: right, up and clockwise, from looking north."""
    yaw, pitch, roll = torch.deg2rad(angles).unbind(-1)
    return LOOKING_NORTH @ se3.axis_rotation(1, yaw) @ se3.axis_rotation(0, pitch) @ se3.axis_rotation(2, roll)


def _view(house: House, poses: Tensor) -> Tensor:
    """Metres of free view [T] in the middle of the picture at poses [T, 4, 4]."""
    origin, forward = poses[:, :3, 3].T.float(), poses[:, :3, 2].T.float()
    return cast(house, origin, forward, box_of(house, origin)).depth


def _start(house: House, cfg: Rooms, wing: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A free place [3] in a room of the wing, at the height of a head, and the widest of three views [3, 3] there."""
    area = (house.half[0] * house.half[1] * (house.known == (wing == "known"))).double().numpy()
    while True:
        box = rng.choice(len(area), p=area / area.sum())
        place = house.middle[:2, box] + house.half[:2, box] * torch.from_numpy(rng.uniform(-1, 1, 2))
        point = torch.tensor([*place, rng.uniform(1.2, 1.8)], dtype=torch.float64)
        if is_free(house, point, cfg.clearance_m):
            views = rotations(torch.from_numpy(rng.uniform((0, -8, 0), (360, 8, 0), (3, 3))))
            return point, views[_view(house, se3.pose(views, point)).argmax()]


def _slide(house: House, point: Tensor, step: Tensor, clearance: float) -> Tensor:
    """Where a step [3] from a point [3] ends: without the axes on which it would come too near to a wall or block."""
    for axis in range(3):
        ahead = point + step * (torch.arange(3) == axis)
        point = ahead if is_free(house, ahead, clearance) else point
    return point


@torch.no_grad()
def walk(house: House, cfg: Rooms, wing: str, rng: np.random.Generator, num_frames: int) -> tuple[Tensor, float]:
    """A track [T, 4, 4] after a script, and the share of its frames that are held at a wall or look at one close up.

    The motion is the camera's own, as in geometry.actions. Its displacement is taken half-way through its turn, so that
    a script run backwards retraces the track. Walls stop what goes into them only: the camera slides along them."""
    motion = torch.from_numpy(script(rng, num_frames, walk_m_s=cfg.walk_m_s, turn_deg_s=cfg.turn_deg_s)) / cfg.fps
    forward, right, up, yaw, pitch, roll = motion.unbind(1)
    turn = torch.deg2rad(torch.stack([pitch, yaw, roll], 1))
    turns = zip(se3.exp(turn / 2), se3.exp(turn), torch.stack([right, -UP_SHARE * up, forward], 1), strict=True)
    level = torch.deg2rad(torch.tensor([cfg.max_roll_deg, cfg.max_pitch_deg])).sin()
    point, rotation = _start(house, cfg, wing, rng)
    track, num_held = [], 0
    for half_turn, full_turn, step in turns:
        track.append(se3.pose(rotation, point))
        held = bool(((rotation @ full_turn)[2, [0, 2]].abs() > level).any())
        if held:
            half_turn = full_turn = torch.eye(3, dtype=torch.float64)
        step = rotation @ half_turn @ step
        moved = _slide(house, point, step, cfg.clearance_m)
        num_held += held or bool((moved - point - step).abs().max() > 1e-6)
        point, rotation = moved, rotation @ full_turn
    poses = torch.stack(track)
    return poses, num_held / num_frames + float((_view(house, poses) < CLOSE_M).float().mean())


def _best_walk(house: House, cfg: Rooms, wing: str, rng: np.random.Generator, num_frames: int) -> Tensor:
    tried = [walk(house, cfg, wing, rng, num_frames)]
    while tried[-1][1] > cfg.max_spoilt_share and len(tried) < NUM_ATTEMPTS:
        tried.append(walk(house, cfg, wing, rng, num_frames))
    return min(tried, key=lambda attempt: attempt[1])[0]


def record(
    cfg: Rooms, *, region: str, seed: int, num_clips: int, num_frames: int, start: int = 0
) -> Iterator[Recording]:
    """Clips start .. start + num_clips - 1 of a region; clip i depends on cfg, region, seed and i alone.

    "train" and "known" are two wings of the same houses, without a view of each other; "unseen" are other houses."""
    if region not in REGIONS:
        raise ValueError(f"region is {region!r}; it must be one of {REGIONS}")
    intrinsics = torch.tensor([cfg.focal_px, cfg.focal_px, cfg.width / 2, cfg.height / 2], dtype=torch.float64)
    for index in range(start, start + num_clips):
        rng = np.random.default_rng((seed, REGIONS.index(region), index))
        place = int(rng.integers(cfg.num_worlds)) + (UNSEEN if region == "unseen" else 0)
        house = build(cfg, place)
        poses = _best_walk(house, cfg, region, rng, num_frames)
        frames, depth = render(house, poses, intrinsics, cfg.height, cfg.width)
        boxes = box_of(house, poses[:, :3, 3].T.float())
        yield Recording(
            frames=frames.numpy(), poses=poses.numpy(), intrinsics=intrinsics.numpy(), depth=depth.numpy(), fps=cfg.fps,
            world="rooms", place=f"house{place}", region=region, seed=seed, tags=house.tags[int(boxes.mode().values)],
        )  # fmt: skip
