from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import INTRINSICS, frames_of, track

from relic import artifacts
from relic.data import video
from relic.data.importers import folder
from relic.geometry import se3

SIZE = {"height": 64, "width": 96, "fps": 16.0}
POSES = track()
FRAMES = frames_of(POSES)


def write_take(
    path: Path, *, fps: float = 16.0, poses: np.ndarray = POSES, about: dict | None = None, **arrays
) -> None:
    """A video of the panorama with its npz, as a person would give it."""
    video.write(path / "take.mp4", FRAMES, fps=fps)
    np.savez(path / "take.npz", **{"c2w": poses, "intrinsics": INTRINSICS, **arrays})
    if about:
        artifacts.write_json(path / "take.json", about)


def windows(path: Path, num_frames: int = 21, fps: float = 16.0) -> list[folder.Window]:
    return folder.windows(path, num_frames=num_frames, fps=fps)


def changed(frame: int, **entries: object) -> np.ndarray:
    """The track with one pose changed."""
    poses = POSES.copy()
    if "scale" in entries:
        poses[frame, :3, :3] *= entries["scale"]
    if "mirror" in entries:
        poses[frame, :3, 0] *= -1
    if "nan" in entries:
        poses[frame, 0, 3] = np.nan
    return poses


def test_a_video_at_our_rate_is_cut_into_clips_with_its_own_poses(tmp_path):
    write_take(tmp_path)
    found = windows(tmp_path)
    assert [w.nearest.tolist() for w in found] == [list(range(0, 21)), list(range(21, 42))]
    np.testing.assert_allclose(found[1].poses, POSES[21:42], atol=1e-9)


def test_a_recording_holds_the_frames_of_its_window(tmp_path):
    write_take(tmp_path, about={"place": "a hall", "region": "known", "tags": ["indoor", "hall"]})
    recording = folder.record(windows(tmp_path)[1], **SIZE)
    assert np.abs(recording.frames.astype(float) - FRAMES[21:42]).mean() < 3
    assert (recording.place, recording.region, recording.tags) == ("a hall", "known", ("indoor", "hall"))
    np.testing.assert_allclose(recording.intrinsics, INTRINSICS)


def test_a_faster_video_is_resampled_by_timestamp(tmp_path):
    write_take(tmp_path, fps=30)
    window = windows(tmp_path, num_frames=9)[0]
    assert window.nearest.tolist() == [0, 2, 4, 6, 8, 9, 11, 13, 15]
    turns = se3.angle_degrees(torch.from_numpy(np.linalg.inv(window.poses[:-1]) @ window.poses[1:])[:, :3, :3])
    np.testing.assert_allclose(
        turns, 2.0 * 30 / 16, atol=1e-3
    )  # slerp keeps the speed though the frames do not fall even


def test_frames_irregular_in_time_keep_their_poses(tmp_path):
    write_take(tmp_path, timestamps=np.arange(61) / 16 + np.where(np.arange(61) % 2, 0.02, 0.0))
    window = windows(tmp_path)[0]
    np.testing.assert_allclose(window.poses[::2], POSES[:21:2], atol=1e-6)
    assert np.abs(window.poses[1::2] - POSES[1:21:2]).max() > 1e-3


def test_missing_poses_are_left_out_by_the_validity_mask(tmp_path):
    valid = np.arange(61) != 25
    write_take(tmp_path, poses=changed(25, nan=True), valid=valid)
    assert [w.nearest[0] for w in windows(tmp_path)] == [0, 26]


def test_a_gap_in_time_is_not_bridged(tmp_path):
    write_take(tmp_path, timestamps=np.arange(61) / 16 + np.where(np.arange(61) > 30, 2.0, 0.0))
    assert [w.nearest[0] for w in windows(tmp_path)] == [0, 31]


