"""Teaches the bidirectional model to predict the flow of whole videos: section 4.1 of RELIC.

The image latent stays clean at timestep 0 and bears no loss; the others share a timestep. The curriculum goes from
short videos to long ones, RoPE extended by YaRN, and the model of every length is kept: each teaches the
student of its length.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relic.data import loader
from relic.data.loader import Dataset
from relic.model import flow, weights
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import footprint, lora, optimizer, passes, trainee
from relic.train.checkpoint import Checkpoints
from relic.train.config import Stage, Teacher
from relic.train.draws import Draws
from relic.train.passes import Passes
from relic.train.watch import Watch


def main(cfg: Teacher, *, samples: list[Path], out: Path, run: Run, mesh: Mesh | None = None) -> dict[str, float]:
    """Writes stage-<latents>/ for every stage and the last one's model as model.safetensors and config.json; with LoRA
    these are the merged models, and adapter.safetensors holds what was trained."""
    mesh = mesh or Mesh()
    for stage in cfg.stages:
        mesh.rows(stage.batch)  # so that one that cannot be shared is said now
    model = trainee.trainee("teacher", starting(cfg, mesh), cfg.optimizer, mesh, ema=cfg.ema)
    dataset = loader.load(samples, cfg.model, cfg.loader)
    checkpoints = Checkpoints(cfg.checkpoint.place(out), [model], mesh, cfg.checkpoint)
    total, losses = sum(stage.steps for stage in cfg.stages), []

    model.set_length(cfg.stages[-1].latents)
    before = validation_loss(model.model, dataset, cfg, mesh)

    with Watch(run, mesh, folder=out, stages=[stage.named for stage in cfg.stages]) as watch:
        start = checkpoints.load()
        for stage, end in zip(cfg.stages, accumulate(stage.steps for stage in cfg.stages), strict=True):
            if mesh.is_first and end <= start and not (out / f"stage-{stage.latents}").exists():
                raise ValueError(
                    f"the checkpoint of step {start} is from behind the stage of {stage.latents} latents, whose model "
                    f"is not in {out}; go on where it is, or without the checkpoint"
                )
        batches = dataset.ahead(requests(cfg, dataset, mesh, range(start, total)), device=mesh.device)
        for step in range(start, total):
            stage, is_last = stage_at(cfg.stages, step)
            model.set_length(stage.latents)
            checkpoints.facts |= {} if cfg.lora.rank else model.facts()  # adapters are no model of their own
            torch.manual_seed(cfg.seed + step)  # for the adapters' dropout
            loss, num_tokens, num_flops = torch.zeros((), device=mesh.device), 0, 0.0
            for piece in mesh.pieces(stage.batch):
                draws = Draws((cfg.seed, step), piece)
                # 1. samples of this stage's length; now and then without their caption, for guidance
                with watch.waiting():
                    batch = next(batches)
                conditions = batch.conditions.without_text(draws.chosen(cfg.text_dropout).to(mesh.device))
                # 2. the velocity from data to noise
                share = flow_loss(model.model, batch.latents, conditions, cfg.shift, draws)
                share = share * mesh.share(piece, stage.batch)
                share.backward()
                loss += share.detach()
                given = footprint.passed(cfg.model, batch.latents.shape)
                num_tokens += given.batch * given.tokens // mesh.sequence.size
                num_flops += passes.computed(cfg.model, [Passes(given, graph=True)]) / mesh.sequence.size
            watch.computed()
            # 3. one step
            rate = optimizer.rate(cfg.optimizer, step, total)
            value, norm = model.step(loss, rate, step)
            losses.append(value)
            figures = {"loss": value, "gradient_norm": norm, "learning_rate": rate, "latents": stage.latents}
            note = f"loss {np.mean(losses[-50:]):.4f}"
            watch.step(step, {**figures, "skipped": dataset.skipped}, tokens=num_tokens, flops=num_flops, note=note)
            if is_last:
                with watch.pause():
                    trainee.save(model.average, out / f"stage-{stage.latents}", mesh)
            checkpoints.after(step + 1, watch)

    checkpoints.close()
    model.set_length(cfg.stages[-1].latents)
    trainee.save(model.average, out, mesh)
    if cfg.lora.rank and mesh.is_first:
        lora.save(model.average, cfg.lora, out, list(optimizer.trained(model.module)))
    return {"loss_before": before, "loss": validation_loss(model.average, dataset, cfg, mesh)}


def requests(cfg: Teacher, dataset: Dataset, mesh: Mesh, steps: Iterable[int]) -> Iterator[tuple[list[int], int]]:
    """What this process takes of the data set in these steps, piece by piece: samples and their length."""
    for step in steps:
        stage, _ = stage_at(cfg.stages, step)
        rows = dataset.indices(cfg.seed, step, stage.batch)
        yield from (([rows[row] for row in piece], stage.latents) for piece in mesh.pieces(stage.batch))


def starting(cfg: Teacher, mesh: Mesh) -> Transformer:
    """The model before its first step, with its adapters."""
    torch.manual_seed(cfg.seed)
    start = None
    if cfg.start:
        start = weights.start_folder(cfg.start)
        weights.check_start(cfg.model, start)
    model = trainee.made(cfg.model, mesh, start)
    if cfg.lora.rank:
        lora.adapt(model, cfg.lora)
    return model


def flow_loss(model: Transformer, latents: Tensor, conditions: Conditions, shift: float, draws: Draws) -> Tensor:
    """Mean squared error of the velocity of latents [B, F, C, H, W] at a random timestep a sample, the image aside."""
    noisy, timesteps, noise = noised(latents, shift, draws)
    with autocast(latents.device):
        velocity, _ = model(noisy, timesteps, conditions)
    return functional.mse_loss(velocity[:, 1:].float(), (noise - latents)[:, 1:])


def noised(
    latents: Tensor,
    shift: float,
    draws: Draws,
    *,
    chunk: int = 0,
    num_clean: int = 1,
    least: float = 0.0,
    largest: float = flow.STEPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, F, C, H, W] at a random timestep a chunk (0: a sample), kept from `least` to `largest`, the first
    `num_clean` clean at 0; the timesteps [B, F]; and the noise."""
    length, device = latents.shape[1], latents.device
    chunk = chunk or length
    share = draws.uniform(length // chunk).to(device)
    timesteps = flow.shifted(share, shift).clamp(least, largest).repeat_interleave(chunk, 1)
    timesteps[:, :num_clean] = 0
    noise = draws.normal(*latents.shape[1:]).to(device)
    return flow.add_noise(latents, noise, timesteps), timesteps, noise


@torch.no_grad()
def validation_loss(model: Transformer, dataset: Dataset, cfg: Teacher, mesh: Mesh, batches: int = 4) -> float:
    """The flow loss at the last stage's length, always on the same samples and noise."""
    stage, loss = cfg.stages[-1], torch.zeros((), device=mesh.device)
    for index in range(batches):
        rows = dataset.indices(cfg.seed + 1, index, stage.batch)
        for piece in mesh.pieces(stage.batch):
            batch = dataset.batch([rows[row] for row in piece], num_latents=stage.latents, device=mesh.device)
            draws = Draws((cfg.seed + 1, index), piece)
            part = flow_loss(model, batch.latents, batch.conditions, cfg.shift, draws)
            loss += part * mesh.share(piece, stage.batch) / batches
    return mesh.mean(loss).item()


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, bool]:
    """The stage that a step belongs to, and whether it is the stage's last step."""
    for stage in stages:
        if step < stage.steps:
            return stage, step == stage.steps - 1
        step -= stage.steps
    raise ValueError(f"step {step} lies beyond the last stage")
