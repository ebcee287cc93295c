"""A procedural house of textured rooms, ray-cast in plain torch with true pitch and roll and an exact depth.

The house is a set of empty axis-aligned boxes, rooms on a grid and the passages between them, with solid blocks in the
rooms. Every face of a box carries one rectangle: an opening into another box, or a picture, a rug, a lamp. A ray leaves
its box through the nearest face and goes on in the next box while it meets openings, so that a picture costs two or
three slab tests a ray and there is no acceleration structure to explain.

World axes: x east, y north, z up, metres. Rays are not normalised: their camera z is 1, so the ray's parameter is the
z-depth. Shapes: N rays or points, R boxes, P blocks a box, S surfaces (of a box: 6 faces, 6 rectangles, P blocks).
"""

import colorsys
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from relic.geometry import camera, se3
from relic.worlds.config import Rooms
from relic.worlds.recording import Recording
from relic.worlds.walker import script

NUM_BLOCKS = 3
NUM_SURFACES = 12 + NUM_BLOCKS  # a box
TEXELS = 128  # a period of a pattern
LEVELS = 13  # of blur, two an octave, the last one nearly flat
REGIONS = ("train", "known", "unseen")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations here are small: a second thread costs more than it brings, ten times more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class World:
    middle: Tensor  # [3, R] of the boxes
    half: Tensor  # [3, R] their half sizes
    rect: Tensor  # [4, 6R] u0 u1 v0 v1 of each face's rectangle, u0 > u1 where there is none
    leads_to: Tensor  # [6R] the box behind the rectangle, -1 where it is only painted on
    block_middle: Tensor  # [3 * P, R]
    block_half: Tensor  # [3 * P, R]
    lamp: Tensor  # [3, R]
    light: Tensor  # [6, R] red green blue of the light, ambient, strength, reach in metres
    material: Tensor  # [12, S] pattern, corner u v and period u v in metres, colour a, colour b, glow
    wing: tuple[str, ...]  # [R] "train" or "known"; no opening joins two wings
    tags: tuple[tuple[str, ...], ...]  # [R]


class Hit(NamedTuple):
    depth: Tensor  # [N] in units of the ray
    box: Tensor  # [N]
    axis: Tensor  # [N] of the surface's normal
    surface: Tensor  # [N]


# On a CPU torch.where and the index of a minimum cost ten times an addition: so boxes are middles and half sizes, and
# the nearest face is found by comparing with the minimum.


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """Columns [K, N] of a table [K, R]."""
    return table.index_select(1, index)


