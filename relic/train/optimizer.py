"""The optimisers, their schedule, the clipped step and the moving average of the weights."""

import copy
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from relic.model.transformer import Transformer
from relic.train.config import Optimizer
from relic.train.fragments import Part, Whole

EDGES = re.compile(
    "table|patch_embedding|head|modulation"
)  # where tokens enter and leave: AdamW's, as Muon's authors advise


class Optimizers:
    """Muon on the matrices of the hidden layers (torch.optim.Muon, steps scaled to AdamW's), AdamW on the rest."""

    def __init__(self, module: nn.Module, cfg: Optimizer):
        self.names: dict[nn.Parameter, str] = {p: name for name, p in module.named_parameters() if p.requires_grad}
        hidden = [p for p, name in self.names.items() if cfg.muon and p.ndim == 2 and not EDGES.search(name)]
        rest = [p for p in self.names if not any(p is h for h in hidden)]
        decayed = groups(rest, cfg.weight_decay, lambda p: p.shape)
        adamw = torch.optim.AdamW(decayed, lr=cfg.learning_rate, betas=cfg.betas, fused=True)
        self.parts: list[torch.optim.Optimizer] = [adamw]
        # what torch makes at the first step, made now, so that a checkpoint has where to put what it saved
        for p in rest:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            adamw.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if hidden:
            muon = torch.optim.Muon(hidden, cfg.learning_rate, cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
            for p in hidden:
                muon.state[p] = {"momentum_buffer": torch.zeros_like(p)}

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """What the optimisers remember, live, by KIND/PARAMETER, such as "exp_avg/head.weight"."""
        kept = [(self.names[cast(nn.Parameter, p)], state) for part in self.parts for p, state in part.state.items()]
        return {f"{kind}/{name}": value for name, state in kept for kind, value in state.items()}


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

    def __init__(self, module: Transformer, decay: float):
        self.names = list(trained(module))
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.module: Transformer = copy.deepcopy(module, frozen).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: Transformer, step: int) -> None:
        averages = self.averages()
        for name, current in trained(module).items():
            averages[name].lerp_(current, share(self.decay, step))

    def averages(self) -> dict[str, Tensor]:
        """The averaged parameters, live, by name."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in self.names}


def share(decay: float, step: int) -> float:
    """How far a step moves an average to the weights; early on it is that of the steps so far."""
    return 1 - min(decay, (1 + step) / (10 + step))


def parts(name: str, module: nn.Module, optimizers: Optimizers, ema: Ema | None = None) -> list[Part]:
    """What is saved of a model in training, by `name`/KIND/PARAMETER; the frozen parameters come from the start
    weights."""
    averages = [] if ema is None else [Whole(f"{name}/ema", ema.averages())]
    return [Whole(f"{name}/weights", trained(module)), Whole(name, optimizers.state()), *averages]
