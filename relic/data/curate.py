"""Step curate: record or import clips, filter, caption and annotate them. A clip is finished when its entry is on disk,
so a killed call goes on with the next one."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from relic import artifacts
from relic.data import captions, clip, filters
from relic.data.config import REGIONS, Curate
from relic.worlds.recording import Recording

TOGETHER = 4  # consecutive clips that a worker of Ray makes at once, for which a world is started once
Stretch = tuple[str, list[int]]  # a region, and consecutive numbers of its clips
Take = Callable[[str, int, int], Iterable[tuple[Recording, str]]]


def main(cfg: Curate, *, out: Path, run: Any, part: int = 0, parts: int = 1, ray: str = "") -> dict:
    """Write part `part` of `parts` of the clips to `out` and give the summary back.

    With `ray`, a cluster's address, its workers record and filter, and this process writes."""
    if not 0 <= part < parts:
        raise ValueError(f"part is {part} of {parts}; it must be 0 to {parts - 1}")
    counts, take = source_of(cfg)
    plan = [(region, index) for region in REGIONS for index in part_of(counts[region], part, parts)]
    left = finished(out)
    entries = {key: left[name] for key in plan if (name := clip_id(cfg, *key)) in left}
    stretches = list(consecutive([key for key in plan if key not in entries]))
    for region, index, entry in made(cfg, take, stretches, out) if not ray else made_on_ray(cfg, stretches, out, ray):
        entries[region, index] = entry
        run.progress(len(entries), len(plan), f"{region} clip {index}")
    ordered = [entries[key] for key in plan]
    clip.write_index(out, ordered, asdict(cfg.filters))
    return summary(ordered)


def made(cfg: Curate, take: Take, stretches: Iterable[Stretch], out: Path) -> Iterator[tuple[str, int, dict]]:
    """Record or import, filter, caption, annotate and write the clips of every stretch: region, index, entry."""
    for region, indices in stretches:
        for index, (recording, caption) in zip(indices, take(region, indices[0], len(indices)), strict=True):
            yield region, index, curate(cfg, recording, caption, clip_id(cfg, region, index), out)


def made_on_ray(cfg: Curate, stretches: Iterable[Stretch], out: Path, address: str) -> Iterator[tuple[str, int, dict]]:
    """What `made` gives and writes, by the workers of a cluster."""
    from relic.data import on_ray

    pieces = [
        (region, indices[at : at + TOGETHER])
        for region, indices in stretches
        for at in range(0, len(indices), TOGETHER)
    ]
    # a person's folder is on this machine, a world is everywhere
    for clips in on_ray.results(maker, (cfg,), pieces, address=address, here=cfg.source == "folder"):
        for region, index, entry, files in clips:
            clip.write_files(out, files)
            artifacts.write_json(entry_path(out, entry["id"]), entry)
            yield region, index, entry


def maker(cfg: Curate) -> Callable[[Stretch], list[tuple[str, int, dict, dict[str, bytes]]]]:
    """What makes the clips of a stretch on any machine: region, index, entry, and the bytes of the files."""
    _, take = source_of(cfg)

    def make(stretch: Stretch) -> list[tuple[str, int, dict, dict[str, bytes]]]:
        with TemporaryDirectory() as folder:
            out = Path(folder)
            return [(*found, clip.files_of(out, found[-1])) for found in made(cfg, take, [stretch], out)]

    return make


def part_of(count: int, part: int, parts: int) -> range:
    """The contiguous range of 0 .. count - 1 that a part takes."""
    return range(count * part // parts, count * (part + 1) // parts)


def clip_id(cfg: Curate, region: str, index: int) -> str:
    return f"{cfg.source}-{cfg.seed}-{region}-{index:05d}"


def entry_path(out: Path, name: str) -> Path:
    """A hidden file is not part of the artifact: the finished index holds every entry."""
    return out / "clips" / f".{name}.json"


def finished(out: Path) -> dict[str, dict]:
    """The entries that an earlier call left, by id. One is written after its video and track, so these are whole."""
    if (out / clip.INDEX).is_file():
        return {entry["id"]: entry for entry in clip.read_index(out)}
    return {entry["id"]: entry for entry in map(artifacts.read_json, (out / "clips").glob(".*.json"))}


def consecutive(todo: list[tuple[str, int]]) -> Iterator[Stretch]:
    """(region, indices) of each run of consecutive clips: a world is started once a run."""
    for (region, _), group in groupby(enumerate(todo), key=lambda item: (item[1][0], item[1][1] - item[0])):
        yield region, [index for _, (_, index) in group]


def source_of(cfg: Curate) -> tuple[dict[str, int], Take]:
    """How many clips each region has, and (region, start, number) -> recordings with the caption that came with them.

    A recording is a function of its index, region and seed only, so that parts and killed calls give the same clips."""
    counts = {region: getattr(cfg, region) for region in REGIONS}
    if cfg.source == "folder":
        from relic.data.importers import folder

        every = folder.windows(Path(cfg.folder), num_frames=cfg.num_frames, fps=cfg.fps)
        of_region = {region: [w for w in every if w.region == region][: counts[region]] for region in REGIONS}

        def imported(region: str, start: int, number: int) -> Iterator[tuple[Recording, str]]:
            for window in of_region[region][start : start + number]:
                yield folder.record(window, height=cfg.height, width=cfg.width, fps=cfg.fps), window.caption

        return {region: len(found) for region, found in of_region.items()}, imported
    world = import_module(f"relic.worlds.{cfg.source}")

    def recorded(region: str, start: int, number: int) -> Iterator[tuple[Recording, str]]:
        span = {"num_clips": number, "num_frames": cfg.num_frames, "start": start}
        for recording in world.record(getattr(cfg, cfg.source), region=region, seed=cfg.seed, **span):
            yield recording, ""

    return counts, recorded


def curate(cfg: Curate, recording: Recording, caption: str, name: str, out: Path) -> dict:
    """Filter, caption, annotate and write one recording; its entry comes last."""
    r = recording
    measures = filters.measure(r.frames, r.poses, r.intrinsics, r.fps, r.depth)
    caption = caption or captions.describe(r.frames[: round(r.fps)], place=r.place, tags=r.tags)
    found = clip.Clip(
        id=name, frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world, place=r.place,
        region=r.region, seed=r.seed, tags=r.tags, caption=caption,
    )  # fmt: skip
    entry = clip.write_clip(
        out, found, actions=cfg.actions, crf=cfg.crf, reasons=filters.reasons(measures, cfg.filters),
        measures={filter_: {metric: m.value for metric, m in metrics.items()} for filter_, metrics in measures.items()},
    )  # fmt: skip
    artifacts.write_json(entry_path(out, name), entry)
    return entry


def summary(entries: list[dict]) -> dict:
    """How many clips were kept and dropped, by region and by filter."""
    kept = [entry for entry in entries if entry["kept"]]
    dropped_by = [{reason["filter"] for reason in entry["reasons"]} for entry in entries]
    return {
        "clips_kept": len(kept),
        "clips_dropped": len(entries) - len(kept),
        "seconds_of_video": round(sum(entry["num_frames"] / entry["fps"] for entry in kept), 1),
        "kept_by_region": {region: sum(entry["region"] == region for entry in kept) for region in REGIONS},
        "dropped_by_filter": dict(sorted(Counter(name for found in dropped_by for name in found).items())),
    }
