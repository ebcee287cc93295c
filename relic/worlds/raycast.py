"""A ray-caster in plain torch: true pitch and roll, and an exact depth, of the rooms in `house`.

A ray leaves its box through the nearest face and goes on in the next box while it meets mouths of passages; so a
picture costs two or three slab tests a ray, and there is no acceleration structure to explain. Rays are not normalised:
their camera z is 1, so the ray's parameter is the z-depth. Shapes: N rays or points, R boxes, P blocks a box.

On a CPU the index of a minimum costs ten times the minimum: the nearest face is the one whose depth equals it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from relic.geometry import camera
from relic.worlds.house import NUM_SURFACES, House, box_of
from relic.worlds.textures import look_up


class Hit(NamedTuple):
    depth: Tensor  # [N] in units of the ray
    axis: Tensor  # [N] of the surface's normal
    surface: Tensor  # [N] number of its box times NUM_SURFACES plus number in the box


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations here are small: a second thread costs more than it brings, ten times more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _slabs(middle: Tensor, half: Tensor, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [3, ..., N] at which rays enter and leave the three slabs of boxes."""
    inverse = 1 / (rays + 1e-9 * (rays == 0))  # never parallel to a slab: 0 times infinity would be no number
    centre, reach = (middle - origin) * inverse, half * inverse.abs()
    return centre - reach, centre + reach


