"""Step shard: clips and their palindromes through the codec into indexed shards (the format: shards.py)."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relic.data import clip, embeddings, encode, shards
from relic.data.config import Shard
from relic.geometry.actions import ACTIONS
from relic.pretrained import codecs


def main(
    cfg: Shard, *, clips: list[Path], codec: list[Path], out: Path, run: Any, part: int = 0, parts: int = 1
) -> dict:
    """Write part `part` of `parts` of the samples to `out` and give the summary back. A killed call goes on behind the
    last batch that it has written."""
    entries = clip.entries_of(clips, cfg.regions)
    mine = entries[part::parts]
    if not mine:
        raise ValueError(
            f"part {part} of {parts} has no clip: {len(entries)} clips are kept in {', '.join(cfg.regions)}"
        )
    if len(codec) != 1:
        raise ValueError(f"{len(codec)} codecs are given; clips are encoded by one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.text_encoder:
        embeddings.embed((entry["caption"] for _, entry in mine), Path(cfg.text_encoder), out, device)
    network = codecs.load(codec[0], device)
    writer = shards.Writer(out, cfg.shard_bytes)
    batches = [mine[at : at + cfg.batch] for at in range(0, len(mine), cfg.batch)]
    for number, batch in islice(enumerate(batches, 1), writer.num_batches, None):
        samples = encode.samples_of([clip.read_clip(folder, entry) for folder, entry in batch], network, cfg, device)
        writer.append(
            [({**facts, "latent_shape": list(found["latents"].shape[1:])}, found) for facts, found in samples]
        )
        run.progress(min(number * cfg.batch, len(mine)), len(mine), f"{len(writer.entries)} samples")
    writer.finish({"latent_shape": shape_of(writer.entries), "actions": asdict(cfg.actions)})
    return summary(writer.entries)


def shape_of(entries: list[dict]) -> list[int]:
    """[C, h, w] of all latents; taken out of the entries."""
    shapes = {entry["id"]: entry.pop("latent_shape") for entry in entries}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other != shape:
            raise ValueError(f"{name} has latents of {other} but {first} of {shape}; one set of samples has one shape")
    return shape


def summary(entries: list[dict]) -> dict:
    """How much there is, and how often each action is active."""
    share = np.mean([entry["action_share"] for entry in entries], 0).round(4).tolist()
    return {
        "samples": len(entries),
        "palindromes": sum(entry["palindrome"] for entry in entries),
        "latents": sum(entry["num_latents"] for entry in entries),
        "bytes": sum(entry["length"] for entry in entries),
        "shards": len({entry["shard"] for entry in entries}),
        "action_share": dict(zip(ACTIONS, share, strict=True)),
    }
