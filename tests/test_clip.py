from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import recording, track

from relic import artifacts, stores
from relic.data import clip
from relic.data.clip import Clip
from relic.geometry.actions import ACTIONS, annotate
from relic.geometry.config import Actions


def made(index: int = 0) -> Clip:
    r = recording(index)
    return Clip(
        id=f"walk-{index}", frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world,
        place=r.place, region=r.region, seed=r.seed, tags=r.tags, caption="a room",
    )  # fmt: skip


def written(folder, one: Clip, **kwargs) -> dict:
    return clip.write_clip(folder, one, actions=Actions(), **{"reasons": [], "measures": {}, **kwargs})


def test_a_clip_is_read_back_as_it_was_written(tmp_path):
    one = made()
    found = clip.read_clip(tmp_path, written(tmp_path, one))
    assert np.abs(found.frames.astype(float) - one.frames).mean() < 3
    assert (found.poses == one.poses).all()
    assert (found.intrinsics == one.intrinsics).all()
    blank = {"frames": None, "poses": None, "intrinsics": None}
    assert replace(found, **blank) == replace(one, **blank)


def test_the_track_is_the_generic_import_format(tmp_path):
    entry = written(tmp_path, made())
    with np.load(tmp_path / entry["track"]) as track_file:
        arrays = dict(track_file)
    assert {name: arrays[name].shape for name in arrays} == {
        "c2w": (61, 4, 4), "intrinsics": (4,), "timestamps": (61,), "valid": (61,), "actions": (61, 13)
    }  # fmt: skip
    np.testing.assert_allclose(arrays["actions"], annotate(torch.from_numpy(track(origin=(5, 0, 0))), Actions()))


def test_action_share_counts_the_frames_in_which_an_action_is_active(tmp_path):
    share = dict(zip(ACTIONS, written(tmp_path, made())["action_share"], strict=True))
    assert (share["pan_right"], share["dolly_in"], share["pan_left"], share["static"]) == (1, 1, 0, 0)


def test_reasons_make_a_dropped_clip(tmp_path):
    reason = {"filter": "exposure", "metric": "max_flicker", "value": 9.0, "threshold": 4.0, "frames": [0, 60]}
    assert written(tmp_path, made())["kept"] is True
    assert written(tmp_path, made(1), reasons=[reason])["kept"] is False


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no clips\.json"):
        clip.read_index(tmp_path)


def test_a_track_of_another_length_than_its_video_is_refused(tmp_path):
    entry, other = written(tmp_path, made()), written(tmp_path, replace(made(1), frames=made(1).frames[:60]))
    with pytest.raises(ValueError, match="60 frames but its track has 61 poses"):
        clip.read_clip(tmp_path, {**entry, "video": other["video"]})


def test_a_joined_entry_is_read_from_its_part(tmp_path):
    store = stores.open_store(str(tmp_path / "store"))
    with store.working("curate", "0" * artifacts.KEY_LENGTH) as out:
        entry = written(out, made())
        store.commit("curate", "0" * artifacts.KEY_LENGTH, {})
    uri = store.uri("curate", "0" * artifacts.KEY_LENGTH)
    assert clip.read_clip(tmp_path, {**entry, "artifact": uri}).id == "walk-0"
