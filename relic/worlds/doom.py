"""Walks in Freedoom's maps through ViZDoom: drawn textures, real level design, exact poses.

A clip is planned on the map's geometry, walked in the game, and judged on what was seen. Doom's own pitch shears the
picture instead of turning the camera, so the pitch stays 0 and the axes are forward, right and yaw.

Doom's own pixels are 1.2 times as tall as wide, and its artists drew for that: at square pixels the game stretches z by
1.2. The world here is that stretched one, so that fx = fy = width / 2 (90 degrees across); a step of 24 units is 0.9 m.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType

import numpy as np

from relic.worlds.config import Doom
from relic.worlds.game import Game, axes, wad_file
from relic.worlds.picture import UNITS_PER_M, metres, shrink, words
from relic.worlds.recording import Recording
from relic.worlds.wad import Map, read_map
from relic.worlds.walker import AXES, return_leg, script

REGIONS = ("train", "known", "unseen")
Z_STRETCH = 1.2
WALK_AXES = ("forward", "right", "yaw")
LOOK_AHEAD = 8  # frames
REST = 0.15  # map units a frame, a tenth of a pixel: the game's rounding, not a step to measure others by
MAX_DRIFT = 8.0  # map units off the plan: something that is not in the plan stands there
MAX_FALL = 16.0  # map units a frame
MAX_ATTEMPTS, ATTEMPTS_A_SCRIPT = 300, 30


class Rejected(Exception):
    """Why a walk is no good; the next attempt starts elsewhere."""


class Games:
    """Opens a WAD's game when it is first needed, and closes all at the end."""

    def __init__(self, cfg: Doom) -> None:
        self._places = cfg.train_maps + cfg.unseen_maps
        self._games: dict[str, Game] = {}

    def __enter__(self) -> "Games":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for game in self._games.values():
            game.close()

    def of(self, place: str) -> Game:
        wad = place.split("/")[0]
        if wad not in self._games:
            self._games[wad] = Game(wad, [name.split("/")[1] for name in self._places if name.split("/")[0] == wad])
        return self._games[wad]


def record(
    cfg: Doom, *, region: str, seed: int, num_clips: int, num_frames: int, start: int = 0
) -> Iterator[Recording]:
    """Clips start, start + 1 ... of a region. Clip i depends on cfg, region, seed, num_frames and i, nothing else."""
    if region not in REGIONS:
        raise ValueError(f"region is {region!r}; it must be one of {REGIONS}")
    for place in cfg.train_maps + cfg.unseen_maps:
        _map(place)
    with Games(cfg) as games:
        for index in range(start, start + num_clips):
            yield _clip(cfg, games, region, seed, index, num_frames)


