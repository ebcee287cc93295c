"""Facts about the world doom and its scripts of motion. Six short walks are recorded once for all tests."""

import sys

import numpy as np
import pytest

from relic.worlds import doom, game
from relic.worlds.config import Doom
from relic.worlds.walker import AXES, return_leg, script

CFG = Doom(
    train_maps=("freedoom2/MAP01", "freedoom1/E1M5"), unseen_maps=("freedoom2/MAP05",), walk_units=8.0, turn_deg=2.5
)
NUM_FRAMES = 33


@pytest.fixture(scope="module")
def walks():
    pytest.importorskip("vizdoom")
    return list(doom.record(CFG, region="train", seed=1, num_clips=6, num_frames=NUM_FRAMES))


def photometric_error(walk, *, gap=8, poses=None, focal=1.0):
    """Mean error of frames reprojected `gap` frames later. 3x3 neighbours may match: depth comes in 0.22 m steps."""
    poses, (fx, fy, cx, cy) = walk.poses if poses is None else poses, walk.intrinsics * [focal, focal, 1, 1]
    height, width = walk.depth.shape[1:]
    v, u = np.mgrid[:height, :width] + 0.5
    errors = []
    for i in range(4, len(poses) - gap, 4):
        z = walk.depth[i].astype(float)
        seen = np.isfinite(z)
        points = (np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], -1)[seen]) @ poses[i, :3, :3].T + poses[i, :3, 3]
        x, y, z = ((points - poses[i + gap, :3, 3]) @ poses[i + gap, :3, :3]).T
        z = np.maximum(z, 1e-3)
        column, row = np.floor(x / z * fx + cx), np.floor(y / z * fy + cy)
        inside = (z > 0.3) & (column >= 1) & (column < width - 1) & (row >= 1) & (row < height - 1)
        column, row = column[inside].astype(int), row[inside].astype(int)
        colour = walk.frames[i][seen][inside].astype(int)
        later, around = walk.frames[i + gap], [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        near = [abs(later[row + a, column + b] - colour).mean(-1) for a, b in around]
        errors.append(np.min(near, 0).mean())
    return np.mean(errors)


def mean_error(walks, **changes):
    return np.mean([photometric_error(walk, **changes) for walk in walks])


def test_recording_has_the_promised_shapes(walks):
    for walk in walks:
        assert walk.frames.shape == (NUM_FRAMES, 64, 96, 3)
        assert walk.frames.dtype == np.uint8
        assert walk.poses.shape == (NUM_FRAMES, 4, 4)
        assert walk.depth.shape == (NUM_FRAMES, 64, 96)
        assert walk.depth.dtype == np.float32
        assert walk.intrinsics.tolist() == [48, 48, 48, 32]
        assert {"indoor", "outdoor"} & set(walk.tags)


def test_a_clip_does_not_depend_on_where_recording_starts(walks):
    (resumed,) = doom.record(CFG, region="train", seed=1, num_clips=1, num_frames=NUM_FRAMES, start=4)
    assert resumed.place == walks[4].place
    np.testing.assert_array_equal(resumed.frames, walks[4].frames)
    np.testing.assert_array_equal(resumed.poses, walks[4].poses)


def test_depth_reprojects_by_the_poses(walks):
    still = [np.broadcast_to(walk.poses[:1], walk.poses.shape) for walk in walks]
    without_motion = np.mean([photometric_error(walk, poses=pose) for walk, pose in zip(walks, still, strict=True)])
    assert mean_error(walks) < 0.35 * without_motion


def test_pose_and_frame_are_of_the_same_tic(walks):
    true = mean_error(walks, gap=4)
    for shift in (-1, 1):
        other = np.clip(np.arange(NUM_FRAMES) + shift, 0, NUM_FRAMES - 1)
        late = [photometric_error(walk, gap=4, poses=walk.poses[other]) for walk in walks]
        assert true < 0.8 * np.mean(late)


def test_field_of_view_is_90_degrees(walks):
    assert mean_error(walks) < min(mean_error(walks, focal=0.85), mean_error(walks, focal=1.18))


def test_camera_stays_level(walks):
    for walk in walks:
        np.testing.assert_array_equal(walk.poses[:, :3, 1], np.tile([0, 0, -1.0], (NUM_FRAMES, 1)))
        np.testing.assert_allclose(np.linalg.det(walk.poses[:, :3, :3]), 1)


def test_a_place_seen_again_looks_the_same(walks):
    """Pairs of frames ten or more apart whose poses agree to 2 cm and 0.1 degrees."""
    differences = []
    for walk in walks:
        apart = np.linalg.norm(walk.poses[:, None, :3, 3] - walk.poses[None, :, :3, 3], axis=-1)
        turned = np.linalg.norm(walk.poses[:, None, :3, 2] - walk.poses[None, :, :3, 2], axis=-1)
        for i, j in np.argwhere((apart < 0.02) & (turned < 0.002)):
            if j - i >= 10:
                differences.append(abs(walk.frames[i].astype(int) - walk.frames[j]).mean())
    assert len(differences) >= 1
    assert max(differences) < 3


def test_nothing_moves_while_the_visitor_stands():
    pytest.importorskip("vizdoom")
    with doom.Games(CFG) as games:
        for place, start in (("freedoom2/MAP01", 7), ("freedoom1/E1M5", 20)):
            body = games.of(place)
            where = body.enter(place.split("/")[1], doom._starts(place, 56.0)[start], 30)
            first = body.screen()[0].copy()
            for _ in range(20):
                body.move_to(where[:2], where[3])
            np.testing.assert_array_equal(body.screen()[0], first)


def test_regions_are_disjoint(walks):
    points = np.random.default_rng(0).uniform(-4000, 4000, (2000, 2))
    train, known = (doom.in_region(CFG, "freedoom2/MAP01", region, points) for region in ("train", "known"))
    assert (train != known).all()
    assert 0.15 < known.mean() < 0.35
    for walk in walks:
        assert doom.in_region(CFG, walk.place, "train", walk.poses[:, :2, 3] * 32).all()


def test_known_walks_stay_in_known_squares():
    pytest.importorskip("vizdoom")
    (walk,) = doom.record(CFG, region="known", seed=0, num_clips=1, num_frames=17)
    assert doom.in_region(CFG, walk.place, "known", walk.poses[:, :2, 3] * 32).all()


def test_motions_are_balanced():
    axes = ("forward", "right", "yaw")
    motion = np.concatenate([script(np.random.default_rng(seed), 61, axes) for seed in range(600)])
    columns = motion[:, [AXES.index(axis) for axis in axes]] / [1.5, 1.5, 28]
    shares = np.concatenate([(columns > 0.1).mean(0), (columns < -0.1).mean(0)])
    assert shares.min() > 0.75 * shares.max()


def test_a_returning_script_is_planned_back_to_its_start():
    pytest.importorskip("vizdoom")
    seed = next(seed for seed in range(40) if return_leg(doom._script(CFG, np.random.default_rng(seed), 61)))
    motion = doom._script(CFG, np.random.default_rng(seed), 61)
    leg = return_leg(motion)
    for attempt in range(40):
        try:
            points, angles = doom.plan(CFG, "freedoom1/E1M5", "train", np.random.default_rng(attempt), motion)
        except doom.Rejected:
            continue
        np.testing.assert_allclose(points[: leg + 1], points[leg : 2 * leg + 1][::-1], atol=1e-9)
        np.testing.assert_allclose(angles[0], angles[2 * leg], atol=1e-9)
        return
    pytest.fail("no start has room for the script")


def test_one_script_in_four_comes_back():
    scripts = [script(np.random.default_rng(seed), 61, ("forward", "yaw")) for seed in range(400)]
    legs = [return_leg(motion) for motion in scripts]
    assert 0.18 < np.mean([leg > 0 for leg in legs]) < 0.32
    for motion, leg in zip(scripts, legs, strict=True):
        np.testing.assert_allclose(motion[: 2 * leg].sum(0), 0, atol=1e-9)


def test_speed_changes_smoothly_from_rest_to_rest():
    for seed in range(50):
        motion = script(np.random.default_rng(seed), 61, walk_m_s=1.0, turn_deg_s=1.0)
        assert abs(np.diff(motion, axis=0)).max() < 0.75
        assert abs(motion[[0, -2]]).max() < 0.15


@pytest.mark.parametrize(
    ("place", "words"), [("freedoom2/MAP99", "no map 'MAP99'; it has MAP01"), ("doom2/MAP01", "freedoom1/ExMy")]
)
def test_unknown_map_is_named(place, words):
    pytest.importorskip("vizdoom")
    with pytest.raises(ValueError, match=words):
        next(doom.record(Doom(train_maps=(place,)), region="train", seed=0, num_clips=1, num_frames=9))


def test_unknown_region_and_axis_are_named():
    with pytest.raises(ValueError, match="'test'; it must be one of"):
        next(doom.record(CFG, region="test", seed=0, num_clips=1, num_frames=9))
    with pytest.raises(ValueError, match="sideways"):
        script(np.random.default_rng(0), 9, ("sideways",))


def test_missing_vizdoom_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(ImportError, match=r"relic\[worlds\]"):
        game.vizdoom()
