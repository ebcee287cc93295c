"""The codec of a folder, as its config.json says: relic's own (model/codec.py) or Wan-2.1's in diffusers' layout."""

import json
from pathlib import Path

import torch

from relic.model.codec import VideoCodec
from relic.model.weights import load_codec

CLASS = "AutoencoderKLWan"
VAE_FILE = "diffusion_pytorch_model.safetensors"
TAEHV_FILE = "taew2_1.safetensors"  # beside the VAE's own files it takes the decoder's place
FILES = ("config.json", "model.safetensors", VAE_FILE, TAEHV_FILE)


def load(folder: Path, device: torch.device | str = "cpu") -> VideoCodec:
    """The codec in evaluation mode. diffusers is imported for its own folders only."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; a codec is a folder of relic's or of diffusers' {CLASS}")
    said = json.loads(path.read_text())
    if "_class_name" not in said:
        return load_codec(folder, device)
    if said["_class_name"] != CLASS:
        raise ValueError(f"{folder} holds diffusers' {said['_class_name']}; of diffusers' classes {CLASS} is allowed")
    try:
        from relic.pretrained import vae
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder} holds Wan's VAE, which needs diffusers: pip install 'relic[wan]'") from error
    beside = folder / TAEHV_FILE
    return vae.load(folder / VAE_FILE, device, taehv=beside if beside.is_file() else None)


def files(folder: Path) -> list[str]:
    """The names of the files that make up a folder's codec: what a copy of it needs."""
    return [name for name in FILES if (folder / name).is_file()]
