"""A model in training, with its optimiser and its average, in one process or many.

A training calls `model`, sends gradients back by plain `backward()`, any number of times, and takes a `step`. What lies
between is the mesh's: alone, nothing; with ZeRO 0, gradients are averaged over all processes in the step, so that the
chunks of a replay cost one exchange; with ZeRO 1 to 3, DeepSpeed's engine (parallel/zero.py).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relic.model import config, fused, tensors, weights
from relic.model.precision import computed_in
from relic.model.transformer import Transformer
from relic.parallel import sequence
from relic.parallel.mesh import Mesh
from relic.train import lora, optimizer
from relic.train.config import Optimizer
from relic.train.fragments import Fragment


def trainee(name: str, module: Transformer, cfg: Optimizer, mesh: Mesh, *, ema: float | None = None) -> "Trainee":
    """`module`, made by `loaded` or spread by `spread`, to be trained; with `ema`, the decay of its average.

    ValueError where it cannot be cut as the mesh says."""
    if not mesh.zero:
        return Trainee(name, module, cfg, mesh, ema)
    if cfg.muon:
        raise ValueError(
            f"muon is on and zero is {mesh.zero}; Muon takes whole matrices: allowed are zero 0, or no muon"
        )
    if not all(p.requires_grad for p in module.parameters()):
        raise ValueError(f"lora.rank is above 0 and zero is {mesh.zero}; adapters are small: allowed is zero 0")
    return ShardedTrainee(name, module, cfg, mesh, ema)


class Trainee:
    """A model that is whole in every process. `model` and `average` are to be called; `module` is what they are of."""

    def __init__(self, name: str, module: Transformer, cfg: Optimizer, mesh: Mesh, ema: float | None):
        self.name, self.module, self.cfg, self.mesh, self.decay = name, module, cfg, mesh, ema
        self.model: Any = module
        self._start()

    def _start(self) -> None:
        self.optimizers = optimizer.Optimizers(self.module, self.cfg)
        self.ema = optimizer.Ema(self.module, self.decay) if self.decay is not None else None
        self.average: Any = spread(self.ema.module.eval(), self.mesh) if self.ema else None
        self.parts = optimizer.parts(self.name, self.module, self.optimizers, self.ema)
        spread(self.module, self.mesh)

    def set_length(self, latents: int) -> None:
        """Says how long videos are from now on, to which RoPE is stretched."""
        for one in (self.model, self.average):
            if one is not None:
                module = module_of(one)
                module.cfg = dataclasses.replace(module.cfg, frames=latents)

    def step(self, loss: Tensor, learning_rate: float, step: int) -> tuple[float, float]:
        """One step down the gradients that came together; returns the loss [], averaged over all processes, and the
        norm of the gradients. FloatingPointError where one of them is not finite."""
        value = optimizer.finite("loss", self._gathered(loss).item())
        norm = optimizer.finite("gradient norm", self._descend(learning_rate))
        if self.decay is not None:
            self._follow(step)
        return value, norm

    def _gathered(self, loss: Tensor) -> Tensor:
        return self.mesh.reduced(self.module, loss)

    def _descend(self, learning_rate: float) -> float:
        return optimizer.descend(self.module, self.optimizers, self.cfg.clip_norm, learning_rate)

    def _follow(self, step: int) -> None:
        assert self.ema is not None
        self.ema.update(self.module, step)

    def fragments(self) -> list[Fragment]:
        """Weights, the optimiser's state and the average, for a checkpoint."""
        return [fragment for part in self.parts for fragment in part.fragments()]

    def restored(self) -> None:
        for part in self.parts:
            part.restored()

    def release(self) -> None:
        """Frees what it holds: nothing here is held by anybody else."""

    def facts(self) -> dict[str, Any]:
        """What is said of the model beside its tensors: its configuration, so that a part can be exported."""
        return {"config": {self.name: weights.described("transformer", self.module.cfg)}}


