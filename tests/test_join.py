import re
from pathlib import Path

import pytest
from synthetic import recording

from relic import artifacts
from relic.data import clip, curate, join
from relic.data.config import Curate, Exposure, Filters
from relic.tracking import Run

DIM = Filters(exposure=Exposure(max_luminance=1.0))


def clips_part(folder: Path, indices: list[int], *, keep: bool = True) -> Path:
    """An artifact of curate with these clips."""
    folder.mkdir()
    cfg = Curate(filters=Filters() if keep else DIM)
    entries = [curate.curate(cfg, recording(i), "", f"walk-{i}", folder) for i in indices]
    clip.write_index(
        folder, entries, {"exposure": {"max_luminance": 190.0}, "viewpoint_stability": {"min_clearance": 0.5}}
    )
    return folder


def samples_part(folder: Path, names: list[str], latent_shape: tuple[int, ...] = (8, 8, 12)) -> Path:
    folder.mkdir()
    samples = [{"id": name, "clip": name, "shard": "shard-00000.bin", "num_latents": 16} for name in names]
    artifacts.write_json(folder / join.SAMPLES, {"latent_shape": latent_shape, "samples": samples})
    return folder


def joined(tmp_path: Path, *parts: Path) -> dict:
    (tmp_path / "out").mkdir(exist_ok=True)
    return join.main(parts=list(parts), out=tmp_path / "out", run=Run.silent())


def test_joined_clips_say_which_part_holds_them(tmp_path):
    first, second = clips_part(tmp_path / "a", [0, 1]), clips_part(tmp_path / "b", [2])
    summary = joined(tmp_path, first, second)
    entries = clip.read_index(tmp_path / "out")
    assert [(e["id"], e["artifact"]) for e in entries] == [
        ("walk-0", first.as_posix()), ("walk-1", first.as_posix()), ("walk-2", second.as_posix())
    ]  # fmt: skip
    assert summary["clips_kept"] == 3


def test_the_report_needs_no_other_file_and_shows_what_was_dropped_and_why(tmp_path):
    summary = joined(tmp_path, clips_part(tmp_path / "a", [0, 1]), clips_part(tmp_path / "b", [2], keep=False))
    page = (tmp_path / "out" / "report.html").read_text()
    assert (summary["clips_kept"], summary["clips_dropped"]) == (2, 1)
    assert page.count("data:image/jpeg;base64,") == 3 * 7
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert re.search(r"walk-2.*exposure: max_luminance [\d.]+, threshold 1<", page)
    assert "threshold 190" in page


def test_a_report_of_nothing_but_dropped_clips_is_written(tmp_path):
    summary = joined(tmp_path, clips_part(tmp_path / "a", [0], keep=False))
    assert (summary["clips_kept"], summary["dropped_by_filter"]) == (0, {"exposure": 1})


def test_joined_samples_keep_their_shape(tmp_path):
    first, second = samples_part(tmp_path / "a", ["x", "y"]), samples_part(tmp_path / "b", ["z"])
    assert joined(tmp_path, first, second) == {"samples": 3, "latents": 48}
    index = artifacts.read_json(tmp_path / "out" / join.SAMPLES)
    assert index["latent_shape"] == [8, 8, 12]
    assert [s["artifact"] for s in index["samples"]] == [first.as_posix()] * 2 + [second.as_posix()]


def test_an_id_may_come_once_only(tmp_path):
    with pytest.raises(ValueError, match=r"y is in .*a and in .*b"):
        joined(tmp_path, samples_part(tmp_path / "a", ["x", "y"]), samples_part(tmp_path / "b", ["y"]))


def test_latents_of_two_shapes_are_not_joined(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        joined(tmp_path, samples_part(tmp_path / "a", ["x"]), samples_part(tmp_path / "b", ["y"], (8, 16, 24)))


def test_clips_and_samples_are_not_joined(tmp_path):
    with pytest.raises(ValueError, match="one kind"):
        joined(tmp_path, clips_part(tmp_path / "a", [0]), samples_part(tmp_path / "b", ["y"]))


def test_a_folder_that_is_no_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither clips\.json nor index\.json"):
        joined(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no parts"):
        joined(tmp_path)
