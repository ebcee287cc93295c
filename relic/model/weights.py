"""A network in a folder: model.safetensors and config.json, the file that says what it is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import relic
from relic.model import config, tensors
from relic.model.codec import Codec, decoder
from relic.model.pose_net import PoseNet
from relic.model.transformer import Transformer

SHIPPED = Path(relic.__file__).parent / "weights"
KINDS = {
    "codec": (config.Codec, Codec),
    "pose_net": (config.PoseNet, PoseNet),
    "transformer": (config.Transformer, Transformer),
}


def save(
    module: Codec | PoseNet | Transformer,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the weights (in `dtype`, if given) and the configuration; the configuration last. `state` has the weights
    of a module whose own are elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = next(name for name, (_, cls) in KINDS.items() if type(module) is cls)
    found = module.state_dict() if state is None else state
    state = {k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in found.items()}
    save_file(state, folder / "model.safetensors")
    write_config(kind, module.cfg, folder / "config.json")


def write_config(kind: str, cfg: Any, path: Path) -> None:
    path.write_text(json.dumps(described(kind, cfg), indent=1))


def described(kind: str, cfg: Any) -> dict[str, Any]:
    """What config.json says of a network."""
    return {"kind": kind, **dataclasses.asdict(cfg)}


def load_codec(folder: Path, device: torch.device | str = "cpu") -> Codec:
    return _load(folder, "codec", device)


def load_pose_net(folder: Path, device: torch.device | str = "cpu") -> PoseNet:
    return _load(folder, "pose_net", device)


def load_transformer(folder: Path, device: torch.device | str = "cpu") -> Transformer:
    return _load(folder, "transformer", device)


def load_taehv(file: Path, device: torch.device | str = "cpu") -> nn.Sequential:
    """TAEHV's decoder of Wan-2.1's latents from the published `taew2_1.safetensors`: normalised latents in, 0..1 out.

    Its encoder is left behind: it pads a video at the end and pools frames 0-3, where Wan's first latent is frame 0
    alone."""
    layers = decoder(config.TAEHV)
    prefix = "decoder."
    found = {k.removeprefix(prefix): v for k, v in tensors.places([file]).items() if k.startswith(prefix)}
    load_state(layers.state_dict(), found, file)
    return layers.to(device).eval()


def start_folder(name: str) -> Path:
    """The folder of start weights that ship with relic, such as "tiny/base", or one that lies elsewhere."""
    folder = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)
    if not (folder / "model.safetensors").exists():
        found = sorted(str(p.parent.relative_to(SHIPPED)) for p in SHIPPED.glob("**/model.safetensors"))
        raise ValueError(
            f"there are no start weights {name!r}; relic ships {', '.join(found) or 'none'}, "
            "and a folder with model.safetensors can be given"
        )
    return folder


def load_into(module: nn.Module, folder: Path) -> None:
    """Start weights into a module built already; a tensor that is missing, extra or of another shape is named."""
    load_state(module.state_dict(), tensors.places([folder / "model.safetensors"]), folder)


@torch.no_grad()
def load_state(own: Mapping[str, Tensor], found: Mapping[str, tensors.Place], source: Path) -> None:
    """The tensors of `source` into a module's own, one by one; one that is missing, extra or of another shape is
    named."""
    for name in sorted(found.keys() ^ own.keys()):
        raise ValueError(f"{source}: tensor {name} is {'missing' if name in own else 'not one of this model'}")
    for name, place in found.items():
        if place.shape != tuple(own[name].shape):
            raise ValueError(f"{source}: tensor {name} is {place.shape}; the model's is {tuple(own[name].shape)}")
    for name, place in found.items():
        own[name].copy_(tensors.read(place))


def check_start(cfg: config.Transformer, folder: Path) -> None:
    """Refuses start weights whose configuration computes something else, though all shapes may fit."""
    saved = dataclasses.asdict(read_config(folder, "transformer"))
    for name, value in dataclasses.asdict(cfg).items():
        if name not in ("frames", "attention") and saved[name] != value:
            raise ValueError(f"{folder} has {name} {saved[name]}; the model to train has {value}")


def read_config(folder: Path, kind: str, file: str = "config.json") -> Any:
    """The configuration of the network in a folder, which must be of this kind."""
    path = folder / file
    if not path.exists():
        raise ValueError(f"{folder} holds no config.json; a {kind}'s folder has model.safetensors and config.json")
    fields = json.loads(path.read_text())
    if fields.pop("kind", None) != kind:
        raise ValueError(f"{folder} holds no {kind} of relic's, see its {file}")
    return KINDS[kind][0](**dials(fields))


def dials(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's fields as JSON has them, its lists tuples again."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _load(folder: Path, kind: str, device: torch.device | str):
    cfg = read_config(folder, kind)
    with torch.device(device):
        module = KINDS[kind][1](cfg)
    load_into(module, folder)
    return module.eval()
