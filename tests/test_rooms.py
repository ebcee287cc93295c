"""Recorded walks: reproducible, clear of walls, in the region they were asked for."""

import dataclasses

import numpy as np
import pytest
import torch

from relic.geometry import camera
from relic.worlds import rooms
from relic.worlds.config import Rooms
from relic.worlds.house import box_of, build, is_free

CFG = Rooms(num_worlds=2)


def clips(region: str, **kwargs):
    return list(rooms.record(CFG, region=region, seed=5, num_frames=9, **kwargs))


@pytest.fixture(scope="module")
def recorded():
    return {
        "train": clips("train", num_clips=3),
        "known": clips("known", num_clips=3),
        "unseen": clips("unseen", num_clips=2),
    }


def house_of(clip):
    return build(CFG, int(clip.place.removeprefix("house")))


def test_a_clip_depends_on_its_index_alone(recorded):
    (again,) = clips("train", start=2, num_clips=1)
    for field in dataclasses.fields(again):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(recorded["train"][2], field.name))
    assert not np.array_equal(recorded["train"][1].frames, again.frames)


def test_a_positive_pitch_looks_up_and_a_positive_yaw_right():
    forward = rooms.rotations(torch.tensor([[0.0, 0, 0], [90, 0, 0], [0, 90, 0]], dtype=torch.float64))[:, :, 2]
    torch.testing.assert_close(forward, torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))


def test_cameras_keep_clear_of_walls_and_blocks(recorded):
    for clip in (*recorded["train"], *recorded["known"], *recorded["unseen"]):
        house = house_of(clip)
        assert clip.depth.min() > 0.1
        assert all(is_free(house, torch.from_numpy(pose[:3, 3]), CFG.clearance_m - 1e-3) for pose in clip.poses)


def test_train_and_known_are_two_wings_of_the_same_houses(recorded):
    for region in ("train", "known"):
        for clip in recorded[region]:
            house = house_of(clip)
            boxes = box_of(house, torch.from_numpy(clip.poses[:, :3, 3].T).float())
            assert (house.known[boxes] == (region == "known")).all()
            assert 0 <= int(clip.place.removeprefix("house")) < CFG.num_worlds


def test_unseen_houses_are_others(recorded):
    places = {region: {clip.place for clip in found} for region, found in recorded.items()}
    assert not places["unseen"] & (places["train"] | places["known"])


def test_an_unknown_region_is_refused():
    with pytest.raises(ValueError, match="region is 'moon'"):
        next(rooms.record(CFG, region="moon", seed=0, num_clips=1, num_frames=2))


def test_a_recording_has_the_promised_types(recorded):
    clip = recorded["train"][0]
    assert clip.frames.shape == (9, CFG.height, CFG.width, 3)
    assert (clip.frames.dtype, clip.poses.dtype, clip.depth.dtype) == (np.uint8, np.float64, np.float32)
    rotation = torch.from_numpy(clip.poses[:, :3, :3])
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(9, 3, 3))
    assert camera.rays(torch.from_numpy(clip.intrinsics), CFG.height, CFG.width)[32, 48].norm() < 1.01


def test_a_script_run_backwards_retraces_the_track(monkeypatch):
    away = np.random.default_rng(0).uniform(-1, 1, (8, 6)) * [0.2, 0.2, 0.2, 20, 5, 5]
    there_and_back = np.concatenate([away, -away[::-1], np.zeros((1, 6))])
    monkeypatch.setattr(rooms, "script", lambda *args, **kwargs: there_and_back)
    poses, spoilt = rooms.walk(build(CFG, 0), CFG, "train", np.random.default_rng(1), 17)
    assert spoilt == 0
    assert (poses[8] - poses[0]).abs().max() > 0.01
    torch.testing.assert_close(poses, poses.flip(0))