def test_a_jump_of_the_camera_is_a_cut(tmp_path):
    poses = POSES.copy()
    poses[30:, 0, 3] += 50
    write_take(tmp_path, poses=poses)
    assert [w.nearest[0] for w in windows(tmp_path)] == [0, 30]


def test_a_folder_of_images_is_read_like_a_video(tmp_path):
    write_take(tmp_path, timestamps=np.arange(61) / 16)
    (tmp_path / "take.mp4").unlink()
    (tmp_path / "take").mkdir()
    for t, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / "take" / f"{t:04d}.png")
    recording = folder.record(windows(tmp_path)[1], **SIZE)
    assert (recording.frames == FRAMES[21:42]).all()


def test_rounded_rotations_are_projected_onto_rotations(tmp_path):
    write_take(tmp_path, poses=POSES.round(3))
    rotation = windows(tmp_path)[0].poses[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (21, 1, 1)), atol=1e-9)


def test_frames_are_cut_to_size_with_their_intrinsics():
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    frame, intrinsics = folder.fit(picture, np.array([100.0, 100, 100, 50]), 64, 96)
    assert frame.shape == (64, 96, 3)
    np.testing.assert_allclose(intrinsics, [64, 64, 48, 32])
    assert float(frame[0, 48, 0]) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"poses": changed(7, scale=1.05)}, r"pose 7 of .* off a rotation"),
        ({"poses": changed(7, mirror=True)}, r"pose 7 of .* determinant of -1"),
        ({"poses": changed(7, nan=True)}, r"pose 7 of .* not finite"),
        ({"poses": POSES[:50]}, "61 frames but take.npz 50 poses"),
        ({"poses": POSES[:, 0]}, "must be"),
        ({"intrinsics": INTRINSICS * 4}, "principal point at 192, 128 px but its frames are 96x64"),
        ({"intrinsics": INTRINSICS / 96}, "principal point at 0.5"),
        ({"intrinsics": INTRINSICS * (-1, 1, 1, 1)}, "fx and fy positive"),
        ({"intrinsics": INTRINSICS * np.linspace(1, 1.5, 61)[:, None] ** (1, 1, 0, 0)}, "zooming"),
        ({"timestamps": np.zeros(61)}, "do not increase"),
        ({"about": {"region": "north"}}, "region of .* is 'north'"),
        ({"about": {"caption": "the camera pans through a hall"}}, "'camera', 'pans'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, change, sentence):
    write_take(tmp_path, **change)
    with pytest.raises(ValueError, match=sentence):
        windows(tmp_path)


def test_a_clip_without_poses_is_refused(tmp_path):
    write_take(tmp_path)
    np.savez(tmp_path / "take.npz", intrinsics=INTRINSICS)
    with pytest.raises(ValueError, match="has no c2w"):
        windows(tmp_path)


def test_a_video_without_an_npz_is_refused_beside_others_that_have_one(tmp_path):
    write_take(tmp_path)
    (tmp_path / "other.mp4").write_bytes((tmp_path / "take.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"other\.mp4 has no npz; every video needs its poses"):
        windows(tmp_path)


def test_an_npz_without_a_video_is_refused(tmp_path):
    np.savez(tmp_path / "take.npz", c2w=POSES, intrinsics=INTRINSICS)
    with pytest.raises(ValueError, match="neither a video nor an image folder"):
        windows(tmp_path)


def test_images_need_timestamps(tmp_path):
    (tmp_path / "take").mkdir()
    Image.fromarray(FRAMES[0]).save(tmp_path / "take" / "0.png")
    np.savez(tmp_path / "take.npz", c2w=POSES[:1], intrinsics=INTRINSICS)
    with pytest.raises(ValueError, match="no timestamps"):
        windows(tmp_path)


def test_poses_given_world_to_camera_are_refused(tmp_path):
    write_take(tmp_path, poses=np.linalg.inv(POSES))
    with pytest.raises(ValueError, match="world-to-camera"):
        folder.record(windows(tmp_path)[0], **SIZE)