def _slabs(middle: Tensor, half: Tensor, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [3, ..., N] at which rays enter and leave the three slabs of boxes."""
    # never parallel to a slab: 0 times infinity would be no number
    inverse = 1 / (rays + 1e-9 * (rays == 0))
    centre, reach = (middle - origin) * inverse, half * inverse.abs()
    return centre - reach, centre + reach


def _on_face(points: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """u, v [N] of points [3, N] on faces with normals along axis [N]: y z, x z or x y."""
    u, v = points.gather(0, torch.stack([axis == 0, 2 - (axis == 2).int()]).long())
    return u, v


def _last(matches: Tensor) -> Tensor:
    """The last true row [N] of matches [K, N], 0 if none is."""
    last = matches[1].long()
    for row in range(2, len(matches)):
        last.masked_fill_(matches[row], row)
    return last


def _hit_blocks(world: World, origin: Tensor, rays: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest block of each ray's box: depth [N], inf if none, and the depths [3, P, N] and [P, N] that tell which."""
    middle, half = (_pick(table, box).unflatten(0, (3, -1)) for table in (world.block_middle, world.block_half))
    enter, leave = _slabs(middle, half, origin[:, None], rays[:, None])
    near = enter.amax(0)
    # 1e-3: a shadow ray starts on a block and must not meet it again
    near = near.masked_fill((near >= leave.amin(0)) | (near < 1e-3), math.inf)
    return near.amin(0), enter, near


def _leave_box(world: World, origin: Tensor, rays: Tensor, box: Tensor) -> tuple[Hit, Tensor]:
    """First surface of each ray inside its box, and the box [N] it goes on in, -1 where it stops."""
    _, leave = _slabs(_pick(world.middle, box), _pick(world.half, box), origin, rays)
    depth = leave.amin(0)
    axis = _last(leave == depth)
    block_depth, enter, near = _hit_blocks(world, origin, rays, box)
    blocked = block_depth < depth
    u, v = _on_face(origin + depth * rays, axis)
    face = 2 * axis + (rays.gather(0, axis[None])[0] > 0)
    u0, u1, v0, v1 = _pick(world.rect, 6 * box + face)
    in_rect = (u0 <= u) & (u <= u1) & (v0 <= v) & (v <= v1)
    onward = world.leads_to.index_select(0, 6 * box + face).masked_fill(blocked | ~in_rect, -1)
    which = _last(near == block_depth)
    block_axis = _last(enter.gather(1, which.expand(3, 1, -1))[:, 0] == block_depth)
    surface = NUM_SURFACES * box + torch.where(blocked, 12 + which, face + 6 * in_rect)
    hit = Hit(torch.minimum(depth, block_depth), box.expand_as(axis), torch.where(blocked, block_axis, axis), surface)
    return hit, onward


def cast(world: World, origin: Tensor, rays: Tensor, box: Tensor) -> Hit:
    """Follow rays [3, N] from origin [3, 1 or N], which lies in box [1 or N], to the first surface."""
    hit, onward = _leave_box(world, origin, rays, box)
    hit = Hit(*(field.clone() for field in hit))
    going = torch.arange(rays.shape[1])
    while len(through := (onward >= 0).nonzero()[:, 0]):
        going, box = going.index_select(0, through), onward.index_select(0, through)
        start = origin if origin.shape[1] == 1 else _pick(origin, going)
        step, onward = _leave_box(world, start, _pick(rays, going), box)
        for field, values in zip(hit, step, strict=True):
            field.index_copy_(0, going, values)
    return hit


def gaps(world: World, points: Tensor) -> Tensor:
    """[3, R, N] metres from points [3, N] to the nearer wall of each box along each axis; one is negative outside."""
    return world.half[..., None] - (points[:, None] - world.middle[..., None]).abs()


def box_of(world: World, points: Tensor) -> Tensor:
    """The box [N] that holds each of points [3, N]. Boxes touch: a point in a doorway may miss both by a rounding."""
    depth, box = gaps(world, points).amin(0).max(0)
    if (depth < -1e-4).any():
        raise ValueError(f"a point lies in a wall: {points[:, depth.argmin()].tolist()}")
    return box


def _texture(world: World, material: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
    """Colour [3, N] of patterns at u, v [N] metres, blurred to the footprint [N] metres of a ray."""
    pattern, u0, v0, period_u, period_v = material[:5]
    level = (2 * torch.log2(footprint / period_v * TEXELS)).round().clamp(0, LEVELS - 1)
    u, v = (u - u0) / period_u, (v - v0) / period_v
    row = (pattern * LEVELS + level) * (TEXELS + 1) + (v - v.floor()) * TEXELS
    book = _pattern_book()
    grid = torch.stack([2 * (u - u.floor()) - 1, 2 * row / (book.shape[2] - 1) - 1], -1)
    mix, value = F.grid_sample(book, grid[None, None], align_corners=True)[0, :, 0]
    return torch.lerp(material[5:8], material[8:11], mix) * value


def _light(world: World, points: Tensor, rays: Tensor, hit: Hit) -> Tensor:
    """Light [3, N] at points: ambient, darker in the corners, plus one lamp a box that casts the blocks' shadows."""
    light = _pick(world.light, hit.box)
    colour, (ambient, strength, reach) = light[:3], light[3:]
    to_lamp = _pick(world.lamp, hit.box) - points
    distance2 = to_lamp.square().sum(0)
    normal = hit.axis[None]
    facing = -(to_lamp.gather(0, normal) * rays.gather(0, normal).sign())[0] * distance2.rsqrt()
    lit = _hit_blocks(world, points, to_lamp, hit.box)[0] >= 1
    lamp = strength * lit * (0.15 + 0.85 * facing).clamp(min=0) / (1 + distance2 / reach.square())
    half = _pick(world.half, hit.box)
    gap = half - (points - _pick(world.middle, hit.box)).abs()
    near = (1 - gap / (0.4 * half).clamp(max=0.7)).clamp(min=0).square()
    corners = near.sum(0) - near.gather(0, normal)[0]
    return colour * (ambient * (1 - 0.45 * corners) + lamp)


def _shade(world: World, points: Tensor, rays: Tensor, hit: Hit, sample_width: float) -> Tensor:
    """Colour [3, N] in 0..1 of what the rays met; sample_width is a ray's width at depth 1."""
    material = _pick(world.material, hit.surface)
    u, v = _on_face(points, hit.axis)
    slant = rays.square().sum(0).sqrt() / rays.gather(0, hit.axis[None])[0].abs()
    colour = _texture(world, material, u, v, hit.depth * sample_width * slant.clamp(max=16).sqrt())
    return (colour * torch.maximum(_light(world, points, rays, hit), material[11])).clamp(0, 1)


@_one_thread()
@torch.no_grad()
def render(world: World, poses: Tensor, intrinsics: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T, H, W, 3], four samples a pixel, and the depth along z float32 [T, H, W] of the pixel centres.

    poses [T, 4, 4] camera-to-world, OpenCV axes; intrinsics [4] fx fy cx cy in pixels. ValueError for a pose in a wall.
    """
    # One frame at a time: its rays fit in the processor's cache, which is worth more than a larger batch.
    intrinsics = intrinsics.float()
    offsets = torch.tensor([[0, 0, x, y] for x, y in itertools.product((-0.25, 0.25), repeat=2)])
    centres = camera.rays(intrinsics, height, width).flatten(0, 1).T
    samples = torch.cat([camera.rays(intrinsics + offset, height, width).flatten(0, 1) for offset in offsets]).T
    boxes = box_of(world, poses[:, :3, 3].T.float())
    frames, depths = [], []
    for pose, box in zip(poses.float(), boxes, strict=True):
        origin, rotation = pose[:3, 3:], pose[:3, :3]
        depths.append(cast(world, origin, rotation @ centres, box[None]).depth)
        rays = rotation @ samples
        hit = cast(world, origin, rays, box[None])
        colour = _shade(world, origin + hit.depth * rays, rays, hit, 0.5 / float(intrinsics[0]))
        frames.append((255 * colour.view(3, 4, -1).mean(1) + 0.5).byte().T)
    return torch.stack(frames).view(-1, height, width, 3), torch.stack(depths).view(-1, height, width)


def unproject(depth: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """World points [3, H * W] of a depth [H, W] seen from pose [4, 4]."""
    rays = camera.rays(intrinsics.to(pose), *depth.shape).flatten(0, 1).T
    return pose[:3, 3:] + pose[:3, :3] @ rays * depth.flatten()


@torch.no_grad()
def visible(
    world: World, points: Tensor, pose: Tensor, intrinsics: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Which world points [3, N] a camera sees: bool [N], and their pixels [N, 2] (nonsense where not seen).

    A ray is cast at every point itself, so no depth map and no tolerance in pixels comes in."""
    pixels, depth = camera.project((pose[:3, :3].T @ (points - pose[:3, 3:])).T, intrinsics)
    in_picture = (depth > 0) & ((pixels >= 0) & (pixels < torch.tensor([width, height]))).all(1)
    origin = pose[:3, 3:].float()
    reached = cast(world, origin, points.float() - origin, box_of(world, origin)).depth > 1 - 1e-3
    return in_picture & reached, pixels


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Periodic noise in 0..1 with spectrum 1 / frequency^slope, longer along v by stretch."""
    ky, kx = np.meshgrid(np.fft.fftfreq(TEXELS) * TEXELS * stretch, np.fft.rfftfreq(TEXELS) * TEXELS, indexing="ij")
    spectrum = np.fft.rfft2(rng.normal(size=(TEXELS, TEXELS))) / np.maximum(np.hypot(kx, ky), 1) ** slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(TEXELS, TEXELS))
    return np.clip(0.5 + noise / (5 * noise.std()), 0, 1)


Pair = tuple[np.ndarray, np.ndarray]


def _courses(rng: np.random.Generator, rows: int, columns: int, shift: float, gap: float) -> Pair:
    """Bricks and the like: 1 in the gaps (of that width, in periods), and a random number 0..1 a brick."""
    v, u = np.meshgrid(*[(np.arange(TEXELS) + 0.5) / TEXELS] * 2, indexing="ij")
    row = np.floor(v * rows).astype(int)
    along = (u * columns + row * shift) % columns
    edge_u = np.minimum(along % 1, 1 - along % 1) / columns
    edge_v = np.minimum(v * rows % 1, 1 - v * rows % 1) / rows
    return np.minimum(edge_u, edge_v) < gap / 2, rng.random((rows, columns))[row, along.astype(int)]


def _patterns() -> dict[str, Pair]:
    """Name: how much of colour b there is, and the value that multiplies both colours; [v, u] in 0..1, periodic."""
    rng = np.random.default_rng(0)
    v, u = np.meshgrid(*[(np.arange(TEXELS) + 0.5) / TEXELS] * 2, indexing="ij")
    rough, soft, grain = _noise(rng, 0.8), _noise(rng, 1.6), _noise(rng, 1.2, stretch=8)
    flat = np.zeros_like(u)
    frame = np.maximum(abs(u - 0.5), abs(v - 0.5)) > 0.45
    radius, ring = np.hypot(u - 0.5, v - 0.5), np.maximum(abs(u - 0.5), abs(v - 0.5))
    found = {}
    layouts = {"brick": (8, 4, 0.5, 0.02), "stone": (4, 3, 0.4, 0.024), "tiles": (4, 4, 0, 0.02)}
    for name, layout in layouts.items():
        joint, each = _courses(rng, *layout)
        found[name] = joint, np.where(joint, 0.9, 0.72 + 0.28 * each) * (0.75 + 0.25 * rough)
    joint, each = _courses(rng, 3, 8, 0, 0.012)
    found["planks"] = 0.8 * grain, np.where(joint, 0.4, 0.7 + 0.3 * each)
    found["checker"] = (np.floor(4 * u) + np.floor(4 * v)) % 2, 0.85 + 0.15 * rough
    found["diamonds"] = (np.floor(4 * (u + v)) + np.floor(4 * (u - v))) % 2, 0.85 + 0.15 * rough
    found["stripes"] = u * 8 % 1 < 0.4, 0.9 + 0.1 * rough
    found["plaster"] = 0.5 * soft, 0.7 + 0.3 * rough
    found["marble"] = 1 - np.clip(abs(soft - 0.5) * 8, 0, 1), 0.85 + 0.15 * rough
    found["moss"] = np.clip(4 * soft - 1.5, 0, 1), 0.6 + 0.4 * rough
    joint, each = _courses(rng, 2, 2, 0, 0.04)
    found["panels"] = flat, np.where(joint, 0.45, 0.8 + 0.2 * each) * (0.85 + 0.15 * grain)
    found["crate"] = grain, np.where(frame | (abs(u - v) < 0.06), 0.6, 1.0)
    found["sun"] = (radius < 0.25) | (v < 0.3), np.where(frame, 0.15, 0.9 + 0.1 * soft)
    found["target"] = radius * 8 % 2 < 1, np.where(frame, 0.15, 1.0)
    found["bars"] = (u * 5 + 0.6 * np.floor(3 * v)) % 2 < 1, np.where(frame, 0.15, 1.0)
    found["rug"] = (ring * 10 % 2 < 1) ^ (abs(u - 0.5) + abs(v - 0.5) < 0.2), 0.85 + 0.15 * rough
    found["sky"] = np.clip(3 * soft - 1.2, 0, 1), np.ones_like(u)
    found["glow"] = flat, np.ones_like(u)
    return {name: (mix.astype(float), value.astype(float)) for name, (mix, value) in found.items()}


PATTERNS = tuple(_patterns())


@lru_cache(1)
def _pattern_book() -> Tensor:
    """[1, 2, rows, u]: every pattern at every blur, full size, below one another: one bilinear look-up does it all."""
    k = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(TEXELS), torch.fft.rfftfreq(TEXELS), indexing="ij"))
    blur = torch.stack([torch.exp(-2 * (math.pi * k * 0.4 * 2 ** (level / 2)) ** 2) for level in range(LEVELS)])
    sharp = torch.from_numpy(np.array(list(_patterns().values()))).float()  # [pattern, 2, v, u]
    book = torch.fft.irfft2(torch.fft.rfft2(sharp)[:, :, None] * blur, s=(TEXELS, TEXELS))
    book = F.pad(book.transpose(0, 1).flatten(1, 2), (0, 1, 0, 1), mode="circular")  # the last texel is the first again
    return book.flatten(1, 2)[None]


WALLS = ("brick", "stone", "tiles", "planks", "checker", "stripes", "plaster", "marble", "moss", "panels", "diamonds")
PILLARS = ("stone", "tiles", "stripes", "marble", "brick")
FLOORS = ("planks", "tiles", "checker", "stone", "marble", "diamonds", "plaster")
CEILINGS = ("plaster", "panels", "planks")
PICTURES = ("sun", "target", "bars", "rug", "checker")
HUES = (0.02, 0.07, 0.09, 0.11, 0.14, 0.24, 0.34, 0.46, 0.52, 0.58, 0.62, 0.72, 0.95)  # as houses are painted
SKY, SUN = ((0.35, 0.6, 0.95), (1.0, 1.0, 1.0)), (1.0, 0.97, 0.9, 0.5, 0.7, 100.0)
TINTS = ((1.0, 1.0, 1.0), (1.0, 0.9, 0.72), (0.82, 0.92, 1.0), (1.0, 0.75, 0.6))
LAMPS = ((0.65, 0.8, 6.0), (0.45, 0.9, 3.5), (0.22, 1.0, 2.4))  # ambient, strength, reach
WALL_M = 0.3  # between two rooms
NO_RECT = (1.0, 0.0, 1.0, 0.0)
NOWHERE = -1e6  # a block without volume out there is never hit


@dataclass
class _Box:
    """One column of a World while it is being built."""

    lo: np.ndarray  # [3]
    hi: np.ndarray  # [3]
    material: np.ndarray  # [surfaces of a box, 12]
    lamp: np.ndarray  # [3]
    light: np.ndarray  # [6]
    wing: str
    tags: tuple[str, ...]
    rect: np.ndarray  # [6, 4]
    leads_to: np.ndarray  # [6]
    blocks: np.ndarray  # [P, 2, 3]


Colours = tuple[tuple[float, float, float], tuple[float, float, float]]


def _colours(rng: np.random.Generator, hue: float, saturation: float, value: float) -> Colours:
    """A colour and a companion that is clearly lighter or darker, sometimes of the opposite hue."""
    other_value = value + rng.choice([-1, 1]) * rng.uniform(0.2, 0.45)
    other_hue = hue + rng.choice([0.0, 0.05, 0.5], p=[0.5, 0.3, 0.2])
    first = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return first, colorsys.hsv_to_rgb(other_hue % 1, 0.7 * saturation, float(np.clip(other_value, 0.08, 1)))


def _material(pattern: str, colours: Colours, period: float = 2.0, glow: float = 0.0) -> np.ndarray:
    return np.array([PATTERNS.index(pattern), 0, 0, period, period, *colours[0], *colours[1], glow])


def _picture(pattern: str, colours: Colours, rect: np.ndarray, glow: float = 0.0) -> np.ndarray:
    """A material whose pattern fills the rectangle once."""
    material = _material(pattern, colours, glow=glow)
    material[1:5] = rect[0], rect[2], rect[1] - rect[0], rect[3] - rect[2]
    return material


def _around(middle: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """The rectangle u0 u1 v0 v1 around a point."""
    return np.array([middle[0] - half_width, middle[0] + half_width, middle[1] - half_height, middle[1] + half_height])


def _blocks(rng: np.random.Generator, room: _Box) -> None:
    """Up to three pillars and crates; a metre of floor stays free along the walls, where the doors are."""
    for which in range(rng.integers(0, NUM_BLOCKS + 1)):
        pillar = rng.random() < 0.4
        size = rng.uniform(0.35, 0.7) if pillar else rng.uniform(0.5, 1.1)
        height = room.hi[2] if pillar else size * rng.integers(1, 3)
        corner = rng.uniform(room.lo[:2] + 1.1, np.maximum(room.hi[:2] - 1.1 - size, room.lo[:2] + 1.1))
        if not pillar:
            corner = size * np.ceil(corner / size)  # a crate's drawing has the crate's period and starts at its corner
        room.blocks[which] = [*corner, 0], [*(corner + size), height]
        colours = _colours(rng, rng.choice(HUES), rng.uniform(0.2, 0.8), rng.uniform(0.5, 0.95))
        pattern = rng.choice(PILLARS if pillar else ("crate", "panels"))
        room.material[12 + which] = _material(pattern, colours, 0.8 if pillar else size)


def _decorate(rng: np.random.Generator, room: _Box) -> None:
    """Pictures on the walls and a rug, so that no two places look the same."""
    for face in range(5):
        axes = [[1, 2], [0, 2], [0, 1]][face // 2]
        lo, hi = room.lo[axes], room.hi[axes]
        colours = _colours(rng, rng.choice(HUES), rng.uniform(0.3, 0.9), rng.uniform(0.6, 1))
        if face == 4:
            half = (hi - lo) * rng.uniform(0.2, 0.35)
            room.rect[face] = _around((lo + hi) / 2 + rng.uniform(-0.3, 0.3, 2), *half)
        else:
            middle = np.array([rng.uniform(lo[0] + 1, hi[0] - 1), rng.uniform(1.4, 1.7)])
            room.rect[face] = _around(middle, rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.6))
        room.material[6 + face] = _picture("rug" if face == 4 else rng.choice(PICTURES), colours, room.rect[face])
        if rng.random() < 0.35:
            room.rect[face] = NO_RECT


def _empty(lo: np.ndarray, hi: np.ndarray, wing: str, tags: tuple[str, ...], surfaces: list[np.ndarray]) -> _Box:
    """A box with no rectangles, no blocks and no light."""
    material = np.stack([*surfaces, *[surfaces[0]] * (NUM_SURFACES - 6)])
    blocks = np.full((NUM_BLOCKS, 2, 3), NOWHERE)
    rect, leads_to = np.tile(NO_RECT, (6, 1)), np.full(6, -1)
    return _Box(lo, hi, material, (lo + hi) / 2, np.ones(6), wing, tags, rect, leads_to, blocks)


def _room(rng: np.random.Generator, lo: np.ndarray, hi: np.ndarray, wing: str) -> _Box:
    """A room in [lo, hi] (hi's z is still to be drawn): materials, decoration, blocks and light."""
    outdoor, hue = rng.random() < 0.15, rng.choice(HUES)
    hi = np.array([*hi[:2], rng.uniform(4.5, 6.5) if outdoor else rng.uniform(2.7, 4.3)])
    wall, floor = rng.choice(WALLS), rng.choice(["moss", "stone"]) if outdoor else rng.choice(FLOORS)
    colours = _colours(rng, hue, 0.65 * rng.beta(1.3, 1.5), rng.uniform(0.5, 1))
    walls = [_material(wall, colours, rng.uniform(1.4, 2.6))] * 4
    if rng.random() < 0.5:  # one wall of another kind tells the directions apart
        colours = _colours(rng, rng.choice(HUES), rng.uniform(0.1, 0.6), rng.uniform(0.4, 0.95))
        walls[rng.integers(4)] = _material(rng.choice(WALLS), colours)
    floor_hue = 0.3 if floor == "moss" else rng.choice([0.08, 0.1, rng.choice(HUES)])
    colours = _colours(rng, floor_hue, rng.uniform(0.15, 0.6), rng.uniform(0.35, 0.8))
    ground = _material(floor, colours, rng.uniform(1.5, 3))
    above = _material(rng.choice(CEILINGS), _colours(rng, hue, 0.12, rng.uniform(0.6, 0.95)))
    above = _material("sky", SKY, 9.0, glow=1.0) if outdoor else above
    size = "courtyard" if outdoor else "hall" if np.prod(hi[:2] - lo[:2]) > 36 else "room"
    tags = ("outdoor" if outdoor else "indoor", size, f"{wall} walls", f"{floor} floor")
    room = _empty(lo, hi, wing, tags, [*walls, ground, above])
    _decorate(rng, room)
    _blocks(rng, room)
    _hang_lamp(rng, room, outdoor)
    return room


def _hang_lamp(rng: np.random.Generator, room: _Box, outdoor: bool) -> None:
    """The sun, or a lamp under the ceiling with its shining panel."""
    if outdoor:
        room.lamp = np.array([*(room.lo[:2] - rng.uniform(4, 12, 2)), 14.0])
        room.light = np.array(SUN)
        return
    tint, lamp = TINTS[rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])], LAMPS[rng.choice(3, p=[0.5, 0.3, 0.2])]
    middle = (room.lo + room.hi)[:2] / 2 + rng.uniform(-0.6, 0.6, 2)
    room.lamp = np.array([*middle, room.hi[2] - 0.35])
    room.light = np.array([*tint, *lamp])
    room.rect[5] = _around(middle, *rng.uniform(0.2, 0.6, 2))
    room.material[11] = _material("glow", (tint, tint), glow=1.0)


def _join(rng: np.random.Generator, boxes: list[_Box], a: int, b: int, axis: int) -> None:
    """A door, an archway or a window from room a to room b, which lies after it along the axis."""
    first, second, across = boxes[a], boxes[b], 1 - axis
    lo, hi = np.maximum(first.lo, second.lo), np.minimum(first.hi, second.hi)
    kind = rng.choice(["door", "arch", "window"], p=[0.55, 0.3, 0.15])
    width = min(rng.uniform(2.2, 3.2) if kind == "arch" else rng.uniform(1.3, 1.9), hi[across] - lo[across] - 0.4)
    start = lo[across] + 0.2 + rng.random() * (hi[across] - lo[across] - 0.4 - width)
    lo[axis], hi[axis] = first.hi[axis], second.lo[axis]
    lo[across], hi[across] = start, start + width
    lo[2] = 0.9 if kind == "window" else 0
    hi[2] = rng.uniform(2.05, hi[2] - 0.2)
    passage = _empty(lo, hi, first.wing, first.tags, [*first.material[:5], first.material[0]])
    *tint, ambient = (first.light[:4] + second.light[:4]) / 2
    passage.light = np.array([*tint, ambient + 0.15, 0, 1])
    # Both mouths are the whole cross-section: u is the horizontal axis across, v is z.
    mouth = lo[across], hi[across], lo[2], hi[2]
    for box, face, target in ((first, 1, len(boxes)), (second, 0, len(boxes)), (passage, 0, a), (passage, 1, b)):
        box.rect[2 * axis + face], box.leads_to[2 * axis + face] = mouth, target
    boxes.append(passage)


@lru_cache(8)
def build(cfg: Rooms, world_seed: int) -> World:
    """The house of a seed. Its last column of rooms is the wing "known", the others are the wing "train"."""
    rng = np.random.default_rng(world_seed)
    side = cfg.rooms_a_side
    edges = np.concatenate([np.zeros((1, 2)), rng.uniform(cfg.min_room_m, cfg.max_room_m, (side, 2)).cumsum(0)])
    boxes: list[_Box] = []
    for column, row in np.ndindex(side, side):
        (west, south), (east, north) = rng.uniform(WALL_M / 2, 0.6, (2, 2))
        lo = np.array([edges[column, 0] + west, edges[row, 1] + south, 0])
        hi = np.array([edges[column + 1, 0] - east, edges[row + 1, 1] - north, 0])
        boxes.append(_room(rng, lo, hi, "known" if column == side - 1 else "train"))
    for column, row in np.ndindex(side, side):
        here = column * side + row
        if column + 1 < side and boxes[here].wing == boxes[here + side].wing and rng.random() < 0.85:
            _join(rng, boxes, here, here + side, 0)
        if row + 1 < side and rng.random() < 0.85:
            _join(rng, boxes, here, here + 1, 1)
    return _freeze(boxes)


def _freeze(boxes: list[_Box]) -> World:
    def columns(name: str, *order: int) -> Tensor:
        return torch.from_numpy(np.stack([getattr(box, name) for box in boxes])).float().permute(order).contiguous()

    lo, hi, blocks = columns("lo", 1, 0), columns("hi", 1, 0), columns("blocks", 2, 3, 1, 0).flatten(1, 2)
    return World(
        middle=(lo + hi) / 2,
        half=(hi - lo) / 2,
        rect=columns("rect", 2, 0, 1).flatten(1),
        leads_to=columns("leads_to", 0, 1).flatten().long(),
        block_middle=(blocks[0] + blocks[1]) / 2,
        block_half=(blocks[1] - blocks[0]) / 2,
        lamp=columns("lamp", 1, 0),
        light=columns("light", 1, 0),
        material=columns("material", 2, 0, 1).flatten(1),
        wing=tuple(box.wing for box in boxes),
        tags=tuple(box.tags for box in boxes),
    )


LOOKING_NORTH = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # columns right, down, forward
NUM_ATTEMPTS = 8
CLOSE_M = 1.2  # a wall nearer than this fills the picture
UP_SHARE = 0.5  # of the script's speed: the ceiling is nearer than the walls
COLOURS = ("red", "brown", "yellow", "green", "teal", "blue", "purple", "pink")
HUE_ENDS = (0.03, 0.12, 0.19, 0.43, 0.53, 0.7, 0.82, 0.95)  # after the last one red again
UNSEEN = 1_000_000  # house numbers from here on are held out, whatever cfg.num_worlds is


def is_free(world: World, point: Tensor, clearance: float) -> bool:
    """Whether a camera at point [3] stays clear of every wall and block."""
    gap = gaps(world, point[:, None])[..., 0]  # [3, R]
    depth, box = gap.amin(0).max(0)
    if depth < 0:
        return False
    for axis in range(3):
        if gap[axis, box] < clearance:
            face = 6 * box + 2 * axis + int(point[axis] > world.middle[axis, box])
            u, v = _on_face(point[:, None], torch.tensor([axis]))
            u0, u1, v0, v1 = world.rect[:, face]
            within = u0 + clearance <= u <= u1 - clearance and v0 + clearance <= v <= v1 - clearance
            if world.leads_to[face] < 0 or not within:
                return False
    away = (point.repeat_interleave(NUM_BLOCKS) - world.block_middle[:, box]).abs() - world.block_half[:, box]
    return bool((away.view(3, NUM_BLOCKS) >= clearance).any(0).all())


def rotations(angles: Tensor) -> Tensor:
    """Camera-to-world [T, 3, 3] of yaw, pitch, roll [T, 3] in degrees: right, up and clockwise, from looking north."""
    yaw, pitch, roll = torch.deg2rad(angles).unbind(-1)
    return LOOKING_NORTH @ se3.axis_rotation(1, yaw) @ se3.axis_rotation(0, pitch) @ se3.axis_rotation(2, roll)


def _view(world: World, poses: Tensor) -> Tensor:
    """Metres of free view [T] in the middle of the picture at poses [T, 4, 4]."""
    origin, forward = poses[:, :3, 3].T.float(), poses[:, :3, 2].T.float()
    return cast(world, origin, forward, box_of(world, origin)).depth


def _start(world: World, cfg: Rooms, wing: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A free place [3] in a room of the wing, at the height of a head, and the widest of three views [3, 3] there."""
    area = (world.half[0] * world.half[1]).numpy() * [name == wing for name in world.wing]
    while True:
        box = rng.choice(len(area), p=area / area.sum())
        place = world.middle[:2, box] + world.half[:2, box] * torch.from_numpy(rng.uniform(-1, 1, 2))
        point = torch.tensor([*place, rng.uniform(1.2, 1.8)], dtype=torch.float64)
        if is_free(world, point, 2 * cfg.clearance_m):
            views = rotations(torch.from_numpy(rng.uniform((0, -8, 0), (360, 8, 0), (3, 3))))
            return point, views[_view(world, se3.pose(views, point)).argmax()]


def _slide(world: World, point: Tensor, step: Tensor, clearance: float) -> Tensor:
    """Where a step [3] from a point [3] ends: without the axes on which it would come too near to a wall or block."""
    if is_free(world, point + step, clearance):
        return point + step
    for axis in range(3):
        ahead = point + step * (torch.arange(3) == axis)
        point = ahead if is_free(world, ahead, clearance) else point
    return point


@_one_thread()
def walk(world: World, cfg: Rooms, wing: str, rng: np.random.Generator, num_frames: int) -> tuple[Tensor, float]:
    """A track [T, 4, 4] after a script, and the share of its frames that are held at a wall or look at one close up.

    The motion is the camera's own, as in geometry.actions. Its displacement is taken half-way through its turn, so that
    a script run backwards retraces the track. Walls stop what goes into them only: the camera slides along them."""
    motion = torch.from_numpy(script(rng, num_frames, walk_m_s=cfg.walk_m_s, turn_deg_s=cfg.turn_deg_s)) / cfg.fps
    forward, right, up, yaw, pitch, roll = motion.unbind(1)
    turn = torch.deg2rad(torch.stack([pitch, yaw, roll], 1))
    turns = zip(se3.exp(turn / 2), se3.exp(turn), torch.stack([right, -UP_SHARE * up, forward], 1), strict=True)
    level = torch.deg2rad(torch.tensor([cfg.max_roll_deg, cfg.max_pitch_deg])).sin()
    point, rotation = _start(world, cfg, wing, rng)
    track, num_held = [], 0
    for half_turn, full_turn, step in turns:
        track.append(se3.pose(rotation, point))
        held = bool(((rotation @ full_turn)[2, [0, 2]].abs() > level).any())
        if held:
            half_turn = full_turn = torch.eye(3, dtype=torch.float64)
        step = rotation @ half_turn @ step
        moved = _slide(world, point, step, cfg.clearance_m)
        num_held += held or bool((moved - point - step).abs().max() > 1e-6)
        point, rotation = moved, rotation @ full_turn
    poses = torch.stack(track)
    return poses, num_held / num_frames + float((_view(world, poses) < CLOSE_M).float().mean())


def _best_walk(world: World, cfg: Rooms, wing: str, rng: np.random.Generator, num_frames: int) -> Tensor:
    best = walk(world, cfg, wing, rng, num_frames)
    for _ in range(NUM_ATTEMPTS - 1):
        if best[1] <= cfg.max_spoilt_share:
            break
        best = min(best, walk(world, cfg, wing, rng, num_frames), key=lambda attempt: attempt[1])
    return best[0]


def _tags(world: World, poses: Tensor, frames: Tensor) -> tuple[str, ...]:
    """What the clip shows: kind, size and surfaces of the room it is mostly in, and its measured light and colour."""
    box = int(box_of(world, poses[:, :3, 3].T.float()).mode().values)
    hue, saturation, value = colorsys.rgb_to_hsv(*(frames.float().mean((0, 1, 2)) / 255).tolist())
    light = "dark" if value < 0.25 else "dim" if value < 0.4 else "bright" if value > 0.6 else "lit"
    colour = COLOURS[np.searchsorted(HUE_ENDS, hue) % len(COLOURS)] if saturation > 0.12 else "grey"
    return (*world.tags[box], light, colour)


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
        world, wing = build(cfg, place), "known" if region == "known" else "train"
        poses = _best_walk(world, cfg, wing, rng, num_frames)
        frames, depth = render(world, poses, intrinsics, cfg.height, cfg.width)
        yield Recording(
            frames=frames.numpy(),
            poses=poses.numpy(),
            intrinsics=intrinsics.numpy(),
            depth=depth.numpy(),
            fps=cfg.fps,
            world="rooms",
            place=f"house{place}",
            region=region,
            seed=seed,
            tags=_tags(world, poses, frames),
        )
