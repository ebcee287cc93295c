"""Captions' embeddings beside the shards, so that training holds no text encoder.

captions.safetensors has, under the key of each distinct caption and of the empty prompt, the embeddings [n, width]
bfloat16 of its n tokens; the padding, which is zero, is not kept."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relic.pretrained import words

FILE = "captions.safetensors"


def key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def embed(captions: Iterable[str], encoder: Path, out: Path, device: str) -> None:
    """Write the embeddings of captions, each once, and of the empty prompt, unless a killed call has done so."""
    if (out / FILE).is_file():
        return
    network = words.load(encoder, device)
    write(out, {key(caption): network.tokens_of(caption).cpu() for caption in dict.fromkeys(["", *captions])})


def write(out: Path, embedded: Mapping[str, Tensor]) -> None:
    """Write embeddings [n, width] by the keys of their captions; beside, then renamed."""
    beside = out / f".{FILE}.new"
    save_file({name: rows.to("cpu", torch.bfloat16).contiguous() for name, rows in embedded.items()}, beside)
    beside.rename(out / FILE)


def read(folders: list[Path]) -> dict[str, Tensor]:
    """The embeddings [n, width] of artifacts of shard or join by the keys of their captions; the files are mapped, not
    copied. ValueError where an artifact has none, or of another width."""
    found: dict[str, Tensor] = {}
    widths: set[int] = set()
    for folder in folders:
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder} has no {FILE}; `relic shard` writes it where text_encoder names umT5's folder")
        held = load_file(folder / FILE)
        widths |= {rows.shape[1] for rows in held.values()}
        found |= held
    if len(widths) > 1:
        raise ValueError(f"captions have embeddings of widths {sorted(widths)}; all must come from one text encoder")
    return found
