"""A house: empty axis-aligned boxes, rooms on a grid and passages between them, with solid blocks in the rooms.

World axes: x east, y north, z up, metres. Every face of a box carries one rectangle: the mouth of a passage, a picture,
a rug or a lamp. Its u, v are y z, x z or x y. Boxes and rectangles are middles and half sizes: a test of inside is then
one comparison an axis. Shapes: R boxes, each with P blocks and S surfaces (6 faces, 6 rectangles, P blocks), N points.
"""

import colorsys
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from relic.worlds.config import Rooms
from relic.worlds.textures import patterns

NUM_BLOCKS = 3
NUM_SURFACES = 12 + NUM_BLOCKS  # of a box
PATTERNS = tuple(patterns())
WALLS = ("brick", "stone", "tiles", "planks", "checker", "stripes", "plaster", "marble", "moss", "diamonds")
FLOORS = ("planks", "tiles", "checker", "stone", "marble", "diamonds", "plaster")
PICTURES = ("target", "rug", "checker", "diamonds")
HUES = (0.02, 0.07, 0.09, 0.11, 0.14, 0.24, 0.34, 0.46, 0.52, 0.58, 0.62, 0.72, 0.95)  # as houses are painted


@dataclass(frozen=True)
class House:
    """Tables with a column a box; one box is a house too."""

    middle: Tensor  # [3, R]
    half: Tensor  # [3, R]
    rect: Tensor  # [4, 6R] middle u v and half sizes of each face's rectangle, negative where there is none
    leads_to: Tensor  # [6R] the box behind the rectangle, -1 where it is only painted on
    through: Tensor  # [3, R] 1 along the axis of a passage, else -1
    block_middle: Tensor  # [3 * P, R]
    block_half: Tensor  # [3 * P, R]
    lamp: Tensor  # [8, R] where it hangs, red green blue of all light, ambient light, reach of the lamp in metres
    material: Tensor  # [12, S * R] pattern, middle u v and half a period u v in metres, two colours, glow
    known: Tensor  # [R] whether the box is in the wing "known"; no passage joins it to the wing "train"
    tags: tuple[tuple[str, ...], ...]  # [R]


def box_of(house: House, points: Tensor) -> Tensor:
    """The box [N] that holds each of points [3, N]; ValueError for a point in a wall."""
    gap, box = (house.half[..., None] - (points[:, None] - house.middle[..., None]).abs()).amin(0).max(0)
    if (gap < -1e-4).any():  # boxes touch: a point in a doorway may miss both by a rounding
        raise ValueError(f"a point lies in a wall: {points[:, gap.argmin()].tolist()}")
    return box


def is_free(house: House, point: Tensor, clearance: float) -> bool:
    """Whether a camera at point [3] stays clear of every wall and block: rooms shrink and passages reach into them."""
    inside = ((point[:, None] - house.middle).abs() <= house.half + clearance * house.through).all(0).any()
    away = (point.repeat_interleave(NUM_BLOCKS)[:, None] - house.block_middle).abs() - house.block_half >= clearance
    return bool(inside & away.view(3, -1).any(0).all())


def _material(rng: np.random.Generator, pattern: str, frame: np.ndarray | None = None, dark: float = 0.5) -> Tensor:
    """A pattern in a colour and a companion that is clearly lighter or darker, sometimes of the opposite hue."""
    frame = np.array([0, 0, 1, 1]) * rng.uniform(0.7, 1.4) if frame is None else frame
    hue, saturation, bright = rng.choice(HUES), 0.75 * rng.beta(1.3, 1.5), rng.uniform(dark, dark + 0.45)
    other_hue = (hue + rng.choice([0.0, 0.05, 0.5], p=[0.5, 0.3, 0.2])) % 1
    other_bright = float(np.clip(bright + rng.choice([-1, 1]) * rng.uniform(0.2, 0.45), 0.08, 1))
    colours = colorsys.hsv_to_rgb(hue, saturation, bright), colorsys.hsv_to_rgb(other_hue, saturation, other_bright)
    return torch.tensor([PATTERNS.index(pattern), *frame, *colours[0], *colours[1], 0], dtype=torch.float32)


def _box(lo: np.ndarray, hi: np.ndarray, surfaces: list[Tensor], *, known: bool, tags: tuple[str, ...]) -> House:
    """A box [lo, hi] without doors, pictures, blocks and lamp."""
    middle, half = torch.from_numpy(np.stack([lo + hi, hi - lo])[..., None] / 2).float()
    return House(
        middle=middle,
        half=half,
        rect=torch.full((4, 6), -1.0),
        leads_to=torch.full((6,), -1),
        through=torch.full((3, 1), -1.0),
        block_middle=torch.full((3 * NUM_BLOCKS, 1), -1e6),  # no ray comes there
        block_half=torch.zeros(3 * NUM_BLOCKS, 1),
        lamp=torch.tensor([0, 0, 0, 1, 1, 1, 0.5, 0.01])[:, None],  # far away, without reach
        material=torch.stack([*surfaces, *surfaces[:1] * (NUM_SURFACES - 6)], 1),
        known=torch.tensor([known]),
        tags=(tags,),
    )


