"""The ray-caster: exact depth, true rotations, closed walls."""

import pytest
import torch
import torch.nn.functional as F

from relic.geometry import camera, se3
from relic.worlds.config import Rooms
from relic.worlds.house import NUM_BLOCKS, box_of, build
from relic.worlds.raycast import cast, render
from relic.worlds.rooms import rotations

INTRINSICS = torch.tensor([48.0, 48.0, 48.0, 32.0])
MOVED = (0.4, 0.1, 0.1)


@pytest.fixture(scope="module")
def house():
    return build(Rooms(), 0)


def look(house, angles, offset=(0.0, 0.0, 0.0)):
    """A camera in a corner of a room, turned by yaw, pitch and roll in degrees; 45 degrees look at the other corner."""
    corner = house.middle[:, 5].double() + house.half[:, 5] * torch.tensor([-0.7, -0.7, 0])
    return se3.pose(rotations(torch.tensor(angles, dtype=torch.float64)), corner + torch.tensor(offset))


def shoot(house, *poses, intrinsics=INTRINSICS, height=64, width=96):
    frames, depth = render(house, torch.stack(poses), intrinsics, height, width)
    return frames.float(), depth


def unproject(depth, pose):
    """World points [3, H * W] of a depth [H, W] seen from a pose."""
    rays = camera.rays(INTRINSICS.to(pose), *depth.shape).flatten(0, 1).T
    return pose[:3, 3:] + pose[:3, :3] @ rays * depth.flatten()


def seen_from(house, pose, points):
    """Which points [3, N] a camera sees, by a ray to each of them, and their pixels [N, 2]."""
    x, y, depth = pose[:3, :3].T @ (points - pose[:3, 3:])
    fx, fy, cx, cy = INTRINSICS
    pixels = torch.stack([fx * x / depth + cx, fy * y / depth + cy], -1)
    in_picture = (depth > 0) & ((pixels >= 0) & (pixels < torch.tensor([96, 64]))).all(1)
    eye = pose[:3, 3:].float()
    return in_picture & (cast(house, eye, points.float() - eye, box_of(house, eye)).depth > 1 - 1e-3), pixels


def warp_error(house, a, b, claimed):
    """Mean colour difference (0..255) of picture a and, where its depth leads in picture b, said to be at `claimed`."""
    frames, depth = shoot(house, a, b)
    seen, pixels = seen_from(house, claimed, unproject(depth[0], a))
    grid = (2 * pixels / torch.tensor([96, 64]) - 1).float()
    carried = F.grid_sample(frames[1].permute(2, 0, 1)[None], grid[None, None], align_corners=False)[0, :, 0].T
    return float((carried - frames[0].flatten(0, 1)).abs()[seen].mean()), float(seen.float().mean())


def test_depth_carries_one_picture_onto_another(house):
    a, b = look(house, (45, 0, 0)), look(house, (38, -4, 6), MOVED)
    error, share = warp_error(house, a, b, claimed=b)
    assert share > 0.5
    assert error < 5


def test_a_wrong_pose_is_noticed(house):
    a, b = look(house, (45, 0, 0)), look(house, (38, -4, 6), MOVED)
    right = warp_error(house, a, b, claimed=b)[0]
    assert warp_error(house, a, b, claimed=look(house, (35, -4, 6), MOVED))[0] > 2 * right
    assert warp_error(house, a, b, claimed=look(house, (38, -4, 6), (0.2, 0.1, 0.1)))[0] > 2 * right


def test_seen_points_lie_on_walls_and_blocks(house):
    pose = look(house, (45, 10, 20))
    points = unproject(shoot(house, pose)[1][0], pose)
    gap = house.half[..., None] - (points[:, None] - house.middle[..., None]).abs()  # [3, R, N], negative outside
    wall = gap.abs().amin(0).masked_fill(gap.amin(0) < -1e-3, 9).amin(0)
    middle, half = (
        table.view(3, NUM_BLOCKS, -1).flatten(1)[..., None] for table in (house.block_middle, house.block_half)
    )
    block = ((points[:, None] - middle).abs() - half).amax(0).abs().amin(0)
    assert torch.minimum(wall, block).max() < 1e-3


def test_a_pan_keeps_the_range_of_every_point(house):
    a, b = look(house, (45, 0, 0)), look(house, (60, 0, 0))
    depth = shoot(house, a, b)[1].double()
    points = unproject(depth[0], a)
    seen, pixels = seen_from(house, b, points)
    x, y = pixels[seen].floor().long().T
    there = unproject(depth[1], b).view(3, 64, 96)[:, y, x]
    ranges = [(p - a[:3, 3:]).norm(dim=0) for p in (points[:, seen], there)]
    assert seen.float().mean() > 0.5
    assert ((ranges[0] - ranges[1]).abs() / ranges[0]).median() < 0.01  # they are up to half a pixel apart


def test_a_roll_turns_the_picture(house):
    square = {"intrinsics": torch.tensor([24.0, 24, 24, 24]), "height": 48, "width": 48}
    frames, depth = shoot(house, look(house, (45, 10, 0)), look(house, (45, 10, 90)), **square)
    assert (torch.rot90(frames[0]) - frames[1]).abs().mean() < 0.5
    torch.testing.assert_close(torch.rot90(depth[0]), depth[1], atol=1e-4, rtol=1e-4)


def test_four_samples_a_pixel_are_enough(house):
    pose = look(house, (45, 0, 0))
    small, large = shoot(house, pose)[0][0], shoot(house, pose, intrinsics=4 * INTRINSICS, height=256, width=384)[0][0]
    area = F.avg_pool2d(large.permute(2, 0, 1), 4).permute(1, 2, 0)
    assert (small - area).abs().mean() < 4


def test_a_wall_hides_what_is_behind_it(house):
    pose = look(house, (45, 0, 0))
    near = unproject(shoot(house, pose)[1][0], pose)
    behind = pose[:3, 3:] + 1.05 * (near - pose[:3, 3:])
    assert seen_from(house, pose, near)[0].all()
    assert not seen_from(house, pose, behind)[0].any()


def test_a_ray_cast_from_where_it_passed_ends_where_it_ended(house):
    pose = look(house, (45, 5, 0))
    eye, rays = pose[:3, 3:].float(), (pose[:3, :3] @ camera.rays(INTRINSICS.double(), 64, 96).flatten(0, 1).T).float()
    whole = cast(house, eye, rays, box_of(house, eye))
    start = eye + 0.5 * whole.depth * rays
    rest = cast(house, start, rays, box_of(house, start))
    torch.testing.assert_close(rest.depth, 0.5 * whole.depth, atol=1e-3, rtol=1e-3)
    assert (rest.surface == whole.surface).float().mean() > 0.999  # a ray into an edge may change its mind


def test_a_pose_in_a_wall_is_refused(house):
    with pytest.raises(ValueError, match="lies in a wall"):
        shoot(house, se3.pose(torch.eye(3), torch.full((3,), -5.0)))
