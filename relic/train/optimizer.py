"""The optimisers, their schedule, the clipped step and the moving average of the weights."""

import copy
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
        hidden = {name: p for name, p in named if cfg.muon and p.ndim == 2 and not EDGES.search(name)}
        rest = {name: p for name, p in named if name not in hidden}
        adamw = torch.optim.AdamW(
            groups(rest.values(), cfg.weight_decay, lambda p: p.shape), lr=cfg.learning_rate, betas=cfg.betas, fused=True
        )
        self.parts: list[torch.optim.Optimizer] = [adamw]
        # what torch would make at the first step is there from the start, so that a checkpoint can be read into it
        self.state: dict[str, dict[str, Tensor]] = {}
        for name, p in rest.items():
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[name] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            adamw.state[p] = self.state[name]
        if hidden:
            muon = torch.optim.Muon(
                hidden.values(), cfg.learning_rate, cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append(muon)
            for name, p in hidden.items():
                self.state[name] = {"momentum_buffer": torch.zeros_like(p)}
                muon.state[p] = self.state[name]

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The live state, by KEY/NAME of the parameter."""
        return {f"{key}/{name}": tensor for name, found in self.state.items() for key, tensor in found.items()}


def groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, shape_of: Callable[[nn.Parameter], Sequence[int]]
) -> list[dict[str, Any]]:
    """AdamW's: matrices decay, vectors do not."""
    found = list(parameters)
    return [
        {"params": [p for p in found if len(shape_of(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in found if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]


def rate(cfg: Optimizer, step: int, total: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to `final_share`."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, total - cfg.warmup)
    return cfg.learning_rate * (cfg.final_share + (1 - cfg.final_share) * 0.5 * (1 + math.cos(math.pi * done)))


def update(module: nn.Module, optimizers: Optimizers, loss: Tensor, cfg: Optimizer, learning_rate: float) -> float:
    """`descend`, where the loss is finite."""
    finite("loss", loss.item())
    return descend(module, optimizers, cfg.clip_norm, learning_rate)


def descend(module: nn.Module, optimizers: Optimizers, clip_norm: float, learning_rate: float) -> float:
    """One step down the gradients that are there; returns their norm before it was clipped. One that is not finite
    stops before it."""
    norm = finite("gradient norm", nn.utils.clip_grad_norm_(module.parameters(), clip_norm).item())
    optimizers.step(learning_rate)
    return norm


def finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} is {value}; the step was not taken")
    return value


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class Ema:
    """An exponential moving average of a module's trained weights; the frozen ones are the module's own."""

    def __init__(self, module: Transformer):
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.names = list(trained(module))
        self.module: Transformer = copy.deepcopy(module, frozen).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Transformer, share: float) -> None:
        """Moves the average by this share of the way to the module."""
        for average, current in zip(self.tensors().values(), trained(module).values(), strict=True):
            average.lerp_(current, share)

    def tensors(self) -> dict[str, Tensor]:
        """The live averages, by name."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in self.names}