def _room(rng: np.random.Generator, lo: np.ndarray, hi: np.ndarray, known: bool) -> House:
    """A room in [lo, hi] with a lamp, and mostly a rug and a picture a wall."""
    wall, floor = rng.choice(WALLS), rng.choice(FLOORS)
    walls = [_material(rng, wall)] * 4
    walls[rng.integers(4)] = _material(rng, rng.choice(WALLS))  # tells the directions apart
    surfaces = [*walls, _material(rng, floor, dark=0.35), _material(rng, "plaster", dark=0.55)]
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    tags = ("indoor", "hall" if half[0] * half[1] > 9 else "room", f"{wall} walls", f"{floor} floor")
    room = _box(lo, hi, surfaces, known=known, tags=tags)
    for face, uv in enumerate(([1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1])):
        if face == 5 or rng.random() < 0.65:
            shift, size = rng.uniform((-0.3, 0.1), 0.3, (2, 2)).T
            frame = np.concatenate([middle[uv] + half[uv] * shift, half[uv] * size])
            room.rect[:, face] = torch.from_numpy(frame)
            room.material[:, 6 + face] = _material(rng, rng.choice(PICTURES), frame)
    tint, ambient = 1 - rng.uniform(0, 1) * np.array([0, 0.15, 0.35]), rng.uniform(0.22, 0.65)
    room.material[5:, 11] = torch.tensor([*tint, *tint, 1])
    room.lamp[:, 0] = torch.tensor([*room.rect[:2, 5], hi[2] - 0.35, *tint, ambient, 1 + 8 * ambient])
    _place_blocks(rng, room)
    return room


def _place_blocks(rng: np.random.Generator, room: House) -> None:
    """Up to three pillars and crates; a metre of floor stays free along the walls, where the doors are."""
    middle, half = room.middle[:, 0].numpy(), room.half[:, 0].numpy()
    for which in range(rng.integers(0, NUM_BLOCKS + 1)):
        size = np.minimum(rng.uniform(0.2, 0.55) * np.array([1, 1, rng.choice([1, 2, 99])]), half[2])
        spread = half[:2] - size[:2] - 1.1
        if (spread > 0).all():
            place = [*(middle[:2] + spread * rng.uniform(-1, 1, 2)), size[2]]
            room.block_middle[which::NUM_BLOCKS, 0] = torch.tensor(place)
            room.block_half[which::NUM_BLOCKS, 0] = torch.from_numpy(size)
            room.material[:, 12 + which] = _material(rng, rng.choice(WALLS))


def _join(rng: np.random.Generator, boxes: list[House], a: int, b: int, axis: int) -> None:
    """A doorway or a window from room a to room b, which lies after it along the axis."""
    first, second, across = boxes[a], boxes[b], 1 - axis
    lo = torch.maximum(first.middle - first.half, second.middle - second.half)[:, 0].numpy()
    hi = torch.minimum(first.middle + first.half, second.middle + second.half)[:, 0].numpy()
    lo[axis], hi[axis] = hi[axis], lo[axis]  # between the rooms
    width = min(rng.uniform(1.3, 2.6), hi[across] - lo[across] - 0.4)
    lo[across] += rng.uniform(0.2, hi[across] - lo[across] - 0.2 - width)
    hi[across] = lo[across] + width
    lo[2], hi[2] = rng.choice([0, 0.9], p=[0.85, 0.15]), rng.uniform(2.05, hi[2] - 0.2)
    passage = _box(lo, hi, [*first.material.T[[0, 1, 2, 3, 4, 0]]], known=bool(first.known), tags=first.tags[0])
    passage.through[axis] = 1
    mouth = torch.cat([passage.middle[[across, 2], 0], passage.half[[across, 2], 0]])  # the whole cross-section
    for box, face, target in ((first, 1, len(boxes)), (second, 0, len(boxes)), (passage, 0, a), (passage, 1, b)):
        box.rect[:, 2 * axis + face], box.leads_to[2 * axis + face] = mouth, target
    boxes.append(passage)


@lru_cache(8)
def build(cfg: Rooms, seed: int) -> House:
    """The house of a seed. Its last column of rooms is the wing "known", the others are the wing "train"."""
    rng = np.random.default_rng(seed)
    side = cfg.rooms_a_side
    edges = np.concatenate([np.zeros((1, 2)), rng.uniform(cfg.min_room_m, cfg.max_room_m, (side, 2)).cumsum(0)])
    boxes: list[House] = []
    for column, row in np.ndindex(side, side):
        west, south, east, north = rng.uniform(0.15, 0.6, 4)  # what the walls take
        lo = np.array([edges[column, 0] + west, edges[row, 1] + south, 0])
        hi = np.array([edges[column + 1, 0] - east, edges[row + 1, 1] - north, rng.uniform(2.7, 4.5)])
        boxes.append(_room(rng, lo, hi, known=column == side - 1))
    for here in range(side * side):
        column, row = divmod(here, side)
        if column < side - 2 and rng.random() < 0.85:
            _join(rng, boxes, here, here + side, axis=0)
        if row < side - 1 and rng.random() < 0.85:
            _join(rng, boxes, here, here + 1, axis=1)
    tables = {f.name: torch.cat([getattr(box, f.name) for box in boxes], -1) for f in fields(House) if f.name != "tags"}
    return House(**tables, tags=tuple(box.tags[0] for box in boxes))
