"""The held-out walks that models are measured on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from held_out import NUM_FRAMES, TURNS, walks, write_clips

from relic.data import clip
from relic.evaluate.walks import Walks, as_frames, read
from relic.geometry.actions import ACTIONS, annotate, integrate
from relic.geometry.config import Actions
from relic.model.config import Transformer
from relic.pretrained import words

SAID = words.of(Transformer(), "", "cpu")
PAN_RIGHT = ACTIONS.index("pan_right")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    return walks(tmp_path_factory.mktemp("walks"))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 36])
def test_a_walk_is_never_paired_with_itself_and_every_walk_is_somebodys_other(five: Walks, count: int) -> None:
    others = replace(five, ids=five.ids[:1] * count).others()
    assert all(i != other for i, other in enumerate(others))
    assert sorted(others) == list(range(count))


def test_another_walks_actions_come_with_its_poses_and_the_own_caption(five: Walks) -> None:
    own, swapped, others = five.conditions(SAID), five.conditions(SAID, five.others()), five.others()
    torch.testing.assert_close(swapped.actions, own.actions[others])
    torch.testing.assert_close(swapped.poses, own.poses[others])
    assert torch.equal(swapped.text, own.text)
    assert len(own.text.unique(dim=0)) == len(five)


def test_the_actions_are_those_of_the_whole_clip_at_its_scale(tmp_path: Path) -> None:
    folder = write_clips(tmp_path, known=2)
    whole = [annotate(torch.from_numpy(clip.read_clip(folder, e).poses), Actions()) for e in clip.read_index(folder)]
    found = read([folder], "known", 2, 9, Actions())
    assert found is not None
    torch.testing.assert_close(found.actions, torch.stack(whole)[:, :9])
    torch.testing.assert_close(found.actions[0, 1:, PAN_RIGHT], torch.full((8,), TURNS[0]).double())


def test_the_poses_are_the_integral_of_the_actions(five: Walks) -> None:
    torch.testing.assert_close(five.poses, integrate(five.actions, Actions()))
    torch.testing.assert_close(five.poses[:, 0], torch.eye(4).double().expand(5, 4, 4))


def test_only_kept_walks_of_the_region_are_read_and_the_first_ones(tmp_path: Path) -> None:
    folder = write_clips(tmp_path, train=1, known=4, unseen=2, dropped=2)
    found = [read([folder], region, 3, 21, Actions()) for region in ("train", "known", "unseen")]
    assert [walks and walks.ids for walks in found] == [
        None, ("known-0", "known-1", "known-2"), ("unseen-0", "unseen-1"),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_walks_cannot_swap_actions_and_are_none(tmp_path: Path, count: int) -> None:
    assert read([write_clips(tmp_path, known=count)], "known", 8, 21, Actions()) is None


def test_a_clip_that_is_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"known-0 has {NUM_FRAMES} frames; the walks of this evaluation need 61"):
        read([write_clips(tmp_path, known=2)], "known", 2, 61, Actions())


def test_videos_are_the_frames_from_0_to_1(five: Walks) -> None:
    videos = as_frames(five.frames)
    assert videos.shape == (5, 21, 3, 64, 96)
    assert torch.equal((videos * 255).round().byte(), torch.from_numpy(five.frames).permute(0, 1, 4, 2, 3))


def test_a_returning_walk_goes_back_the_same_way_and_its_actions_are_annotated_anew(five: Walks) -> None:
    back = five.returning(Actions())
    assert (back.frames[:, 14:] == five.frames[:, 12:5:-1]).all()  # of 21 frames it turns after 13
    torch.testing.assert_close(back.poses[:, -1], back.poses[:, 6])
    assert (back.actions[0, 14:, ACTIONS.index("pan_left")] > 0).all()  # the way there turned right


def test_a_returning_walk_rests_where_the_walk_did(five: Walks) -> None:
    resting = five.actions.clone()
    resting[:, 3:6] = 0
    resting[:, 3:6, ACTIONS.index("static")] = 1
    back = replace(five, poses=integrate(resting, Actions())).returning(Actions())
    assert (back.actions[:, 3:6, ACTIONS.index("static")] == 1).all()


def test_a_script_is_followed_from_every_first_frame(five: Walks) -> None:
    script = five.actions[1]
    given = five.first(2).following(script, Actions())
    assert (given.ids, given.frames.shape[:2]) == (five.ids[:2], (2, 1))
    torch.testing.assert_close(given.poses[0], five.poses[1])
    torch.testing.assert_close(given.poses[1], five.poses[1])
