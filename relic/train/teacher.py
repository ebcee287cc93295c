"""Teaches the bidirectional model to predict the flow of whole videos: section 4.1 of RELIC.

The image latent stays clean at timestep 0 and bears no loss; the others share a timestep. The curriculum goes from short
videos to long ones, RoPE extended by YaRN, and the model of every length is kept: each teaches the student of its length.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from relic.data import loader
from relic.model import flow, weights
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.tracking import Run
from relic.train import optimizer
from relic.train.checkpoint import Checkpoint
from relic.train.config import Stage, Teacher


def main(cfg: Teacher, *, samples: list[Path], out: Path, run: Run) -> dict[str, float]:
    """Writes stage-<latents>/ for every stage and the last one's model as model.safetensors and config.json."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(cfg.seed)
    model = Transformer(cfg.model).to(device)
    if cfg.start:
        weights.load_into(model, weights.start_folder(cfg.start))
    dataset = loader.load(samples, text_tokens=model.cfg.text_tokens)
    optimizers, ema = optimizer.Optimizers(model, cfg.optimizer), optimizer.Ema(model, cfg.ema)
    checkpoint = Checkpoint(
        out / ".checkpoint.pt", {"model": model, "optimizers": optimizers, "ema": ema}, cfg.checkpoint_every_s
    )
    total, losses = sum(stage.steps for stage in cfg.stages), []

    for step in range(checkpoint.load(), total):
        stage, is_last = stage_at(cfg.stages, step)
        generator = np.random.default_rng((cfg.seed, step))
        # 1. a batch of this stage's length; now and then without its caption, for guidance
        model.cfg = dataclasses.replace(model.cfg, frames=stage.latents)
        batch = dataset.batch(dataset.indices(cfg.seed, step, stage.batch), num_latents=stage.latents, device=device)
        dropped = torch.from_numpy(generator.random(stage.batch) < cfg.text_dropout).to(device)
        conditions = batch.conditions.with_text(batch.conditions.text * ~dropped[:, None])
        # 2. noise on every latent but the image
        share = torch.from_numpy(generator.random((stage.batch, 1), np.float32)).to(device)
        timesteps = flow.shifted(share, cfg.shift).repeat(1, stage.latents)
        timesteps[:, 0] = 0
        noise = torch.from_numpy(generator.standard_normal(batch.latents.shape, np.float32)).to(device)
        # 3. the velocity from data to noise
        with autocast(device):
            velocity, _ = model(flow.add_noise(batch.latents, noise, timesteps), timesteps, conditions)
        loss = functional.mse_loss(velocity[:, 1:], (noise - batch.latents)[:, 1:])
        loss.backward()
        rate = optimizer.rate(cfg.optimizer, step, total)
        norm = optimizer.update(model, optimizers, loss, cfg.optimizer, rate)
        ema.update(model, step)
        losses.append(loss.item())
        run.log({"loss": losses[-1], "gradient_norm": norm, "learning_rate": rate, "latents": stage.latents}, step)
        run.progress(step + 1, total, f"{stage.latents} latents, loss {np.mean(losses[-50:]):.4f}")
        if is_last:
            ema.module.cfg = model.cfg
            weights.save(ema.module, out / f"stage-{stage.latents}")
        checkpoint.save_if_due(step + 1)

    ema.module.cfg = dataclasses.replace(cfg.model, frames=cfg.stages[-1].latents)
    weights.save(ema.module, out)
    return {
        "loss": float(np.mean(losses[-50:])) if losses else float("nan"),
        "seen_samples": sum(s.steps * s.batch for s in cfg.stages),
    }


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, bool]:
    """The stage that a step belongs to, and whether it is the stage's last step."""
    for stage in stages:
        if step < stage.steps:
            return stage, step == stage.steps - 1
        step -= stage.steps
    raise ValueError(f"step {step} lies beyond the last stage")
