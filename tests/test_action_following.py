"""Actions read off an estimated track, against those that were asked for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from relic.evaluate import following
from relic.evaluate.config import Evaluate
from relic.geometry import actions, se3
from relic.geometry.config import Actions

CFG = Evaluate().following
UNIT = Actions(translation_dead_zone=0, rotation_dead_zone=0)


def track(motion: Tensor) -> Tensor:
    """Poses [T, 4, 4] of a signed motion [T, 6] in steps and degrees."""
    return actions.integrate(actions.magnitudes(motion), UNIT)


def script(*columns: int, num_frames: int = 240, seed: int = 0) -> Tensor:
    """Motion [T, 6] on some axes, each going one way, resting and going the other way for ten frames at a time."""
    generator, motion = torch.Generator().manual_seed(seed), torch.zeros(num_frames, 6, dtype=torch.float64)
    for column in columns:
        signs = torch.randint(-1, 2, (num_frames // 10,), generator=generator)
        motion[:, column] = signs.repeat_interleave(10).double() * (1.0 if column < 3 else 2.0)
    motion[0] = 0
    return motion


ALL = script(0, 1, 2, 3, 4, 5)
WALK_AND_PAN = script(0, 4)


def shaken(poses: Tensor, size: float) -> Tensor:
    noise = torch.randn(len(poses), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * size
    return se3.pose(poses[:, :3, :3], poses[:, :3, 3] + noise)


def test_an_exact_track_follows_on_every_axis() -> None:
    found = following.score([track(ALL)], [track(ALL)], CFG)
    assert found["balanced_accuracy"] == 1
    assert [axis["slope"] for axis in found["axes"].values()] == pytest.approx([1] * 6)
    assert found["cross_talk"] == np.eye(6).tolist()


def test_an_opposite_track_follows_nowhere() -> None:
    found = following.score([track(ALL)], [track(-ALL)], CFG)
    for axis in found["axes"].values():
        assert axis["balanced_accuracy"] == pytest.approx(1 / 3)  # at rest it is right
        assert axis["slope"] == pytest.approx(-1)
    assert np.diag(found["cross_talk"]).tolist() == [0] * 6


@pytest.mark.parametrize("frozen", [None, torch.eye(4).expand(240, 4, 4)])
def test_a_failed_estimate_and_a_frozen_video_are_at_chance(frozen: Tensor | None) -> None:
    for axis in following.score([track(ALL)], [frozen], CFG)["axes"].values():
        assert axis["balanced_accuracy"] == pytest.approx(axis["chance"]) == pytest.approx(1 / 3)
        assert axis["slope"] == 0


def test_rest_that_is_most_of_a_walk_does_not_make_doing_nothing_good() -> None:
    rare = torch.zeros(240, 6, dtype=torch.float64)
    rare[100:105, 0], rare[200:205, 0] = 1, -1
    assert following.score([track(rare)], [None], CFG)["balanced_accuracy"] == pytest.approx(1 / 3)


def test_an_axis_that_nobody_asked_for_has_no_figure() -> None:
    found = following.score([track(WALK_AND_PAN)], [track(ALL)], CFG)
    assert [name for name, axis in found["axes"].items() if axis] == ["forward", "pan_right"]
    assert found["cross_talk"][1] == [None] * 6


def test_nothing_asked_for_gives_no_score() -> None:
    found = following.score([track(torch.zeros(20, 6))], [track(ALL[:20])], CFG)
    assert found["balanced_accuracy"] is None
    assert set(found["axes"].values()) == {None}


def test_a_camera_at_half_speed_has_half_the_slope_and_the_right_signs() -> None:
    found = following.score([track(WALK_AND_PAN)], [track(WALK_AND_PAN / 2)], CFG)
    assert found["balanced_accuracy"] == 1
    assert [axis["slope"] for axis in found["axes"].values() if axis] == pytest.approx([0.5, 0.5])


def test_a_pan_that_drags_the_camera_sideways_is_cross_talk() -> None:
    dragged = WALK_AND_PAN.clone()
    dragged[:, 1] = 0.5 * WALK_AND_PAN[:, 4]
    found = following.score([track(WALK_AND_PAN)], [track(dragged)], CFG)["cross_talk"]
    assert found[4] == [0, 1, 0, 0, 1, 0]
    assert found[0][4] == 0


def test_noise_of_a_pure_pan_is_no_walk() -> None:
    pan = track(script(4))
    found = following.score([pan, track(WALK_AND_PAN)], [shaken(pan, 0.05), track(WALK_AND_PAN)], CFG)
    assert found["cross_talk"][4][:4] == [0, 0, 0, 0]
    assert found["balanced_accuracy"] == 1


def test_an_estimator_in_another_unit_is_read_in_the_references() -> None:
    poses = track(WALK_AND_PAN)
    small = se3.pose(poses[:, :3, :3], poses[:, :3, 3] / 50)
    found = following.score([poses], [small], CFG, unit=50)
    assert found["axes"]["forward"]["slope"] == pytest.approx(1)


def test_frames_of_all_clips_count_alike() -> None:
    """A clip that only walks forward cannot tell walking from resting; with one that rests it can."""
    walking, resting = torch.zeros(41, 6).double(), torch.zeros(21, 6).double()
    walking[1:, 0] = 1
    alone = following.score([track(walking)], [track(walking)], CFG)["axes"]["forward"]
    both = following.score([track(walking), track(resting)], [track(walking), track(walking[:21])], CFG)
    assert (alone["chance"], alone["active"]) == (1, 40)
    assert both["axes"]["forward"] == {"balanced_accuracy": 0.5, "chance": 0.5, "slope": pytest.approx(1), "active": 40}
