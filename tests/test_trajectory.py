"""Errors of estimated tracks: what a good one, a frozen one, a drifting one and a broken one get."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import track as synthetic_track
from torch import Tensor

from relic.evaluate import trajectory
from relic.evaluate.config import Trajectory
from relic.evaluate.trajectory import FAILED, NOT_APPLICABLE, OK, Errors, Quantity
from relic.geometry import se3

CFG = Trajectory()
FREE = Trajectory(scale_range=(0, math.inf), noise_floor=0)
TURNS = 2 * np.sin(np.arange(316) / 20)  # degrees a frame: left and right in turn


def track(turns: np.ndarray, step: float = 1.0) -> Tensor:
    """Poses [T, 4, 4] far from the origin: each frame turns right by turns [T-1] degrees and goes `step` forward."""
    return torch.from_numpy(synthetic_track(turns, step, origin=(5, -2, 9)))


def moved(poses: Tensor, offsets: Tensor) -> Tensor:
    """Poses [T, 4, 4] shifted by offsets [T, 3] in the world."""
    return se3.pose(poses[:, :3, :3], poses[:, :3, 3] + offsets)


def noise(size: float, num_frames: int = 317, seed: int = 0) -> Tensor:
    return torch.randn(num_frames, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * size


STRAIGHT, CURVED, PAN = track(np.zeros(316)), track(TURNS), track(np.full(316, 3.0), step=0)
STILL = track(np.zeros(316), step=0)


def values(reference: Tensor, estimate: Tensor, cfg: Trajectory = CFG) -> dict[str, float]:
    """The figures that are ok."""
    found = trajectory.compare(reference, estimate, cfg).quantities
    return {name: q.value for name, q in found.items() if q.value is not None}


@pytest.mark.parametrize("reference", [STRAIGHT, CURVED, PAN, STILL])
def test_a_track_agrees_with_itself(reference: Tensor) -> None:
    found = trajectory.compare(reference, reference, CFG).quantities.values()
    assert all(q.value == pytest.approx(0, abs=1e-6) for q in found if q.status == OK and q.nothing)


def test_errors_of_a_hand_made_track() -> None:
    """Two steps of length 2 forward; the estimate goes forward and then right, and turns right by 90 degrees."""
    reference = moved(torch.eye(4).double().expand(3, 4, 4), torch.tensor([[0, 0, 0], [0, 0, 2], [0, 0, 4.0]]))
    right = se3.axis_rotation(1, torch.tensor([0, 0, math.pi / 2], dtype=torch.float64))
    estimate = se3.pose(right, torch.tensor([[0, 0, 0], [0, 0, 2], [2, 0, 2.0]], dtype=torch.float64))
    found = values(reference, estimate, replace(CFG, distances=(1, 2)))
    assert found["rpe_t_1"] == pytest.approx((0 + math.sqrt(2)) / 2)  # (2, 0, 0) in place of (0, 0, 2), steps of 2
    assert found["rpe_r_1"] == pytest.approx((0 + 90) / 2)
    assert found["rpe_t_2"] == pytest.approx(math.sqrt(2))  # (2, 0, 2) in place of (0, 0, 4)
    assert found["rpe_r_2"] == pytest.approx(90)
    assert found["ate"] == pytest.approx(math.sqrt(2 / 3) / 2)  # s = 3 / sqrt(8) leaves 8 - 6 of the squares


def test_doing_nothing_is_as_far_off_as_the_reference_moves() -> None:
    found = trajectory.compare(track(np.full(60, 3.0), step=2), track(np.full(60, 3.0), step=2), CFG).quantities
    assert found["rpe_t_1"].nothing == pytest.approx(1)
    assert found["rpe_r_16"].nothing == pytest.approx(48)


def test_an_exactly_straight_dolly_is_accepted() -> None:
    found = trajectory.compare(STRAIGHT, 2 * STRAIGHT - torch.diag(torch.tensor([1, 1, 1, 1.0])).double(), CFG)
    assert {q.status for name, q in found.quantities.items() if "drift" not in name} == {OK}
    assert found.scale == pytest.approx(0.5)


@pytest.mark.parametrize(("cfg", "factor"), [(CFG, 0.3), (CFG, 4.0), (FREE, 1e-4), (FREE, 1e4)])
def test_the_size_of_an_estimate_changes_nothing(cfg: Trajectory, factor: float) -> None:
    estimate = moved(CURVED, noise(0.3))
    scaled = se3.pose(estimate[:, :3, :3], factor * estimate[:, :3, 3])
    assert values(CURVED, scaled, cfg) == pytest.approx(values(CURVED, estimate, cfg), rel=1e-6)


def test_a_rigid_motion_of_an_estimate_changes_nothing() -> None:
    estimate = moved(CURVED, noise(0.3))
    elsewhere = se3.pose(se3.exp(torch.tensor([0.4, -2.0, 1.0]).double()), torch.tensor([50.0, 3.0, -8.0]).double())
    assert values(CURVED, elsewhere @ estimate) == pytest.approx(values(CURVED, estimate), rel=1e-6)


def test_a_loop_that_returns_is_measured_like_any_track() -> None:
    loop = track(np.full(360, 1.0))
    assert (loop[0, :3, 3] - loop[-1, :3, 3]).norm() < 1e-6
    found = trajectory.compare(loop, moved(loop, noise(0.01, 361)), CFG)
    assert found.scale == pytest.approx(1, abs=0.01)
    assert found.quantities["rpe_t_1"].value == pytest.approx(0.01 * math.sqrt(2) * 1.6, rel=0.05)


def test_drift_under_a_pure_pan_is_no_perfect_score() -> None:
    drifting = moved(PAN, torch.arange(317)[:, None] * torch.tensor([0.0, 0.0, 0.2]))
    found = trajectory.compare(PAN, drifting, CFG).quantities
    assert {found[name].status for name in ("rpe_t_1", "rpe_t_16_median", "ate")} == {NOT_APPLICABLE}
    assert found["drift_1"].value == pytest.approx(0.2)
    assert found["drift_16"].value == pytest.approx(3.2)
    assert found["rpe_r_1"].value == pytest.approx(0, abs=1e-6)


def test_drift_is_no_figure_of_a_reference_that_moves() -> None:
    assert trajectory.compare(CURVED, CURVED, CFG).quantities["drift_1"].status == NOT_APPLICABLE


@pytest.mark.parametrize("size", [0, 1e-3, 2e-2])
def test_a_frozen_video_has_failed_in_translation_and_is_judged_in_rotation(size: float) -> None:
    found = trajectory.compare(CURVED, moved(STILL, noise(size)), CFG).quantities
    assert (found["rpe_t_1"].status, found["ate"].status) == (FAILED, FAILED)
    assert "of the reference's; up to 0.05 it is noise" in found["rpe_t_1"].reason
    assert found["rpe_t_1"].nothing == pytest.approx(1)
    assert found["rpe_r_1"].value == found["rpe_r_1"].nothing == pytest.approx(np.abs(TURNS).mean())


def test_a_frozen_video_with_jitter_above_the_noise_floor_fails_by_its_scale() -> None:
    found = trajectory.compare(CURVED, moved(STILL, noise(0.5)), CFG)
    assert found.scale is None
    assert "0.2 to 5 is allowed" in found.quantities["rpe_t_1"].reason


def test_a_camera_that_goes_the_other_way_is_wrong_and_not_rescaled() -> None:
    found = trajectory.compare(STRAIGHT, track(np.zeros(316), step=-1), CFG)
    assert found.scale == pytest.approx(1)
    assert found.quantities["rpe_t_1"].value == pytest.approx(2)


@pytest.mark.parametrize("size", [20, 1000])
def test_a_jump_of_ten_frames_is_seen_in_the_mean_and_not_in_the_median(size: float) -> None:
    jump = torch.zeros(317, 3)
    jump[150:160, 0] = size
    found = trajectory.compare(CURVED, moved(CURVED, jump), CFG)
    assert found.scale == pytest.approx(1)
    assert found.quantities["rpe_t_1"].value == pytest.approx(2 * size / 316, rel=0.01)
    assert found.quantities["rpe_t_1_median"].value == pytest.approx(0, abs=1e-9)


def test_a_camera_that_stops_half_way_keeps_its_scale() -> None:
    stopped = moved(STRAIGHT[torch.arange(317).clamp(max=140)], noise(1e-3))
    found = trajectory.compare(STRAIGHT, stopped, CFG)
    assert found.scale == pytest.approx(1, abs=1e-3)
    assert found.quantities["rpe_t_1"].value == pytest.approx(176 / 316, abs=2e-3)


def test_a_camera_that_moves_only_while_it_should_rest_has_failed() -> None:
    times = torch.arange(317)
    found = trajectory.compare(STRAIGHT[times.clamp(max=100)], STRAIGHT[(times - 200).clamp(min=0)], CFG)
    assert (found.scale, found.quantities["ate"].reason) == (None, "the scale is 0; 0.2 to 5 is allowed")


def test_a_slow_error_of_the_turn_shows_over_sixteen_frames() -> None:
    slower = track(np.full(316, 0.96), step=0)
    found = values(track(np.full(316, 1.0), step=0), slower)
    assert (found["rpe_r_1"], found["rpe_r_16"]) == (pytest.approx(0.04), pytest.approx(0.64))


def test_world_to_camera_poses_double_the_error_of_the_turn() -> None:
    assert values(PAN, se3.inverse(PAN))["rpe_r_1"] == pytest.approx(2 * 3)


def test_an_estimator_that_gives_world_to_camera_poses_is_refused() -> None:
    noisy = [moved(CURVED, noise(0.1)), PAN]
    trajectory.check_direction([CURVED, PAN], noisy)
    with pytest.raises(ValueError, match=r"2 true videos turn 4\.2. degrees a frame off and their inverses 0\.00"):
        trajectory.check_direction([CURVED, PAN], [se3.inverse(track) for track in noisy])


def broken(row: int, column: int, value: float) -> Tensor:
    poses = CURVED.clone()
    poses[7, row, column] = value
    return poses


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (broken(0, 3, math.nan), "pose 7 of the estimate is not finite"),
        (broken(0, 0, 1.3), "pose 7 of the estimate is .* off a rotation"),
        (CURVED * torch.tensor([-1.0, 1, 1, 1]), "determinant of -1; a rotation has 1, a mirror -1"),
        (CURVED.mT, "last row that is not 0 0 0 1"),
        (CURVED[:-1], r"the estimate has the shape \(316, 4, 4\); it must be \[317, 4, 4\]"),
        (CURVED[:, :3], r"the estimate has the shape \(317, 3, 4\)"),
    ],
)
def test_a_malformed_estimate_has_failed(estimate: Tensor, reason: str) -> None:
    found = trajectory.compare(CURVED, estimate, CFG)
    assert {q.status for name, q in found.quantities.items() if "drift" not in name} == {FAILED}
    assert re.search(reason, found.fault)
    assert found.quantities["rpe_r_1"].reason == found.fault


def test_a_malformed_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="pose 7 of the reference is not finite"):
        trajectory.compare(broken(0, 3, math.nan), CURVED, CFG)


def test_a_track_too_short_for_a_distance_has_no_figure_there() -> None:
    found = trajectory.compare(CURVED[:16], CURVED[:16], CFG).quantities
    assert found["rpe_t_16"].reason == "16 frames have no two that are 16 apart"
    assert found["rpe_t_1"].value == pytest.approx(0, abs=1e-6)


def test_the_unit_of_an_estimator_is_found_on_true_videos() -> None:
    clips = [STRAIGHT, CURVED, PAN]
    tiny = [moved(se3.pose(clip[:, :3, :3], clip[:, :3, 3] / 100), noise(1e-4)) for clip in clips]
    unit = trajectory.usual_scale(clips, tiny, CFG)
    assert unit == pytest.approx(100, rel=0.01)
    assert trajectory.compare(CURVED, tiny[1], CFG).quantities["rpe_t_1"].status == FAILED
    assert trajectory.compare(CURVED, tiny[1], CFG, unit=unit).scale == pytest.approx(1, abs=0.01)


def clip(value: float | None, nothing: float = 1.0) -> Errors:
    """One clip with one quantity, failed without a value."""
    quantity = Quantity(status=FAILED if value is None else OK, value=value, nothing=nothing)
    return Errors(scale=1.0, quantities={"rpe": quantity})


ABSENT = Errors(scale=None, quantities={"rpe": Quantity(status=NOT_APPLICABLE)})


def test_a_failure_is_neither_zero_nor_left_out() -> None:
    found = trajectory.summarise([clip(0.2), clip(0.4), clip(None), ABSENT], CFG)["rpe"]
    assert (found["n_ok"], found["n"], found["do_nothing"]) == (2, 3, 1)
    assert (found["mean"], found["median"]) == (pytest.approx(1.6 / 3), pytest.approx(0.4))
    assert found["mean_ok"] == pytest.approx(0.3)


def test_a_failure_improves_no_score_where_doing_nothing_would_be_right() -> None:
    found = trajectory.summarise([clip(0.2, nothing=0), clip(None, nothing=0)], CFG)["rpe"]
    assert found["mean"] == found["mean_ok"] == 0.2


def test_models_whose_every_estimate_failed_score_as_a_frozen_video() -> None:
    reference = [STRAIGHT, CURVED]
    found = trajectory.summarise([trajectory.compare(clip, STILL, CFG) for clip in reference], CFG)
    assert (found["rpe_t_1"]["mean"], found["rpe_t_1"]["n_ok"]) == (pytest.approx(1), 0)
    assert found["ate"]["mean"] == found["ate"]["do_nothing"] > 50


@pytest.mark.parametrize("clips", [[ABSENT, ABSENT], [clip(None, nothing=0)] * 2])
def test_without_anything_to_judge_there_is_no_score(clips: list[Errors]) -> None:
    found = trajectory.summarise(clips, CFG)["rpe"]
    assert (found["n_ok"], found["mean"], found["median_interval"]) == (0, None, None)


def test_intervals_cover_the_mean_shrink_with_clips_and_depend_on_the_seed_only() -> None:
    drawn = np.random.default_rng(0).random(400)
    few, many = (trajectory.summarise([clip(v) for v in drawn[:n]], CFG)["rpe"] for n in (16, 400))
    for found in (few, many):
        assert found["mean_interval"][0] < found["mean"] < found["mean_interval"][1]
        assert found["median_interval"][0] <= found["median"] <= found["median_interval"][1]
    width = many["mean_interval"][1] - many["mean_interval"][0]
    assert width == pytest.approx(2 * 1.96 * drawn.std() / 20, rel=0.1)
    assert few == trajectory.summarise([clip(v) for v in drawn[:16]], CFG)["rpe"]


def test_models_are_compared_where_all_are_ok() -> None:
    models = {"a": [clip(0.1), clip(0.2), clip(None)], "b": [clip(0.3), clip(None), clip(0.5)]}
    found = {name: trajectory.summarise(clips, CFG)["rpe"] for name, clips in trajectory.common(models).items()}
    assert {name: (f["mean"], f["n_ok"], f["n"]) for name, f in found.items()} == {"a": (0.1, 1, 1), "b": (0.3, 1, 1)}


@pytest.mark.parametrize("unit", [0.0, -1.0, math.nan])
def test_a_unit_that_means_nothing_is_refused(unit: float) -> None:
    with pytest.raises(ValueError, match="it must be positive"):
        trajectory.compare(CURVED, CURVED, CFG, unit=unit)


@pytest.mark.parametrize("dials", [{"distances": ()}, {"distances": (0, 1)}, {"scale_range": (5.0, 0.2)}])
def test_dials_that_mean_nothing_are_refused(dials: dict) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Trajectory(**dials)