def _on_face(points: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """u, v [N] of points [3, N] on faces with normals along axis [N]."""
    u, v = points.gather(0, torch.stack([axis == 0, 2 - (axis == 2).int()]).long())
    return u, v


def _which(matches: Tensor) -> Tensor:
    """The last true row [N] of matches [3, N], 0 if none is."""
    return torch.where(matches[2], 2, matches[1].long())


def _hit_blocks(house: House, origin: Tensor, rays: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest block of each ray's box: depth [N], inf if none, and the depths [3, P, N] and [P, N] that tell which."""
    middle, half = (t.index_select(1, box).unflatten(0, (3, -1)) for t in (house.block_middle, house.block_half))
    enter, leave = _slabs(middle, half, origin[:, None], rays[:, None])
    near = enter.amax(0)
    # 1e-3: a shadow ray starts on a block and must not meet it again
    near = near.masked_fill((near >= leave.amin(0)) | (near < 1e-3), math.inf)
    return near.amin(0), enter, near


def _leave_box(house: House, origin: Tensor, rays: Tensor, box: Tensor) -> tuple[Hit, Tensor]:
    """First surface of each ray inside its box [1 or N], and the box [N] it goes on in, -1 where it stops."""
    _, leave = _slabs(house.middle.index_select(1, box), house.half.index_select(1, box), origin, rays)
    depth = leave.amin(0)
    axis = _which(leave == depth)
    face = 2 * axis + (rays.gather(0, axis[None])[0] > 0)
    block_depth, enter, near = _hit_blocks(house, origin, rays, box)
    block = _which(near == block_depth)
    block_axis = _which(enter.gather(1, block.expand(3, 1, -1))[:, 0] == block_depth)
    u, v = _on_face(origin + depth * rays, axis)
    u0, v0, half_u, half_v = house.rect.index_select(1, 6 * box + face)
    in_rect = ((u - u0).abs() <= half_u) & ((v - v0).abs() <= half_v)
    blocked = block_depth < depth
    onward = house.leads_to.index_select(0, 6 * box + face).masked_fill(blocked | ~in_rect, -1)
    surface = NUM_SURFACES * box + torch.where(blocked, 12 + block, face + 6 * in_rect)
    return Hit(torch.minimum(depth, block_depth), torch.where(blocked, block_axis, axis), surface), onward


def cast(house: House, origin: Tensor, rays: Tensor, box: Tensor) -> Hit:
    """Follow rays [3, N] from origin [3, 1 or N], which lies in box [1 or N], to the first surface."""
    hit, onward = _leave_box(house, origin, rays, box)
    origin = origin.expand_as(rays)
    while len(going := (onward >= 0).nonzero()[:, 0]):
        start, ahead = origin.index_select(1, going), rays.index_select(1, going)
        step, further = _leave_box(house, start, ahead, onward.index_select(0, going))
        for field, values in zip((*hit, onward), (*step, further), strict=True):
            field.index_copy_(0, going, values)
    return hit


def _light(house: House, points: Tensor, rays: Tensor, hit: Hit) -> Tensor:
    """Light [3, N] at points: ambient, darker in the corners, plus one lamp a box that casts the blocks' shadows."""
    box = hit.surface // NUM_SURFACES
    lamp = house.lamp.index_select(1, box)
    to_lamp, (ambient, reach) = lamp[:3] - points, lamp[6:]
    distance2 = to_lamp.square().sum(0)
    normal = hit.axis[None]
    facing = -(to_lamp.gather(0, normal) * rays.gather(0, normal).sign())[0] * distance2.rsqrt()
    lit = _hit_blocks(house, points, to_lamp, box)[0] >= 1
    direct = lit * (0.15 + 0.85 * facing).clamp(min=0) / (1 + distance2 / reach.square())
    half = house.half.index_select(1, box)
    gap = half - (points - house.middle.index_select(1, box)).abs()
    near = (1 - gap / (0.4 * half).clamp(max=0.7)).clamp(min=0).square()
    corners = near.sum(0) - near.gather(0, normal)[0]
    return lamp[3:6] * (ambient * (1 - 0.45 * corners) + 0.9 * direct)


def _shade(house: House, origin: Tensor, rays: Tensor, hit: Hit, sample_width: float) -> Tensor:
    """Colour [3, N] in 0..1 of what the rays met; sample_width is a ray's width at depth 1."""
    points = origin + hit.depth * rays
    u, v = _on_face(points, hit.axis)
    material = house.material.index_select(1, hit.surface)
    pattern, u0, v0, half_u, half_v = material[:5]
    slant = rays.square().sum(0).sqrt() / rays.gather(0, hit.axis[None])[0].abs()
    footprint = hit.depth * sample_width * slant.clamp(max=16).sqrt()
    mix, value = look_up(pattern, (u - u0) / half_u / 2 + 0.5, (v - v0) / half_v / 2 + 0.5, footprint / half_v / 2)
    colour = torch.lerp(material[5:8], material[8:11], mix) * value
    return (colour * torch.maximum(_light(house, points, rays, hit), material[11])).clamp(0, 1)


@_one_thread()
@torch.no_grad()
def render(house: House, poses: Tensor, intrinsics: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T, H, W, 3], four samples a pixel, and the depth along z float32 [T, H, W] of the pixel centres.

    poses [T, 4, 4] camera-to-world, OpenCV axes; intrinsics [4] fx fy cx cy in pixels. ValueError for a pose in a wall.
    """
    intrinsics = intrinsics.float()
    centres = camera.rays(intrinsics, height, width).flatten(0, 1).T
    samples = camera.rays(2 * intrinsics, 2 * height, 2 * width).flatten(0, 1).T
    frames, depths = [], []
    # One frame at a time: its rays fit in the processor's cache, which is worth more than a larger batch.
    for pose, box in zip(poses.float(), box_of(house, poses[:, :3, 3].T.float()), strict=True):
        origin, rotation = pose[:3, 3:], pose[:3, :3]
        depths.append(cast(house, origin, rotation @ centres, box[None]).depth)
        rays = rotation @ samples
        colour = _shade(house, origin, rays, cast(house, origin, rays, box[None]), 0.5 / float(intrinsics[0]))
        pixels = reduce(colour, "c (h i w j) -> h w c", "mean", h=height, i=2, w=width, j=2)
        frames.append((255 * pixels + 0.5).byte())
    return torch.stack(frames), torch.stack(depths).view(-1, height, width)