def _clip(cfg: Doom, games: Games, region: str, seed: int, index: int, num_frames: int) -> Recording:
    reasons: Counter[str] = Counter()
    for attempt in range(MAX_ATTEMPTS):
        clip_seed = [seed, REGIONS.index(region), index]
        # The next attempt tries the same script elsewhere: else walks that meet walls, and returns, would be rarer.
        motion = _script(cfg, np.random.default_rng([*clip_seed, 0, attempt // ATTEMPTS_A_SCRIPT]), num_frames)
        rng = np.random.default_rng([*clip_seed, 1, attempt])
        place = str(rng.choice(cfg.unseen_maps if region == "unseen" else cfg.train_maps))
        try:
            frames, depth, track = _walk(cfg, games.of(place), place, *plan(cfg, place, region, rng, motion))
            _judge(cfg, place, region, frames, track)
        except Rejected as reason:
            reasons[str(reason)] += 1
            continue
        half = cfg.width / 2
        return Recording(
            frames=frames, poses=poses(track), intrinsics=np.array([half, half, half, cfg.height / 2]), depth=depth,
            fps=cfg.fps, world="doom", place=place, region=region, seed=seed,
            tags=words(frames, depth, outdoor=_map(place).is_outdoor(track[:, :2])),
        )  # fmt: skip
    raise RuntimeError(f"no walk for clip {index} of region {region} in {MAX_ATTEMPTS} attempts: {dict(reasons)}")


def _script(cfg: Doom, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Wanted motion [T, 3] a frame: forward and right in map units, turn to the right in degrees."""
    speeds = {"walk_m_s": cfg.walk_units * cfg.fps / UNITS_PER_M, "turn_deg_s": cfg.turn_deg * cfg.fps}
    motion = script(rng, num_frames, WALK_AXES, **speeds)[:, [AXES.index(axis) for axis in WALK_AXES]]
    return motion * [UNITS_PER_M, UNITS_PER_M, 1] / cfg.fps


def plan(
    cfg: Doom, place: str, region: str, rng: np.random.Generator, motion: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points [T, 2] and angles [T] in degrees of a walk on the map's geometry, after a motion [T, 3]."""
    world, point, angle = _map(place), _start(cfg, place, region, rng), rng.uniform(0, 360)
    points, angles, blocked = [point], [angle], 0
    sign, wanted_sign, leg = 1.0, 1, return_leg(motion)

    def is_free(at: np.ndarray) -> bool:
        return world.clearance(at) > cfg.clearance_units and bool(in_region(cfg, place, region, at[None])[0])

    for frame, (ahead, aside, turn) in enumerate(motion[:-1]):
        angle -= turn  # Doom's angles are counter-clockwise
        forward, right = axes(math.radians(angle + turn / 2))  # halfway, so that the way back is the same
        sign += np.clip(wanted_sign - sign, -0.25, 0.25)
        step = sign * (ahead * forward + aside * right)
        # Before a wall the walk's sign changes, which keeps a motion as frequent as its opposite. A track that is to be
        # retraced has no choice.
        if frame >= 2 * leg and sign == wanted_sign and not is_free(point + LOOK_AHEAD * step):
            wanted_sign = -wanted_sign
        if is_free(point + step):
            point = point + step
        else:
            blocked += 1
        points.append(point)
        angles.append(angle)
        if blocked > (0 if frame < 2 * leg else cfg.max_blocked_share * len(motion)):
            raise Rejected("blocked")
    return np.stack(points), np.array(angles)


def _walk(cfg: Doom, game: Game, place: str, points: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, ...]:
    """Frames, depth and the game's own track [T, 4] of x y z angle, along planned points and angles."""
    rows = [game.enter(place.split("/")[1], points[0], angles[0])]
    points = points + (rows[0][:2] - points[0])  # the game warps to whole units
    frames, depths, bare = [], [], 0
    for frame in range(len(points)):
        if frame:
            rows.append(game.move_to(points[frame], angles[frame]))
        if np.hypot(*(rows[-1][:2] - points[frame])) > MAX_DRIFT:
            raise Rejected("obstacle")
        if abs(rows[-1][2] - rows[max(frame - 1, 0)][2]) > MAX_FALL:
            raise Rejected("fall")
        screen, levels = game.screen()
        frames.append(shrink(screen, cfg.height, cfg.width))
        depths.append(metres(levels, cfg.height, cfg.width))
        depth = depths[-1]
        bare += np.median(depth) * UNITS_PER_M < cfg.min_depth_units or np.isinf(depth).mean() > cfg.max_sky_share
        if bare > cfg.max_bare_share * len(points):
            raise Rejected("only a wall or sky in view")
    return np.stack(frames), np.stack(depths), np.stack(rows)[:, :4]


def _judge(cfg: Doom, place: str, region: str, frames: np.ndarray, track: np.ndarray) -> None:
    if frames.mean() < cfg.min_luminance:
        raise Rejected("dark")
    if not in_region(cfg, place, region, track[:, :2]).all():
        raise Rejected("out of region")


def in_region(cfg: Doom, place: str, region: str, points: np.ndarray) -> np.ndarray:
    """Which of the points [N, 2] belong to a region: whole squares of a map go to train or to known, by a hash.

    The camera stays in its region's squares; it may look into others."""
    if region == "unseen":
        return np.ones(len(points), bool)
    cells, inverse = np.unique(np.floor(points / cfg.cell_units).astype(int), axis=0, return_inverse=True)
    known = np.array([_is_known(f"{place} {x} {y}", cfg.known_share) for x, y in cells], bool)
    return known[inverse.reshape(-1)] == (region == "known")


@lru_cache(100_000)
def _is_known(cell: str, share: float) -> bool:
    return zlib.crc32(cell.encode()) / 2**32 < share  # the same on every machine, unlike hash()


def poses(track: np.ndarray) -> np.ndarray:
    """Camera-to-world [T, 4, 4] of x y z angle [T, 4]; Doom has x east, y north, z up and counter-clockwise angles."""
    steps = np.diff(track[:, :3], axis=0)
    steps[np.linalg.norm(steps, axis=1) < REST] = 0
    position = track[0, :3] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)])
    forward, right = axes(np.radians(track[:, 3]))
    pose = np.tile(np.eye(4), (len(track), 1, 1))
    pose[:, :3, :3] = 0
    pose[:, :2, 0], pose[:, 2, 1], pose[:, :2, 2] = right.T, -1, forward.T
    pose[:, :3, 3] = position * [1, 1, Z_STRETCH] / UNITS_PER_M
    return pose


def _start(cfg: Doom, place: str, region: str, rng: np.random.Generator) -> np.ndarray:
    """A point of the region with room around it."""
    starts = _starts(place, 2 * cfg.clearance_units)
    starts = starts[in_region(cfg, place, region, starts)]
    if not len(starts):
        raise Rejected(f"no start in {place}")
    return rng.choice(starts) + rng.uniform(-8, 8, 2)


@lru_cache
def _starts(place: str, clearance: float, spacing: float = 64.0) -> np.ndarray:
    """Points [N, 2] of a grid that a player can reach, away from walls."""
    world = _map(place)
    corners = world.lines.reshape(-1, 2)
    ranges = [np.arange(*ends, spacing) for ends in zip(corners.min(0), corners.max(0), strict=True)]
    grid = np.stack(np.meshgrid(*ranges), -1).reshape(-1, 2)
    free = [point for point in grid if world.is_reachable(point) and world.clearance(point) > clearance]
    return np.array(free).reshape(-1, 2)


@lru_cache
def _map(place: str) -> Map:
    wad, name = place.split("/")
    return read_map(wad_file(wad), name)
