"""Wan-2.1's weights in and out: diffusers' `WanTransformer3DModel`, or the files of Wan's own release.

Our names and theirs stand side by side in `STEMS` and `BLOCK`. Three layouts differ, and only in the order or grouping
of the same numbers, so import, export and import again are exact to the bit: the patch embedding is a linear layer here
and a Conv3d there; the head's rows go (channel, row, column) here and (row, column, channel) there; their tables of
modulation have a leading 1.

Tensors pass one by one (model/tensors.py). RELIC's own weights, the control paths, travel in the same folder beside
Wan's: `relic_control.safetensors`, with the whole configuration in `relic.json` and every file's sha256 in
`hashes.json`. diffusers does not see them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from relic.model import config, tensors, weights
from relic.model.control import POSE_WIDTH, ControlEncoder
from relic.model.transformer import NUM_ACTIONS, Transformer

Layout = Literal["diffusers", "wan"]
STEMS = (  # ours, diffusers', Wan's own
    ("patch_embedding", "patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("time_projection", "condition_embedder.time_proj", "time_projection.1"),
    ("head", "proj_out", "head.head"),
    ("head_modulation", "scale_shift_table", "head.modulation"),
)
BLOCK = (
    *((f"attention.to_{x}", f"attn1.to_{x}", f"self_attn.{x}") for x in "qkv"),
    ("attention.to_out", "attn1.to_out.0", "self_attn.o"),
    *((f"attention.norm_{x}", f"attn1.norm_{x}", f"self_attn.norm_{x}") for x in "qk"),
    *((f"cross_attention.to_{x}", f"attn2.to_{x}", f"cross_attn.{x}") for x in "qkv"),
    ("cross_attention.to_out", "attn2.to_out.0", "cross_attn.o"),
    *((f"cross_attention.norm_{x}", f"attn2.norm_{x}", f"cross_attn.norm_{x}") for x in "qk"),
    ("cross_norm", "norm2", "norm3"),
    ("ffn.0", "ffn.net.0.proj", "ffn.0"),
    ("ffn.2", "ffn.net.2", "ffn.2"),
    ("modulation", "scale_shift_table", "modulation"),
)
CONTROL = ("action_encoder.", "pose_encoder.")
CONTROL_FILE, CONFIG_FILE, HASHES_FILE = "relic_control.safetensors", "relic.json", "hashes.json"
STEM = "diffusion_pytorch_model"  # of diffusers' files
TRAINED_FRAMES, TEXT_TOKENS = 21, 512  # latents and text tokens that Wan-2.1 was trained on


def name_in(layout: Layout, ours: str) -> str:
    """The name in a layout of a tensor of ours; control paths keep theirs."""
    column = {"diffusers": 1, "wan": 2}[layout]
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", ours)
    prefix, rest = (block[1], block[2]) if block else ("", ours)
    for row in BLOCK if block else STEMS:
        if rest == row[0] or rest.startswith(f"{row[0]}."):
            return prefix + row[column] + rest.removeprefix(row[0])
    assert ours.startswith(CONTROL), f"{ours} has no name among Wan's"
    return ours


def shape_there(name: str, shape: tuple[int, ...], cfg: config.Transformer) -> tuple[int, ...]:
    """The shape in both layouts of a tensor of ours."""
    if name == "patch_embedding.weight":
        return (cfg.width, cfg.latent_channels, *cfg.patch)
    return (1, *shape) if name.endswith("modulation") else shape


def theirs(name: str, x: Tensor, cfg: config.Transformer) -> Tensor:
    """A tensor of ours as both layouts hold it."""
    if name.startswith("head."):
        return rearrange(x, "(c p q) ... -> (p q c) ...", p=cfg.patch[1], q=cfg.patch[2]).contiguous()
    return x.reshape(shape_there(name, tuple(x.shape), cfg))


def ours(name: str, x: Tensor, cfg: config.Transformer) -> Tensor:
    """The other way."""
    if name.startswith("head."):
        return rearrange(x, "(p q c) ... -> (c p q) ...", p=cfg.patch[1], q=cfg.patch[2]).contiguous()
    if name == "patch_embedding.weight":
        return x.flatten(1)
    return x[0] if name.endswith("modulation") else x


def expected(cfg: config.Transformer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all of our tensors."""
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in Transformer(cfg).state_dict().items()}


# Import


