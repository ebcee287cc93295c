"""The generic reader: a folder of NAME.mp4 (or an image folder NAME/) with NAME.npz beside it, and NAME.json if there
is more to say (place, region, tags, caption, seed). A clips artifact's folder clips/ is such a folder.

The npz holds c2w [N, 4, 4] (camera-to-world, OpenCV axes), intrinsics [4] or [N, 4] (fx fy cx cy in pixels of the
frames), timestamps [N] in seconds (a video may leave them to its own) and valid [N] (false where a pose is missing).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from relic import artifacts
from relic.data import captions, video
from relic.data.config import REGIONS
from relic.data.importers.track import (
    Track,
    Window,
    check_direction,
    check_intrinsics,
    check_poses,
    check_times,
    cut,
)  # fmt: skip
from relic.worlds.recording import Recording

VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def windows(folder: Path, *, num_frames: int, fps: float) -> list[Window]:
    """Every clip of the folder, in the order of names and time; they do not overlap and have no missing pose or cut."""
    if not folder.is_dir():
        raise ValueError(
            f"the folder {str(folder)!r} does not exist; it must hold videos or image folders with an npz each"
        )
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ValueError(f"{folder} has no npz; every video needs its poses in an npz of the same name")
    for path in sorted(path for path in folder.iterdir() if path.suffix in VIDEOS):
        if not path.with_suffix(".npz").is_file():
            raise ValueError(f"{path} has no npz; every video needs its poses in an npz of the same name")
    found = [window for path in paths for window in cut(read_track(path), num_frames, fps)]
    if not found:
        raise ValueError(f"{folder} has no {num_frames} frames in a row at {fps:g} fps with poses; give longer videos")
    return found


def record(window: Window, *, height: int, width: int, fps: float) -> Recording:
    """The recording of a window, its frames scaled and cut to height x width."""
    track = window.track
    shown, position = np.unique(window.nearest, return_inverse=True)
    frames, intrinsics = [], track.intrinsics
    for picture in pictures(track.source, shown):
        frame, intrinsics = fit(picture, track.intrinsics, height, width)
        frames.append(frame)
    about, shown_frames = track.about, np.stack(frames)[position]
    check_direction(shown_frames, window.poses, intrinsics, track.source)
    return Recording(
        frames=shown_frames, poses=window.poses, intrinsics=intrinsics, depth=None, fps=fps, world="folder",
        place=about.get("place", track.name), region=window.region, seed=int(about.get("seed", 0)),
        tags=tuple(about.get("tags", ())),
    )  # fmt: skip


def read_track(path: Path) -> Track:
    """Read and check NAME.npz, the video or image folder beside it, and NAME.json."""
    source = source_of(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an npz that can be read ({error})") from error
    for name in ("c2w", "intrinsics"):
        if name not in arrays:
            raise ValueError(f"{path} has no {name}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    times, (height, width) = times_and_size(source)
    num_frames = len(times) if times is not None else len(images(source))
    valid = arrays.get("valid", np.ones(num_frames, bool)).astype(bool)
    for name, values in (("poses", arrays["c2w"]), ("validity flags", valid)):
        if len(values) != num_frames:
            raise ValueError(f"{source} has {num_frames} frames but {path.name} {len(values)} {name}; they must agree")
    about = artifacts.read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
    return Track(
        name=path.stem, source=source, valid=valid,
        timestamps=check_times(arrays.get("timestamps", times), num_frames, path),
        poses=check_poses(arrays["c2w"].astype(np.float64), valid, path),
        intrinsics=check_intrinsics(arrays["intrinsics"].astype(np.float64), height, width, path),
        about=check_about(about, path.with_suffix(".json")),
    )  # fmt: skip


def source_of(path: Path) -> Path:
    """The video or the image folder of an npz."""
    found = [path.with_suffix(suffix) for suffix in VIDEOS if path.with_suffix(suffix).is_file()]
    found += [path.with_suffix("")] if path.with_suffix("").is_dir() else []
    if len(found) != 1:
        what = " and ".join(other.name for other in found) if found else "neither a video nor an image folder"
        raise ValueError(f"{path} has {what} beside it; it needs one video or one image folder of its name")
    return found[0]


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def times_and_size(source: Path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """A source's own timestamps [N], which images have not, and its height and width."""
    if source.is_file():
        with video.Reader(source) as reader:
            return reader.timestamps, reader.size
    if not images(source):
        raise ValueError(f"{source} has no images; it must hold {', '.join(IMAGES)}")
    sizes = set()
    for path in images(source):
        with open_image(path) as picture:
            sizes.add((picture.height, picture.width))
    if len(sizes) > 1:
        raise ValueError(f"{source} has images of {len(sizes)} sizes; they must have one")
    return None, sizes.pop()


def open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise ValueError(f"{path} is not an image that can be read ({error})") from error


def pictures(source: Path, numbers: np.ndarray) -> Iterator[Image.Image]:
    """The frames of strictly increasing numbers."""
    if source.is_file():
        with video.Reader(source) as reader:
            yield from map(Image.fromarray, reader.pictures(numbers.tolist()))
        return
    paths = images(source)
    for number in numbers:
        with open_image(paths[number]) as picture:
            yield picture.convert("RGB")


def check_about(about: dict, path: Path) -> dict:
    if about.get("region", "train") not in REGIONS:
        raise ValueError(f"region of {path} is {about['region']!r}; it must be one of {', '.join(REGIONS)}")
    if "caption" in about:
        about = {**about, "caption": captions.check(about["caption"], str(path))}
    return about


def fit(picture: Image.Image, intrinsics: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale a picture to fill height x width and cut what stands out, evenly; frame and intrinsics [4]."""
    scale = max(height / picture.height, width / picture.width)
    left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
    box = (left, top, left + width / scale, top + height / scale)
    frame = picture.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC, box)
    return np.asarray(frame, np.uint8), (intrinsics - (0, 0, left, top)) * scale
