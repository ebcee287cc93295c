"""Teaches the bidirectional model to predict the flow of whole videos: section 4.1 of RELIC.

The image latent stays clean at timestep 0 and bears no loss; the others share a timestep. The curriculum goes from
short videos to long ones, RoPE extended by YaRN, and the model of every length is kept: each teaches the
student of its length.
"""

import dataclasses
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
from relic.train import lora, optimizer
from relic.train.checkpoint import Checkpoints
from relic.train.config import Stage, Teacher


def main(cfg: Teacher, *, samples: list[Path], out: Path, run: Run) -> dict[str, float]:
    """Writes stage-<latents>/ for every stage and the last one's model as model.safetensors and config.json; with LoRA
    these are the merged models, and adapter.safetensors holds what was trained."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(cfg.seed)
    model = Transformer(cfg.model).to(device)
    if cfg.start:
        start = weights.start_folder(cfg.start)
        weights.check_start(cfg.model, start)
        weights.load_into(model, start)
    if cfg.lora.rank:
        lora.adapt(model, cfg.lora)
    dataset = loader.load(samples, model.cfg)
    optimizers, ema = optimizer.Optimizers(model, cfg.optimizer), optimizer.Ema(model, cfg.ema)
    parts = optimizer.parts("teacher", model, optimizers, ema)
    total, losses = sum(stage.steps for stage in cfg.stages), []

    model.cfg = dataclasses.replace(cfg.model, frames=cfg.stages[-1].latents)
    facts = {} if cfg.lora.rank else {"config": {"teacher": weights.described("transformer", model.cfg)}}
    mesh = Mesh(device=device)
    checkpoints = Checkpoints(cfg.checkpoint.place(out), parts, mesh, cfg.checkpoint, facts=facts)
    before = validation_loss(model, dataset, cfg, device)

    for step in range(checkpoints.load(), total):
        stage, is_last = stage_at(cfg.stages, step)
        generator = np.random.default_rng((cfg.seed, step))
        torch.manual_seed(cfg.seed + step)  # for the adapters' dropout
        # 1. a batch of this stage's length; now and then without its caption, for guidance
        model.cfg = dataclasses.replace(model.cfg, frames=stage.latents)
        batch = dataset.batch(dataset.indices(cfg.seed, step, stage.batch), num_latents=stage.latents, device=device)
        dropped = torch.from_numpy(generator.random(stage.batch) < cfg.text_dropout).to(device)
        conditions = batch.conditions.without_text(dropped)
        # 2. the velocity from data to noise
        loss = flow_loss(model, batch.latents, conditions, cfg.shift, generator)
        loss.backward()
        # 3. one step
        rate = optimizer.rate(cfg.optimizer, step, total)
        norm = optimizer.update(model, optimizers, loss, cfg.optimizer, rate)
        ema.update(model, step)
        losses.append(loss.item())
        run.log({"loss": losses[-1], "gradient_norm": norm, "learning_rate": rate, "latents": stage.latents}, step)
        run.progress(step + 1, total, f"{stage.latents} latents, loss {np.mean(losses[-50:]):.4f}")
        if is_last:
            ema.module.cfg = model.cfg
            weights.save(lora.merged(ema.module), out / f"stage-{stage.latents}")
        checkpoints.save_if_due(step + 1)

    checkpoints.close()
    ema.module.cfg = dataclasses.replace(cfg.model, frames=cfg.stages[-1].latents)
    weights.save(lora.merged(ema.module), out)
    if cfg.lora.rank:
        lora.save(ema.module, cfg.lora, out, ema.names)
    return {"loss_before": before, "loss": validation_loss(ema.module.eval(), dataset, cfg, device)}


def flow_loss(
    model: Transformer, latents: Tensor, conditions: Conditions, shift: float, generator: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity of latents [B, F, C, H, W] at a random timestep a sample, the image aside."""
    noisy, timesteps, noise = noised(latents, shift, generator)
    with autocast(latents.device):
        velocity, _ = model(noisy, timesteps, conditions)
    return functional.mse_loss(velocity[:, 1:].float(), (noise - latents)[:, 1:])


def noised(
    latents: Tensor,
    shift: float,
    generator: np.random.Generator,
    *,
    chunk: int = 0,
    num_clean: int = 1,
    least: float = 0.0,
    largest: float = flow.STEPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, F, C, H, W] at a random timestep a chunk (0: a sample), kept from `least` to `largest`, the first
    `num_clean` clean at 0; the timesteps [B, F]; and the noise."""
    (batch, length), device = latents.shape[:2], latents.device
    chunk = chunk or length
    share = torch.from_numpy(generator.random((batch, length // chunk), np.float32)).to(device)
    timesteps = flow.shifted(share, shift).clamp(least, largest).repeat_interleave(chunk, 1)
    timesteps[:, :num_clean] = 0
    noise = torch.from_numpy(generator.standard_normal(latents.shape, np.float32)).to(device)
    return flow.add_noise(latents, noise, timesteps), timesteps, noise


@torch.no_grad()
def validation_loss(model: Transformer, dataset: Dataset, cfg: Teacher, device: str, batches: int = 4) -> float:
    """The flow loss at the last stage's length, always on the same samples and noise."""
    stage, losses = cfg.stages[-1], []
    for index in range(batches):
        rows = dataset.indices(cfg.seed + 1, index, stage.batch)
        batch = dataset.batch(rows, num_latents=stage.latents, device=device)
        generator = np.random.default_rng((cfg.seed + 1, index))
        losses.append(flow_loss(model, batch.latents, batch.conditions, cfg.shift, generator).item())
    return float(np.mean(losses))


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, bool]:
    """The stage that a step belongs to, and whether it is the stage's last step."""
    for stage in stages:
        if step < stage.steps:
            return stage, step == stage.steps - 1
        step -= stage.steps
    raise ValueError(f"step {step} lies beyond the last stage")
