import contextlib
from pathlib import Path

import numpy as np
import pytest
from synthetic import frames_of, track

from relic.data import video

CODECS = ("libx264", "libx265")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return frames_of(track())


@pytest.fixture(scope="module", params=CODECS)
def path(request, frames, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    video.write(path, frames, fps=16, codec=request.param)
    return path


def test_written_frames_are_read_back_nearly_as_they_were(path, frames):
    found = video.read(path)
    assert found.shape == frames.shape
    assert np.abs(found.astype(float) - frames).mean() < 3


def test_frame_k_is_exact_after_seeking_back(path):
    whole = video.read(path)
    with video.Reader(path) as reader:
        for k in (59, 3, 37, 36, 0, 60, 17):
            assert (reader.frames(k, 1)[0] == whole[k]).all()


def test_scattered_frames_come_in_order(path):
    whole = video.read(path)
    with video.Reader(path) as reader:
        found = np.stack(list(reader.pictures([2, 3, 20, 41, 60])))
    assert (found == whole[[2, 3, 20, 41, 60]]).all()


def test_timestamps_are_seconds(path):
    with video.Reader(path) as reader:
        np.testing.assert_allclose(reader.timestamps, np.arange(61) / 16, atol=1e-4)
        assert reader.size == (64, 96)


def test_index_is_by_pts_when_frames_are_irregular_in_time(tmp_path, frames):
    times = np.cumsum([0, 1, 3, 1, 7, 2])
    video.write(tmp_path / "a.mp4", frames[:6], fps=16, pts=times.tolist())
    with video.Reader(tmp_path / "a.mp4") as reader:
        np.testing.assert_allclose(reader.timestamps, times / 16, atol=1e-4)
        assert np.abs(reader.frames(4, 1)[0].astype(float) - frames[4]).mean() < 3


def test_frames_are_encoded_as_they_come_and_the_file_is_there_at_the_end(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with video.recording(tmp_path / "a.mp4", fps=16) as add:
        for at in range(300):
            add(picture, at)
        (beside,) = tmp_path.iterdir()
        assert beside.stat().st_size > 100_000
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert len(video.Reader(tmp_path / "a.mp4").timestamps) == 300


def test_a_recording_that_fails_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), video.recording(tmp_path / "a.mp4", fps=16) as add:
        add(np.zeros((64, 96, 3), np.uint8), 0)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="no frame came"), video.recording(tmp_path / "a.mp4", fps=16):
        pass
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="95x63 pixels"):
        video.write(tmp_path / "a.mp4", np.zeros((5, 63, 95, 3), np.uint8), fps=16)
    assert not (tmp_path / "a.mp4").exists()


def test_frames_past_the_end_are_refused(path):
    with video.Reader(path) as reader, pytest.raises(ValueError, match="it has 0 to 60"):
        reader.frames(60, 2)


def test_a_file_that_is_no_video_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video"):
        video.read(tmp_path / "a.mp4")


def test_a_video_cut_short_is_refused(path, tmp_path):
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        video.read(tmp_path / "cut.mp4")
