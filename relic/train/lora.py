"""Low-rank adaptation (LoRA, arXiv 2106.09685) of a transformer by peft: for who cannot train 14B in full.

The linear layers of the blocks get adapters and are frozen with all the rest, but for the control paths: Wan's weights
know nothing of actions and poses, so these are trained whole. What is written is a plain model, the adapters added to
the weights (`merged`), and beside it what was trained (`adapter.safetensors`), which is small: with the start weights
it gives the same model again (`load`).
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from relic.mistakes import UserError
from relic.model import config, tensors, weights
from relic.model.transformer import Transformer
from relic.train import optimizer
from relic.train.config import Lora

WHOLE = ("action_encoder.", "pose_encoder.")
ADAPTER = "default"  # peft's name of the only one
FILE = "adapter.safetensors"


def adapt(model: Transformer, cfg: Lora) -> None:
    """Puts adapters into the model, which computes the same until they are trained, and freezes what they adapt."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise UserError(f"lora needs {error.name}; install the extra: pip install 'relic[lora]'") from error
    linears = rf"blocks\.\d+\.({'|'.join(cfg.targets)})\.(to_(q|k|v|out)|[02])"
    peft_config = LoraConfig(r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=linears)
    inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if name.startswith(WHOLE):
            parameter.requires_grad_(True)


@torch.no_grad()
def merged(model: Transformer) -> Transformer:
    """A plain model whose weights are the adapted ones, on the CPU, for a second whole one has no room on a GPU; what
    was not adapted is shared with a `model` that is there too. A model without adapters is given back as it is."""
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import Linear

    whole = model.state_dict().items()
    state = {name: x.cpu() for name, x in whole if ".lora_" not in name and ".base_layer." not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            linear = layer.get_base_layer()
            state[f"{name}.weight"] = (layer.get_delta_weight(ADAPTER) + linear.get_parameter("weight")).cpu()
            state[f"{name}.bias"] = linear.get_parameter("bias").detach().cpu()
    with torch.device("meta"):
        plain = Transformer(model.cfg)
    plain.load_state_dict(state, assign=True)
    return plain.eval()


def save(model: Transformer, cfg: Lora, folder: Path, trained: list[str]) -> None:
    """Writes adapter.safetensors: the tensors that were trained, by their names in the adapted model, and the dials of
    both, without which they cannot be put in again."""
    state = model.state_dict()
    found = {name: state[name].detach().to("cpu").contiguous() for name in trained}
    save_file(found, folder / FILE, {"lora": json.dumps(asdict(cfg)), "model": json.dumps(asdict(model.cfg))})


def load(start: Path, folder: Path) -> Transformer:
    """The adapted model of start weights and a folder's adapter.safetensors, in evaluation mode."""
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{folder} holds no {FILE}; a teacher trained with lora.rank above 0 writes one")
    found = tensors.places([file])
    with safe_open(file, framework="pt") as opened:
        written = opened.metadata() or {}
    if not {"lora", "model"} <= written.keys():
        raise ValueError(f"{file} does not say what it adapts; allowed is one that a teacher of relic wrote")
    model = Transformer(config.Transformer(**weights.dials(json.loads(written["model"]))))
    weights.load_into(model, weights.start_folder(str(start)))
    adapt(model, Lora(**weights.dials(json.loads(written["lora"]))))
    weights.load_state(optimizer.trained(model), found, file)
    return model.eval()


def merge(start: Path, folder: Path, out: Path) -> None:
    """Writes the plain model of start weights and a folder's adapter.safetensors."""
    weights.save(merged(load(start, folder)), out)
