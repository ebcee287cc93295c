"""Returns found by pose, and what a video earns there."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from synthetic import frames_of, track
from torch import Tensor

from relic.data import palindrome
from relic.evaluate import revisit
from relic.evaluate.config import Revisit
from relic.geometry import se3

CFG = Revisit()
AWAY = torch.from_numpy(track(np.full(60, 2.0), step=0.1))  # 2 degrees right and a step forward, 60 times
THERE_AND_BACK = palindrome.indices(61, 30)
MIRROR = AWAY[THERE_AND_BACK]
WALK = frames_of(MIRROR.numpy())
CAP = 48.1308


def grainy(video: np.ndarray, size: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, size, video.shape)
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def earned(video: np.ndarray, poses: Tensor = MIRROR) -> dict:
    found = revisit.psnr_at_returns(video, poses, CFG)
    assert found is not None
    return found


FROZEN = np.repeat(WALK[:1], 61, 0)


def test_the_returns_of_a_mirror_walk_are_its_mirror_frames() -> None:
    pairs = revisit.returns(MIRROR, CFG)
    assert (pairs.sum(1) == 60).all()
    assert pairs[-1].tolist() == [60, 0]
    assert pairs[0, 0] - pairs[0, 1] >= CFG.min_away


def test_a_walk_that_only_goes_away_has_no_return() -> None:
    assert len(revisit.returns(AWAY, CFG)) == 0
    assert revisit.psnr_at_returns(frames_of(AWAY.numpy()), AWAY, CFG) is None


def test_a_camera_that_stays_about_has_not_been_away() -> None:
    swaying = track(np.tile([2.0] * 5 + [-2.0] * 5, 6), step=0)
    assert len(revisit.returns(torch.from_numpy(swaying), CFG)) == 0


def test_a_camera_that_turns_back_too_little_returns_where_it_got_to() -> None:
    """A fixed last frame would compare the start with a place 20 degrees beside it."""
    turns = np.concatenate([np.full(30, 3.0), np.full(30, -3.0 * 70 / 90)])
    pairs = revisit.returns(torch.from_numpy(track(turns, step=0)), CFG)
    late = pairs[pairs[:, 0] == 60]
    assert late[:, 1].tolist() in ([6], [7])  # 18 or 21 degrees, nearest to 20


def test_a_full_turn_is_a_return() -> None:
    pairs = revisit.returns(torch.from_numpy(track(np.full(90, 4.0), step=0)), CFG)
    assert pairs.tolist() == [[90, 0]]


def test_the_size_of_a_track_changes_no_return() -> None:
    scaled = se3.pose(MIRROR[:, :3, :3], 37 * MIRROR[:, :3, 3])
    np.testing.assert_array_equal(revisit.returns(scaled, CFG), revisit.returns(MIRROR, CFG))


def test_noise_on_a_pan_hides_its_returns_unless_the_step_is_said() -> None:
    pan = torch.from_numpy(track(np.full(60, 2.0), step=0))[THERE_AND_BACK]
    noise = torch.randn(61, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.01
    noisy = se3.pose(pan[:, :3, :3], noise)
    assert len(revisit.returns(noisy, CFG, step=0.1)) > 5 * max(1, len(revisit.returns(noisy, CFG)))


def test_a_palindromic_video_earns_the_cap() -> None:
    found = earned(WALK)
    assert (found["gate"], found["pairs"]) == (1, len(revisit.returns(MIRROR, CFG)))
    assert found["psnr_db"] == found["gated_psnr_db"] == pytest.approx(CAP, abs=1e-3)


@pytest.mark.parametrize("video", [FROZEN, np.zeros_like(FROZEN), np.full_like(FROZEN, 200)])
def test_a_frozen_video_earns_nothing(video: np.ndarray) -> None:
    found = earned(video)
    assert found["psnr_db"] == pytest.approx(CAP, abs=1e-3)
    assert found["gated_psnr_db"] == pytest.approx(0, abs=1e-6)


def test_a_frozen_video_with_grain_earns_next_to_nothing() -> None:
    assert earned(grainy(FROZEN, 8))["gate"] < 0.02


def test_a_frozen_video_that_fades_and_comes_back_earns_next_to_nothing() -> None:
    fade = np.abs(np.linspace(-1, 1, 61))[:, None, None, None]  # black in the middle
    assert earned((FROZEN * fade).astype(np.uint8))["gate"] < 0.02


def test_a_video_that_forgets_earns_less_than_one_that_remembers() -> None:
    elsewhere = frames_of(torch.from_numpy(track(np.full(60, 2.0))).numpy()).copy()  # goes on instead of back
    remembers, forgets = earned(grainy(WALK, 8)), earned(elsewhere)
    assert forgets["gate"] == remembers["gate"] == 1
    assert forgets["gated_psnr_db"] + 5 < remembers["gated_psnr_db"] < CAP - 5


def test_the_curve_tells_short_from_long_absence() -> None:
    fading = grainy(WALK, 0).astype(float)
    fading[31:] += np.arange(30)[:, None, None, None]  # the later, the less like it was
    curve = earned(np.clip(fading, 0, 255).astype(np.uint8))["curve"]
    assert all(a["away_frames"] < b["away_frames"] for a, b in pairwise(curve))
    assert all(a["psnr_db"] > b["psnr_db"] for a, b in pairwise(curve))
    assert sum(part["pairs"] for part in curve) == earned(WALK)["pairs"]


def test_the_gate_opens_in_proportion_to_the_change() -> None:
    pairs = np.array([[60, 0]])
    mixed = [revisit.gate(blended(share), pairs, CFG)[0] for share in (0.0, 0.2, 0.3, 1.0)]
    assert mixed[0] == pytest.approx(0, abs=1e-6)
    assert 0 < mixed[1] < mixed[2] < 1 == mixed[3]


def blended(share: float) -> np.ndarray:
    """A frozen video into which so much of the walk is mixed."""
    return ((1 - share) * FROZEN + share * WALK).astype(np.uint8)


def test_frames_without_their_pose_are_refused() -> None:
    with pytest.raises(ValueError, match="60 frames have 61 poses"):
        revisit.psnr_at_returns(WALK[:60], MIRROR, CFG)


@pytest.mark.parametrize("dials", [{"near": 6.0, "left": 5.0}, {"min_away": 0}, {"similarity_drop": 0.0}])
def test_dials_that_mean_nothing_are_refused(dials: dict) -> None:
    with pytest.raises(ValueError, match=r"allowed is|must be positive"):
        Revisit(**dials)