def import_weights(
    source: Sequence[Path], out: Path, *, heads: int = 0, control_width: int = 256, pickle: bool = False
) -> config.Transformer:
    """Writes model.safetensors and config.json to `out` from a folder, or from its files.

    The dtype stays. Control paths are taken from a folder that `export_weights` has written; else they are new, their
    last layers zero, so that the model is Wan, and `control_width` wide. `heads` is needed where no config.json says
    how many there are; `pickle` allows .pth files, read with weights_only."""
    folder = source[0] if len(source) == 1 and source[0].is_dir() else None
    if folder and (folder / HASHES_FILE).exists():
        verify(folder)
    files = files_of(source, pickle)
    if out.resolve() in {file.resolve().parent for file in files}:
        raise ValueError(f"out is {out}, where the weights to import lie; give another folder")
    found, read = opened(files)
    layout, prefix = layout_of(found, files)
    cfg = config_of(folder, found, layout, prefix, heads, control_width)
    shapes = expected(cfg)
    wanted = {name: prefix + name_in(layout, name) for name in shapes if not name.startswith(CONTROL)}
    check(found, {there: shape_there(name, shapes[name], cfg) for name, there in wanted.items()}, files)
    own = control_paths(folder, cfg, found[wanted["head.weight"]].dtype)
    kinds = {
        name: (own[name].dtype if name in own else found[wanted[name]].dtype, shape) for name, shape in shapes.items()
    }

    def make(name: str) -> Tensor:
        return own[name] if name in own else ours(name, read(found[wanted[name]]), cfg)

    out.mkdir(parents=True, exist_ok=True)
    tensors.write(out / "model.safetensors", kinds, make)
    weights.write_config("transformer", cfg, out / "config.json")
    return cfg


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Every file as `export_weights` left it."""
    for name, expected_hash in json.loads((folder / HASHES_FILE).read_text()).items():
        if not (folder / name).is_file() or sha256(folder / name) != expected_hash:
            raise ValueError(f"{folder / name} is missing or damaged: its sha256 must be {expected_hash}")


def files_of(source: Sequence[Path], pickle: bool) -> list[Path]:
    """The files of a folder, by its index if it has one, or the files given."""
    files = list(source)
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        indices = sorted(folder.glob("*.safetensors.index.json"))
        if indices:
            files = [folder / name for name in sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))]
        else:
            files = sorted(file for file in folder.glob("*.safetensors") if file.name != CONTROL_FILE)
            files = files or sorted(folder.glob("*.pth"))
        if not files:
            raise ValueError(f"{folder} holds no weights; it must have *.safetensors, with their index if several")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing; give a folder of weights, or all of its files")
        if file.suffix != ".safetensors" and not pickle:
            raise ValueError(f"{file} is not a safetensors file; a .pth is read with --pickle only, if you trust it")
    return files


def opened(files: Sequence[Path]) -> tuple[dict[str, tensors.Place], Callable[[tensors.Place], Tensor]]:
    """What tensors there are, and what reads one."""
    if all(file.suffix == ".safetensors" for file in files):
        return tensors.places(files), tensors.read
    found: dict[str, tensors.Place] = {}
    states = {file: torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in files}
    for file, state in states.items():
        for name, x in state.items():
            if not isinstance(x, Tensor):
                raise ValueError(f"{file}: {name} is a {type(x).__name__}; only tensors by name are allowed")
            found[name] = tensors.Place(file, name, x.dtype, tuple(x.shape))
    return found, lambda place: states[place.file][place.name]


def layout_of(found: Mapping[str, object], files: Sequence[Path]) -> tuple[Layout, str]:
    """Which names these are, and what stands before them."""
    marks: dict[Layout, str] = {"diffusers": "condition_embedder.time_proj.weight", "wan": "time_projection.1.weight"}
    for layout, mark in marks.items():
        for name in found:
            if name.endswith(mark):
                return layout, name.removesuffix(mark)
    raise ValueError(
        f"{files[0]} holds no Wan transformer: neither {' nor '.join(marks.values())} is among its "
        f"{len(found)} tensors, of which the first is {next(iter(found), 'none')}"
    )


def config_of(
    folder: Path | None, found: Mapping[str, tensors.Place], layout: Layout, prefix: str, heads: int,
    control_width: int,
) -> config.Transformer:  # fmt: skip
    """Our configuration, from `relic.json` or from the tensors' shapes; the heads from config.json."""
    if folder and (folder / CONFIG_FILE).exists():
        return weights.read_config(folder, "transformer", CONFIG_FILE)

    def shape(name: str) -> tuple[int, ...]:
        there = prefix + name_in(layout, name)
        if there not in found:
            raise ValueError(f"tensor {there} is missing")
        return found[there].shape

    said = json.loads((folder / "config.json").read_text()) if folder and (folder / "config.json").exists() else {}
    heads = heads or said.get("num_attention_heads", 0) or said.get("num_heads", 0)
    if not heads:
        raise ValueError("no config.json says how many heads there are; give --heads (Wan 1.3B: 12, 14B: 40)")
    embedding = shape("patch_embedding.weight")
    blocks = {int(name.removeprefix(f"{prefix}blocks.").split(".")[0]) for name in found if ".blocks." in f".{name}"}
    if len(embedding) != 5:
        raise ValueError(f"tensor {prefix}patch_embedding.weight is {embedding}; five dimensions are expected")
    return config.Transformer(
        width=embedding[0],
        ffn=shape("blocks.0.ffn.0.weight")[0],
        layers=max(blocks) + 1,
        heads=heads,
        latent_channels=embedding[1],
        patch=embedding[2:],
        text_width=shape("text_embedding.0.weight")[1],
        text_tokens=TEXT_TOKENS,
        text_vocabulary=0,
        frequency_width=shape("time_embedding.0.weight")[1],
        control_width=control_width,
        trained_frames=TRAINED_FRAMES,
        frames=TRAINED_FRAMES,
    )


