"""A clip: frames with a pose each; on disk an mp4, an npz of its track, and an entry in the artifact's clips.json."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from relic import artifacts, stores
from relic.data import video
from relic.geometry.actions import annotate
from relic.geometry.config import Actions

INDEX = "clips.json"


@dataclass(frozen=True)
class Clip:
    id: str
    frames: np.ndarray  # uint8 [T, H, W, 3]
    poses: np.ndarray  # float64 [T, 4, 4] camera-to-world
    intrinsics: np.ndarray  # float64 [4] fx fy cx cy in pixels
    fps: float
    world: str  # doom, rooms, or the folder's name
    place: str
    region: str  # train, known or unseen
    seed: int
    tags: tuple[str, ...]
    caption: str


def read_index(folder: Path) -> list[dict]:
    """The entries of a clips artifact, kept and dropped."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder} has no {INDEX}; a clips artifact of curate or join is needed")
    return artifacts.read_json(path)["clips"]


def write_index(folder: Path, entries: list[dict], filters: dict) -> None:
    """Write clips.json: the entries, and the thresholds of the filters that judged them."""
    artifacts.write_json(folder / INDEX, {"filters": filters, "clips": entries})


def folder_of(folder: Path, entry: dict) -> Path:
    """Where an entry's files are; a joined entry names the part that holds them."""
    return stores.fetch(entry["artifact"]) if "artifact" in entry else folder


def read_clip(folder: Path, entry: dict) -> Clip:
    """The clip of an entry."""
    folder = folder_of(folder, entry)
    frames = video.read(folder / entry["video"])
    with np.load(folder / entry["track"], allow_pickle=False) as track:
        poses, intrinsics = track["c2w"], track["intrinsics"]
    if len(frames) != len(poses):
        raise ValueError(f"{entry['video']} has {len(frames)} frames but its track has {len(poses)} poses")
    about = {name: entry[name] for name in ("id", "fps", "world", "place", "region", "seed", "caption")}
    return Clip(frames=frames, poses=poses, intrinsics=intrinsics, tags=tuple(entry["tags"]), **about)


def files_of(folder: Path, entry: dict) -> dict[str, bytes]:
    """The bytes of an entry's video and track, by the names that the entry gives them: a clip on its way elsewhere."""
    return {name: (folder / name).read_bytes() for name in (entry["video"], entry["track"])}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write what `files_of` gave, each file whole or not at all."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        artifacts.write_bytes(folder / name, data)


def entries_of(folders: list[Path], regions: tuple[str, ...]) -> list[tuple[Path, dict]]:
    """(folder, entry) of every kept clip of the regions."""
    return [(f, entry) for f in folders for entry in read_index(f) if entry["kept"] and entry["region"] in regions]


def read_region(folders: list[Path], region: str) -> Iterator[Clip]:
    """Every kept clip of a region, one by one; ValueError where there is none."""
    entries = entries_of(folders, (region,))
    if not entries:
        raise ValueError(
            f"no kept clip of region {region!r} in {', '.join(map(str, folders))}; record more or loosen the filters"
        )
    for folder, entry in entries:
        yield read_clip(folder, entry)


def write_clip(
    folder: Path, clip: Clip, *, actions: Actions, reasons: list[dict], measures: dict, crf: int = 10
) -> dict:
    """Write a clip's video and track under folder/clips, each whole or not at all, and give its entry back."""
    rows = annotate(torch.from_numpy(clip.poses), actions).numpy()
    num_frames = len(clip.frames)
    track = io.BytesIO()
    np.savez_compressed(
        track, c2w=clip.poses, intrinsics=clip.intrinsics, timestamps=np.arange(num_frames) / clip.fps,
        valid=np.ones(num_frames, bool), actions=rows,
    )  # fmt: skip
    names = {"video": f"clips/{clip.id}.mp4", "track": f"clips/{clip.id}.npz"}
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    video.write(folder / names["video"], clip.frames, fps=clip.fps, crf=crf)
    artifacts.write_bytes(folder / names["track"], track.getvalue())
    return {
        "id": clip.id, **names, "num_frames": num_frames, "fps": clip.fps, "world": clip.world, "place": clip.place,
        "region": clip.region, "seed": clip.seed, "tags": list(clip.tags), "caption": clip.caption,
        "kept": not reasons, "reasons": reasons, "measures": measures,
        "action_share": (rows[1:] > 0).mean(0).round(4).tolist(),
    }  # fmt: skip
