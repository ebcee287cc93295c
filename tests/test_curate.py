import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from synthetic import INTRINSICS, frames_of, recording, track

from relic.data import clip, curate, video
from relic.data.config import Curate
from relic.tracking import Run

CFG = Curate(train=6, known=3, unseen=2)


@pytest.fixture
def calls(monkeypatch) -> list:
    """Puts a world in Doom's place that records walks of the panorama; its calls, and the clips it drew."""
    calls: list = []

    def record(cfg, *, region, seed, num_clips, num_frames, start=0):
        calls.append((region, start, num_clips))
        for index in range(start, start + num_clips):
            yield recording(index, region=region, poses=track(origin=(index, seed, 0)))

    world = ModuleType("relic.worlds.doom")
    monkeypatch.setattr(world, "record", record, raising=False)
    monkeypatch.setitem(sys.modules, "relic.worlds.doom", world)
    return calls


def curated(out, cfg: Curate = CFG, **span: Any) -> dict:
    out.mkdir(exist_ok=True)
    return curate.main(cfg, out=out, run=Run.silent(), **span)


def test_every_clip_is_written_with_its_entry(tmp_path, calls):
    summary = curated(tmp_path)
    entries = clip.read_index(tmp_path)
    assert summary["clips_kept"] == len(entries) == 11
    assert [e["region"] for e in entries] == ["train"] * 6 + ["known"] * 3 + ["unseen"] * 2
    assert all(clip.read_clip(tmp_path, e).frames.shape == (61, 64, 96, 3) for e in entries)


def test_parts_share_the_clips_in_contiguous_ranges(tmp_path, calls):
    parts = [
        curated(tmp_path / str(part), part=part, parts=3) and clip.read_index(tmp_path / str(part)) for part in range(3)
    ]
    whole = curated(tmp_path / "whole") and clip.read_index(tmp_path / "whole")
    assert sorted(e["id"] for part in parts for e in part) == sorted(e["id"] for e in whole)
    assert [call for call in calls if call[0] == "train"][:3] == [("train", 0, 2), ("train", 2, 2), ("train", 4, 2)]


def test_a_clip_does_not_depend_on_the_part_that_made_it(tmp_path, calls):
    curated(tmp_path / "whole"), curated(tmp_path / "part", part=1, parts=2)
    for entry in clip.read_index(tmp_path / "part"):
        for name in (entry["video"], entry["track"]):
            assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_call_goes_on_with_the_next_clip(tmp_path, calls, monkeypatch):
    keep, count = curate.curate, iter(range(4))

    def killed(*args):
        if next(count) == 3:
            raise KeyboardInterrupt
        return keep(*args)

    monkeypatch.setattr(curate, "curate", killed)
    with pytest.raises(KeyboardInterrupt):
        curated(tmp_path)
    assert not (tmp_path / clip.INDEX).exists()
    monkeypatch.setattr(curate, "curate", keep)
    calls.clear()
    assert curated(tmp_path)["clips_kept"] == 11
    assert calls == [("train", 3, 3), ("known", 0, 3), ("unseen", 0, 2)]


def test_a_finished_call_records_nothing_again(tmp_path, calls):
    first = curated(tmp_path)
    calls.clear()
    for hidden in (tmp_path / "clips").glob(".*"):  # the artifact leaves them out
        hidden.unlink()
    assert curated(tmp_path) == first
    assert calls == []


def test_a_dropped_clip_stays_with_its_reasons(tmp_path, monkeypatch, calls):
    bad = recording(poses=track(np.where(np.arange(60) == 30, 60.0, 2.0)))
    monkeypatch.setattr(sys.modules["relic.worlds.doom"], "record", lambda *a, **k: iter([bad]))
    summary = curated(tmp_path, Curate(train=1, known=0, unseen=0))
    (entry,) = clip.read_index(tmp_path)
    assert (summary["clips_kept"], summary["clips_dropped"], summary["dropped_by_filter"]["camera_motion"]) == (0, 1, 1)
    reason = entry["reasons"][0]
    assert reason["metric"] == "max_turn"
    assert reason["value"] == pytest.approx(960)
    assert reason["frames"] == [30, 31]


def test_a_folder_of_a_persons_videos_is_curated(tmp_path):
    poses, source = track(), tmp_path / "films"
    source.mkdir()
    video.write(source / "hall.mp4", frames_of(poses), fps=16)
    np.savez(source / "hall.npz", c2w=poses, intrinsics=INTRINSICS)
    summary = curated(tmp_path / "out", Curate(source="folder", folder=str(source), num_frames=21, train=9))
    assert summary["kept_by_region"] == {"train": 2, "known": 0, "unseen": 0}
    entry = clip.read_index(tmp_path / "out")[0]
    assert (entry["world"], entry["place"], entry["caption"]) == ("folder", "hall", "a well-lit brown place of hall")


def test_a_curated_artifact_is_a_folder_that_can_be_imported(tmp_path, calls):
    curated(tmp_path / "first")
    again = Curate(source="folder", folder=str(tmp_path / "first" / "clips"), train=2)
    curated(tmp_path / "second", again)
    (one, _) = clip.read_index(tmp_path / "second")
    np.testing.assert_allclose(clip.read_clip(tmp_path / "second", one).poses, track(), atol=1e-9)


def test_a_recorder_that_stops_early_is_an_error(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(sys.modules["relic.worlds.doom"], "record", lambda *a, **k: iter([recording()]))
    with pytest.raises(ValueError, match="shorter"):
        curated(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": "quake"}, "source is 'quake'; it must be one of doom, rooms, folder"),
        ({"source": "folder"}, "folder is empty"),
        ({"num_frames": 60}, "num_frames is 60"),
        ({"train": 0, "known": 0, "unseen": 0}, "clips are 0, 0 and 0"),
        ({"fps": 24.0}, "doom.fps is 16.0 and fps is 24.0"),
        ({"crf": 60}, "crf is 60"),
    ],
)
def test_a_wrong_dial_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Curate(**change)
