"""The optimisers, their schedule, the clipped step and the moving average of the weights."""

import copy
import math
import re

import torch
from torch import Tensor, nn

from relic.model.transformer import Transformer
from relic.train.config import Optimizer

EDGES = re.compile(
    "table|patch_embedding|head|modulation"
)  # where tokens enter and leave: AdamW's, as Muon's authors advise


class Optimizers:
    """Muon on the matrices of the hidden layers (torch.optim.Muon, steps scaled to AdamW's), AdamW on the rest."""

    def __init__(self, module: nn.Module, cfg: Optimizer):
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if cfg.muon and p.ndim == 2 and not EDGES.search(name)]
        rest = [p for _, p in named if not any(p is h for h in hidden)]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": cfg.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=cfg.betas, fused=True)
        ]
        if hidden:
            self.parts.append(
                torch.optim.Muon(hidden, cfg.learning_rate, cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {str(index): part.state_dict() for index, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        for index, part in enumerate(self.parts):
            part.load_state_dict(state[str(index)])


def rate(cfg: Optimizer, step: int, total: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to `final_share`."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, total - cfg.warmup)
    return cfg.learning_rate * (cfg.final_share + (1 - cfg.final_share) * 0.5 * (1 + math.cos(math.pi * done)))


def update(module: nn.Module, optimizers: Optimizers, loss: Tensor, cfg: Optimizer, learning_rate: float) -> float:
    """One step down the gradients that are there; returns the gradient norm. A loss or a norm that is not finite stops
    before it."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), cfg.clip_norm).item()
    for name, value in (("loss", loss.item()), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} is {value}; the step was not taken")
    optimizers.step(learning_rate)
    return norm


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class Trained:
    """The trained parameters of a module as a part of a checkpoint; the frozen ones come from the start weights."""

    def __init__(self, module: nn.Module):
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return trained(self.module)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert state.keys() == trained(self.module).keys(), "a checkpoint of other tensors"
        self.module.load_state_dict(state, strict=False)


class Ema:
    """An exponential moving average of a module's trained weights, early on over the steps so far; the frozen ones are
    the module's own."""

    def __init__(self, module: Transformer, decay: float):
        self.names = list(trained(module))
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.module: Transformer = copy.deepcopy(module, frozen).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: Transformer, step: int) -> None:
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = self.state_dict()
        for name, current in trained(module).items():
            averages[name].lerp_(current, share)

    def state_dict(self) -> dict[str, Tensor]:
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in self.names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert list(state) == self.names, "a checkpoint of other tensors"
        self.module.load_state_dict(state, strict=False)
