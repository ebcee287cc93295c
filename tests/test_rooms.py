"""The procedural house: exact geometry, true rotations, closed walls, separate regions."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relic.geometry import camera, se3
from relic.worlds import rooms
from relic.worlds.config import Rooms

CFG = Rooms(num_worlds=2)
INTRINSICS = torch.tensor([48.0, 48.0, 48.0, 32.0])


def clips(region: str, **kwargs):
    return list(rooms.record(CFG, region=region, seed=5, num_frames=9, **kwargs))


@pytest.fixture(scope="module")
def train():
    return clips("train", num_clips=3)


@pytest.fixture(scope="module")
def house():
    return rooms.build(CFG, 0)


def look(house, angles, box=5, offset=(0.0, 0.0, 0.0)):
    """A camera near the middle of a box, yaw, pitch and roll in degrees."""
    middle = house.middle[:, box].double() + house.half[:, box] * torch.tensor([-0.7, -0.7, 0])
    return se3.pose(rooms.rotations(torch.tensor(angles, dtype=torch.float64)), middle + torch.tensor(offset))


def shoot(house, *poses, intrinsics=INTRINSICS, height=64, width=96):
    frames, depth = rooms.render(house, torch.stack(poses), intrinsics, height, width)
    return frames.float(), depth


def warp_error(house, a, b, claimed):
    """Mean colour difference (0..255) of picture a and, where its depth leads in picture b, said to be at `claimed`."""
    frames, depth = shoot(house, a, b)
    points = rooms.unproject(depth[0], a, INTRINSICS)
    seen, pixels = rooms.visible(house, points, claimed, INTRINSICS, 64, 96)
    grid = (2 * pixels / torch.tensor([96, 64]) - 1).float()
    carried = F.grid_sample(frames[1].permute(2, 0, 1)[None], grid[None, None], align_corners=False)[0, :, 0].T
    return float((carried - frames[0].flatten(0, 1)).abs()[seen].mean()), float(seen.float().mean())


def test_a_clip_depends_on_its_index_alone(train):
    (again,) = clips("train", start=2, num_clips=1)
    for field in dataclasses.fields(again):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(train[2], field.name))
    assert not np.array_equal(train[1].frames, train[2].frames)


def test_depth_carries_one_picture_onto_another(house):
    a, b = look(house, (45, 0, 0)), look(house, (38, -4, 6), offset=(0.4, 0.1, 0.1))
    error, share = warp_error(house, a, b, claimed=b)
    assert share > 0.5
    assert error < 5


def test_a_wrong_pose_is_noticed(house):
    a, b = look(house, (45, 0, 0)), look(house, (38, -4, 6), offset=(0.4, 0.1, 0.1))
    turned, moved = look(house, (35, -4, 6), offset=(0.4, 0.1, 0.1)), look(house, (38, -4, 6), offset=(0.2, 0.1, 0.1))
    right = warp_error(house, a, b, claimed=b)[0]
    assert warp_error(house, a, b, claimed=turned)[0] > 2 * right
    assert warp_error(house, a, b, claimed=moved)[0] > 2 * right


def test_seen_points_lie_on_walls_and_blocks(house):
    pose = look(house, (45, 10, 20))
    points = rooms.unproject(shoot(house, pose)[1][0], pose, INTRINSICS)
    wall = rooms.gaps(house, points).abs()
    inside = rooms.gaps(house, points).amin(0) > -1e-3  # [R, N]
    blocks = [table.view(3, -1, 1) for table in (house.block_middle, house.block_half)]
    block = ((points[:, None] - blocks[0]).abs() - blocks[1]).amax(0).abs().amin(0)
    assert torch.minimum(wall.amin(0).masked_fill(~inside, 9).amin(0), block).max() < 1e-3


def test_a_pan_keeps_the_range_of_every_point(house):
    a, b = look(house, (45, 0, 0)), look(house, (60, 0, 0))
    depth = shoot(house, a, b)[1].double()
    points = rooms.unproject(depth[0], a, INTRINSICS)
    seen, pixels = rooms.visible(house, points, b, INTRINSICS, 64, 96)
    x, y = pixels[seen].floor().long().T
    there = rooms.unproject(depth[1], b, INTRINSICS).view(3, 64, 96)[:, y, x]
    ranges = [(p - a[:3, 3:]).norm(dim=0) for p in (points[:, seen], there)]
    assert seen.float().mean() > 0.5
    assert ((ranges[0] - ranges[1]).abs() / ranges[0]).median() < 0.01  # they are up to half a pixel apart


def test_a_roll_turns_the_picture(house):
    square = {"intrinsics": torch.tensor([24.0, 24, 24, 24]), "height": 48, "width": 48}
    frames, depth = shoot(house, look(house, (45, 10, 0)), look(house, (45, 10, 90)), **square)
    assert (torch.rot90(frames[0]) - frames[1]).abs().mean() < 0.5
    torch.testing.assert_close(torch.rot90(depth[0]), depth[1], atol=1e-4, rtol=1e-4)


def test_a_positive_pitch_looks_up_and_a_positive_yaw_right(house):
    forward = rooms.rotations(torch.tensor([[0.0, 0, 0], [90, 0, 0], [0, 90, 0]], dtype=torch.float64))[:, :, 2]
    torch.testing.assert_close(forward, torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))


def test_four_samples_a_pixel_are_enough(house):
    pose = look(house, (45, 0, 0))
    small, large = shoot(house, pose)[0][0], shoot(house, pose, intrinsics=4 * INTRINSICS, height=256, width=384)[0][0]
    area = F.avg_pool2d(large.permute(2, 0, 1), 4).permute(1, 2, 0)
    assert (small - area).abs().mean() < 4


def test_a_wall_hides_what_is_behind_it(house):
    pose = look(house, (45, 0, 0))
    near = rooms.unproject(shoot(house, pose)[1][0], pose, INTRINSICS)
    behind = pose[:3, 3:] + 1.05 * (near - pose[:3, 3:])
    assert rooms.visible(house, near, pose, INTRINSICS, 64, 96)[0].all()
    assert not rooms.visible(house, behind, pose, INTRINSICS, 64, 96)[0].any()


def test_cameras_keep_clear_of_walls_and_blocks(train):
    for clip in train + clips("unseen", num_clips=2):
        house = rooms.build(CFG, int(clip.place.removeprefix("house")))
        assert clip.depth.min() > 0.1
        assert all(rooms.is_free(house, torch.from_numpy(pose[:3, 3]), CFG.clearance_m - 1e-3) for pose in clip.poses)


def test_regions_share_no_room_and_no_view(train):
    wings = {"train": train, "known": clips("known", num_clips=3)}
    for region, recorded in wings.items():
        for clip in recorded:
            house = rooms.build(CFG, int(clip.place.removeprefix("house")))
            boxes = rooms.box_of(house, torch.from_numpy(clip.poses[:, :3, 3].T).float())
            assert {house.wing[box] for box in boxes} == {region}
            behind = house.leads_to.view(-1, 6)
            assert all(house.wing[a] == house.wing[b] for a, row in enumerate(behind) for b in row if b >= 0)
    assert not {clip.place for clip in clips("unseen", num_clips=2)} & {clip.place for clip in train}


def test_a_pose_in_a_wall_and_an_unknown_region_are_refused(house):
    with pytest.raises(ValueError, match="lies in a wall"):
        shoot(house, se3.pose(torch.eye(3), torch.full((3,), -5.0)))
    with pytest.raises(ValueError, match="region is 'moon'"):
        next(rooms.record(CFG, region="moon", seed=0, num_clips=1, num_frames=2))


def test_a_recording_has_the_promised_types(train):
    clip = train[0]
    assert clip.frames.shape == (9, CFG.height, CFG.width, 3)
    assert (clip.frames.dtype, clip.poses.dtype, clip.depth.dtype) == (np.uint8, np.float64, np.float32)
    rotation = torch.from_numpy(clip.poses[:, :3, :3])
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(9, 3, 3))
    assert camera.rays(torch.from_numpy(clip.intrinsics), CFG.height, CFG.width)[32, 48].norm() < 1.01


def test_a_script_run_backwards_retraces_the_track(house, monkeypatch):
    away = np.random.default_rng(0).uniform(-1, 1, (8, 6)) * [0.2, 0.2, 0.2, 20, 5, 5]
    there_and_back = np.concatenate([away, -away[::-1], np.zeros((1, 6))])
    monkeypatch.setattr(rooms, "script", lambda *args, **kwargs: there_and_back)
    poses, spoilt = rooms.walk(house, CFG, "train", np.random.default_rng(1), 17)
    assert spoilt == 0
    assert (poses[8] - poses[0]).abs().max() > 0.01
    torch.testing.assert_close(poses, poses.flip(0))


@pytest.mark.parametrize("wrong", [{"fov_deg": 180.0}, {"rooms_a_side": 1}, {"min_room_m": 8.0}, {"clearance_m": 0.7}])
def test_impossible_houses_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Rooms(**wrong)
