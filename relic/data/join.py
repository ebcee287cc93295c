"""Step join: one index over the parts of a fan-out, of clips or of samples. The files stay where they are; every entry
says by URI which part holds them. Only captions' embeddings are copied together."""

from pathlib import Path
from typing import Any

from relic import artifacts
from relic.data import clip, curation_report, embeddings, video
from relic.data.curate import summary

SAMPLES = "index.json"


def main(cfg: object = None, *, parts: list[Path], out: Path, run: Any) -> dict:
    """Join the parts' clips.json (with a report) or index.json into one in `out`."""
    if not parts:
        raise ValueError("join has no parts; give it at least one artifact of curate or shard")
    kinds = {kind_of(part) for part in parts}
    if len(kinds) > 1:
        raise ValueError("join has parts of clips and parts of samples; they must be of one kind")
    return (join_clips if kinds == {clip.INDEX} else join_samples)(parts, out, run)


def kind_of(part: Path) -> str:
    for name in (clip.INDEX, SAMPLES):
        if (part / name).is_file():
            return name
    raise ValueError(f"{part} has neither {clip.INDEX} nor {SAMPLES}; a part of curate or shard has one")


def joined(entries: list[list[dict]], parts: list[Path]) -> list[dict]:
    """The parts' entries in order, each with the URI of its part; an id comes once."""
    found: dict[str, dict] = {}
    for part, of_part in zip(parts, entries, strict=True):
        uri = artifacts.uri_of(part)
        for entry in of_part:
            if entry["id"] in found:
                raise ValueError(
                    f"{entry['id']} is in {found[entry['id']]['artifact']} and in {uri}; it must come once"
                )
            found[entry["id"]] = {**entry, "artifact": uri}
    return list(found.values())


def join_clips(parts: list[Path], out: Path, run: Any) -> dict:
    indices = [clip.read_index(part) for part in parts]
    folder_of = {entry["id"]: part for part, index in zip(parts, indices, strict=True) for entry in index}
    thresholds = [artifacts.read_json(part / clip.INDEX)["filters"] for part in parts]
    if any(other != thresholds[0] for other in thresholds):
        raise ValueError("the parts were filtered with different thresholds; join parts of one curation")
    entries = joined(indices, parts)
    clip.write_index(out, entries, thresholds[0])
    curation_report.write(
        out / "report.html", entries, thresholds[0],
        frames_of=lambda entry: video.read(folder_of[entry["id"]] / entry["video"]),
    )  # fmt: skip
    run.figure(out / "report.html")
    return summary(entries)


def join_samples(parts: list[Path], out: Path, run: Any) -> dict:
    indices = [artifacts.read_json(part / SAMPLES) for part in parts]
    shapes = {tuple(index["latent_shape"]) for index in indices}
    if len(shapes) > 1:
        raise ValueError(f"the parts have latents of {sorted(shapes)}; joined samples must have one shape")
    samples = joined([index["samples"] for index in indices], parts)
    if any((part / embeddings.FILE).is_file() for part in parts):
        embeddings.write(out, embeddings.read(parts))
    artifacts.write_json(out / SAMPLES, {**indices[0], "samples": samples})
    return {"samples": len(samples), "latents": sum(sample["num_latents"] for sample in samples)}