class ShardedTrainee(Trainee):
    """A model whose state is cut among all processes by ZeRO."""

    def _start(self) -> None:
        from relic.parallel import zero

        spread(self.module, self.mesh)
        groups = optimizer.groups(self.module.parameters(), self.cfg.weight_decay, zero.shape_of)
        self.sharded = zero.Sharded(
            self.module, groups, self.mesh, betas=self.cfg.betas, clip_norm=self.cfg.clip_norm,
            computed_in=computed_in(self.mesh.device),
        )  # fmt: skip
        self.model, self.average = self.sharded.model, None
        if self.decay is not None:
            with zero.built(self.mesh):
                copy = Transformer(self.module.cfg)
            spread(copy, self.mesh)
            self.average = zero.frozen(copy, self.mesh, computed_in(self.mesh.device))
            trained = dict(self.module.named_parameters())
            self.pieces = [(piece, trained[piece.name]) for piece in zero.owned(copy)]
            self._move(1.0)

    def _gathered(self, loss: Tensor) -> Tensor:
        return self.mesh.mean(loss)

    def _descend(self, learning_rate: float) -> float:
        return self.sharded.step(learning_rate)

    def _follow(self, step: int) -> None:
        assert self.decay is not None
        self._move(optimizer.share(self.decay, step))

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """The average, this share of the way to the weights."""
        from relic.parallel import zero

        for piece, parameter in self.pieces:
            piece.data.lerp_(zero.own_of(parameter, piece), share)
        zero.forget(module_of(self.average))

    def fragments(self) -> list[Fragment]:
        found = [
            Fragment(f"{self.name}/{kind}/{name}", shape, start, data, kind == "step")
            for kind, (name, shape, start, data) in self.sharded.pieces()
        ]
        if self.average is not None:
            found += [Fragment(f"{self.name}/ema/{name}", shape, start, data, False)
                      for (name, shape, start, data), _ in self.pieces]  # fmt: skip
        return found

    def restored(self) -> None:
        from relic.parallel import zero

        self.sharded.restored()
        if self.average is not None:
            zero.forget(module_of(self.average))

    def release(self) -> None:
        from relic.parallel import zero

        self.sharded.release()
        if self.average is not None:
            zero.release(self.average)


# Models


def made(cfg: config.Transformer, mesh: Mesh, folder: Path | None) -> Transformer:
    """A model as the mesh wants it, with a folder's weights if one is given."""
    if mesh.zero == 3:
        from relic.parallel import zero

        drawn = torch.get_rng_state()
        with zero.built(mesh):
            module = Transformer(cfg)
        if folder:
            places = tensors.places([folder / "model.safetensors"])
            zero.fill(module, lambda name: tensors.read(places[name]))
        else:  # drawn as one process draws it, on the CPU
            torch.set_rng_state(drawn)
            zero.fill(module, Transformer(cfg).state_dict().__getitem__)
        return module
    if not folder:
        return Transformer(cfg).to(mesh.device)
    with torch.device(mesh.device):
        module = Transformer(cfg)
    weights.load_into(module, folder)
    return module


def loaded(folder: Path, mesh: Mesh) -> Transformer:
    """A folder's model, to be trained."""
    return made(weights.read_config(folder, "transformer"), mesh, folder).eval()


def frozen(folder: Path, mesh: Mesh) -> Any:
    """A folder's model, to be called and never trained."""
    return fixed(loaded(folder, mesh), mesh)


def fixed(module: Transformer, mesh: Mesh) -> Any:
    """A model made by `made`, to be called and never trained. Under autocast its matrices are kept in what they are
    multiplied in, which changes no bit of what it computes."""
    spread(module.requires_grad_(False), mesh)
    if mesh.zero == 3:
        from relic.parallel import zero

        return zero.frozen(module, mesh, computed_in(mesh.device))
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.to(computed_in(mesh.device))
    return module


def module_of(model: Any) -> Transformer:
    """What is under an engine, or the model itself where there is none."""
    return model if isinstance(model, Transformer) else model.module


def release(model: Any, mesh: Mesh) -> None:
    """Frees what a `frozen` model holds that is not used any more."""
    if mesh.zero == 3:
        from relic.parallel import zero

        zero.release(model)


def spread(module: Transformer, mesh: Mesh) -> Transformer:
    """Lets the processes of a group share a model's tokens and heads, and its blocks forget what they computed."""
    sequence.share(module, mesh.sequence)
    if mesh.cfg.compile:
        fused.use()
    if mesh.cfg.checkpointing:
        dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in module.modules())
        for block in module.blocks:
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=dropout
            )  # type: ignore[method-assign]
    return module


def save(model: Any, folder: Path, mesh: Mesh) -> None:
    """Writes a trainee's `model` or `average`, its adapters merged, by process 0. All processes call it."""
    module = module_of(model)
    if mesh.zero:
        from relic.parallel import zero

        state = zero.whole(module, mesh)
        if mesh.is_first:
            weights.save(module, folder, state=state)
    elif mesh.is_first:
        weights.save(lora.merged(module), folder)
    mesh.wait()