def check(found: Mapping[str, tensors.Place], wanted: Mapping[str, tuple[int, ...]], files: Sequence[Path]) -> None:
    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(f"{where}: tensor {name} is missing; it must be {shape}")
        if found[name].shape != shape:
            raise ValueError(f"{where}: tensor {name} is {found[name].shape}; it must be {shape}")
    for name in found:
        if name not in wanted:
            raise ValueError(f"{where}: tensor {name} {found[name].shape} is not one of a text-to-video Wan-2.1")


def control_paths(folder: Path | None, cfg: config.Transformer, dtype: torch.dtype) -> dict[str, Tensor]:
    """The folder's control paths, or new ones whose last layers are zero, always the same."""
    if folder and (folder / CONTROL_FILE).exists():
        places = tensors.places([folder / CONTROL_FILE])
        shapes = {name: shape for name, shape in expected(cfg).items() if name.startswith(CONTROL)}
        check(places, shapes, [folder / CONTROL_FILE])
        return {name: tensors.read(place) for name, place in places.items()}
    made: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part, features in zip(CONTROL, (NUM_ACTIONS, POSE_WIDTH), strict=True):
            encoder = ControlEncoder(features, cfg.control_width, cfg.width, cfg.layers)
            made |= {part + name: x.to(dtype) for name, x in encoder.state_dict().items()}
    return made


# Export


def export_weights(folder: Path, out: Path, *, shard_bytes: int = 5 * 10**9) -> list[Path]:
    """Writes a model of ours as `WanTransformer3DModel.from_pretrained` loads it, in files of at most `shard_bytes`
    unless a tensor alone is larger, with RELIC's own files beside; the hashes last."""
    cfg = weights.read_config(folder, "transformer")
    if cfg.text_vocabulary:
        raise ValueError(f"{folder} has a text table of its own; only models with umT5's embeddings are Wan's")
    places = tensors.places([folder / "model.safetensors"])
    check(places, expected(cfg), [folder / "model.safetensors"])
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"out is {out}, which is not empty; give a new folder, for older files could be read with these"
        )
    out.mkdir(parents=True, exist_ok=True)
    mine = {name: place for name, place in places.items() if not name.startswith(CONTROL)}
    shards: list[dict[str, str]] = [{}]  # names there -> names here
    size = 0
    for name, place in mine.items():
        if shards[-1] and size + place.num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name_in("diffusers", name)] = name
        size += place.num_bytes
    written = []
    for index, shard in enumerate(shards):
        suffix = "" if len(shards) == 1 else f"-{index + 1:05d}-of-{len(shards):05d}"
        written.append(out / f"{STEM}{suffix}.safetensors")
        kinds = {there: (mine[name].dtype, shape_there(name, mine[name].shape, cfg)) for there, name in shard.items()}

        def make(there: str, shard: dict[str, str] = shard) -> Tensor:
            return theirs(shard[there], tensors.read(mine[shard[there]]), cfg)

        tensors.write(written[-1], kinds, make, {"format": "pt"})
    if len(shards) > 1:
        index_of = {there: path.name for shard, path in zip(shards, written, strict=True) for there in shard}
        total = sum(place.num_bytes for place in mine.values())
        written.append(out / f"{STEM}.safetensors.index.json")
        written[-1].write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index_of}, indent=1))
    control = {name: place for name, place in places.items() if name.startswith(CONTROL)}
    written.append(out / CONTROL_FILE)
    tensors.write(
        written[-1], {name: (place.dtype, place.shape) for name, place in control.items()},
        lambda name: tensors.read(control[name]), {"format": "pt"},
    )  # fmt: skip
    written += [out / "config.json", out / CONFIG_FILE]
    written[-2].write_text(json.dumps(diffusers_config(cfg), indent=1))
    weights.write_config("transformer", cfg, written[-1])
    hashes = {path.name: sha256(path) for path in written}
    written.append(out / HASHES_FILE)
    written[-1].write_text(json.dumps(hashes, indent=1))
    return written


def diffusers_config(cfg: config.Transformer) -> dict[str, object]:
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(cfg.patch),
        "num_attention_heads": cfg.heads,
        "attention_head_dim": cfg.head_width,
        "in_channels": cfg.latent_channels,
        "out_channels": cfg.latent_channels,
        "text_dim": cfg.text_width,
        "freq_dim": cfg.frequency_width,
        "ffn_dim": cfg.ffn,
        "num_layers": cfg.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
