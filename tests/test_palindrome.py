import numpy as np
import pytest
import torch
from synthetic import track

from relic.data import palindrome
from relic.data.encode import controls
from relic.geometry.actions import ACTIONS, annotate, signed
from relic.geometry.config import Actions

EXACT = Actions(translation_dead_zone=0, rotation_dead_zone=0)
OPPOSITE = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12]  # dolly_in <-> dolly_out and so on


@pytest.mark.parametrize("num_frames", [5, 8, 61, 317])
def test_every_pivot_keeps_the_length_and_repeats_no_frame_at_the_turn(num_frames):
    for pivot in range(num_frames // 2, num_frames - 1):
        order = palindrome.indices(num_frames, pivot)
        assert len(order) == num_frames
        assert order.max() == order[pivot] == pivot
        assert (np.abs(np.diff(order)) == 1).all()
        assert order.min() == order[0] == 0


def test_the_way_back_shows_the_frames_of_the_way_there():
    order = palindrome.indices(61, 40)
    for away in range(1, 21):
        assert order[40 + away] == order[40 - away]


@pytest.mark.parametrize("pivot", [29, 60, 61])
def test_a_pivot_outside_the_second_half_is_refused(pivot):
    with pytest.raises(ValueError, match=f"pivot is {pivot} of 61 frames"):
        palindrome.indices(61, pivot)


def test_pivots_fill_the_second_half_and_depend_on_seed_and_clip_only():
    pivots = [palindrome.pivot_of(61, seed=0, clip=f"walk-{i}", share=1) for i in range(2000)]
    assert set(pivots) == set(range(30, 60))
    assert pivots == [palindrome.pivot_of(61, seed=0, clip=f"walk-{i}", share=1) for i in range(2000)]
    assert pivots != [palindrome.pivot_of(61, seed=1, clip=f"walk-{i}", share=1) for i in range(2000)]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_clips_with_a_palindrome_is_the_one_asked_for(share):
    found = [palindrome.pivot_of(61, seed=0, clip=f"walk-{i}", share=share) is not None for i in range(2000)]
    assert np.mean(found) == pytest.approx(share, abs=0.03)


def test_a_larger_share_keeps_the_palindromes_of_a_smaller_one():
    few = {i: palindrome.pivot_of(61, seed=0, clip=str(i), share=0.2) for i in range(200)}
    assert all(p == palindrome.pivot_of(61, seed=0, clip=str(i), share=0.6) for i, p in few.items() if p is not None)


def test_recomputed_actions_lead_along_the_reversed_poses():
    poses = track(turns=np.full(60, 5.0))
    order = palindrome.indices(61, 40)
    actions, integrated = controls(poses[order], EXACT)
    torch.testing.assert_close(integrated[40 - 20], integrated[40 + 20], atol=1e-4, rtol=0)
    assert (actions[1:41, ACTIONS.index("dolly_in")] > 0).all()
    assert (actions[41:, ACTIONS.index("dolly_out")] > 0).all()
    assert (actions[41:, ACTIONS.index("pan_left")] > 0).all()


def back_by_pose_and_by_label(turn_deg: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions [60, 13] of a walk's way back: recomputed from the reversed poses, and by swapping each label."""
    poses = torch.from_numpy(track(turns=np.full(60, turn_deg)))
    return annotate(poses.flip(0), EXACT)[1:], annotate(poses, EXACT)[1:].flip(0)[:, OPPOSITE]


def test_swapping_labels_is_right_for_a_straight_walk():
    by_pose, by_label = back_by_pose_and_by_label(0)
    torch.testing.assert_close(by_label, by_pose)


@pytest.mark.parametrize("turn_deg", [1.0, 5.0])
def test_swapping_labels_is_wrong_by_the_turn_where_a_motion_mixes_turning_and_moving(turn_deg):
    by_pose, by_label = (signed(actions)[:, :2] for actions in back_by_pose_and_by_label(turn_deg))
    heading = [torch.rad2deg(torch.atan2(motion[:, 1], motion[:, 0])) for motion in (by_pose, by_label)]
    error = (heading[0] - heading[1] + 180) % 360 - 180
    torch.testing.assert_close(error.abs(), torch.full((60,), turn_deg, dtype=torch.float64))
