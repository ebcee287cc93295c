"""Step shard: clips and their palindromes through the codec into indexed shards (the format: shards.py)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch

from relic.data import clip, embeddings, encode, shards
from relic.data.config import Shard
from relic.geometry.actions import ACTIONS
from relic.pretrained import codecs

Located = tuple[Path, dict]  # a clip's entry behind the folder of its files
Packed = tuple[dict, dict[str, bytes]]  # a clip's entry and its files' bytes


def main(
    cfg: Shard, *, clips: list[Path], codec: list[Path], out: Path, run: Any,
    part: int = 0, parts: int = 1, ray: str = "",
) -> dict:  # fmt: skip
    """Write part `part` of `parts` of the samples to `out` and give the summary back. A killed call goes on behind the
    last batch that it has written. With `ray`, a cluster's address, its workers encode, and this process writes."""
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
    writer = shards.Writer(out, cfg.shard_bytes)
    batches = [mine[at : at + cfg.batch] for at in range(0, len(mine), cfg.batch)]
    todo = batches[writer.num_batches :]
    for number, samples in enumerate(encoded(cfg, todo, codec[0], ray), writer.num_batches + 1):
        writer.append(
            [({**facts, "latent_shape": list(found["latents"].shape[1:])}, found) for facts, found in samples]
        )
        run.progress(min(number * cfg.batch, len(mine)), len(mine), f"{len(writer.entries)} samples")
    writer.finish({"latent_shape": shape_of(writer.entries), "actions": asdict(cfg.actions)})
    return summary(writer.entries)


def encoded(cfg: Shard, batches: list[list[Located]], codec: Path, ray: str) -> Iterator[list[encode.Sample]]:
    """The samples of each batch in order."""
    if not ray:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = codecs.load(codec, device)
        for batch in batches:
            yield encode.samples_of([clip.read_clip(*located) for located in batch], network, cfg, device)
        return
    from relic.data import on_ray

    batches = [[(clip.folder_of(*located), located[1]) for located in batch] for batch in batches]
    files = {name: (codec / name).read_bytes() for name in codecs.files(codec)}
    for members in on_ray.results(encoder, (cfg, files), batches, address=ray, read=packed, gpu=True):
        yield [(facts, safetensors.torch.load(member)) for facts, member in members]


def packed(batch: list[Located]) -> list[Packed]:
    """A batch of clips on its way to another machine."""
    return [
        ({name: value for name, value in entry.items() if name != "artifact"}, clip.files_of(folder, entry))
        for folder, entry in batch
    ]


def encoder(cfg: Shard, codec: dict[str, bytes]) -> Callable[[list[Packed]], list[tuple[dict, bytes]]]:
    """What encodes packed batches where none of our files are: the facts and a safetensors file of each sample."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in codec.items():
            (folder / file).write_bytes(data)
        network = codecs.load(folder, device)

    def encode_packed(batch: list[Packed]) -> list[tuple[dict, bytes]]:
        clips = []
        for entry, files in batch:
            with TemporaryDirectory() as folder:
                clip.write_files(Path(folder), files)
                clips.append(clip.read_clip(Path(folder), entry))
        samples = encode.samples_of(clips, network, cfg, device)
        return [(facts, safetensors.torch.save(tensors)) for facts, tensors in samples]

    return encode_packed


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
