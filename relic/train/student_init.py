"""ODE initialisation with hybrid forcing: section 4.4.1 of RELIC.

The bidirectional teacher becomes a causal few-step student.

1. The teacher's flow is integrated from noise for many clips; the states at the student's timesteps
   and the end are kept.
2. The student starts from the teacher's weights and learns to jump from such a state to the end, by MSE. Of a video's
   chunks the first are clean and pooled, the last `noisy_chunks` noisy, each at a level of its own; the video's length
   varies, so that every place is trained with every amount of context.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from relic.data import loader
from relic.generate import sampler
from relic.generate.config import Sampler
from relic.memory import masks
from relic.model import flow, weights
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.tracking import Run
from relic.train import optimizer
from relic.train.checkpoint import Checkpoint
from relic.train.config import StudentInit


def main(cfg: StudentInit, *, teacher: list[Path], samples: list[Path], out: Path, run: Run) -> dict[str, float]:
    """Writes model.safetensors and config.json of the student; hidden files are what a killed call goes on from."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = weights.load_transformer(teacher[0], device)
    dataset = loader.load(samples, student.cfg)
    files = list(solve(cfg, student, dataset, out, run))
    states, conditions = read(files)
    optimizers, ema = optimizer.Optimizers(student, cfg.optimizer), optimizer.Ema(student, cfg.ema)
    parts = {"student": student, "optimizers": optimizers, "ema": ema}
    checkpoint = Checkpoint(out / ".checkpoint.pt", parts, cfg.checkpoint_every_s)
    before, losses = validation_loss(student, states, conditions, cfg), []

    for step in range(checkpoint.load(), cfg.steps):
        generator = np.random.default_rng((cfg.seed, 1, step))
        loss = jump_loss(student, states, conditions, cfg, generator)
        loss.backward()
        rate = optimizer.rate(cfg.optimizer, step, cfg.steps)
        norm = optimizer.update(student, optimizers, loss, cfg.optimizer, rate)
        ema.update(student, step)
        losses.append(loss.item())
        run.log({"loss": losses[-1], "gradient_norm": norm, "learning_rate": rate}, step)
        run.progress(len(files) + step + 1, len(files) + cfg.steps, f"loss {np.mean(losses[-50:]):.4f}")
        checkpoint.save_if_due(step + 1)

    ema.module.cfg = student.cfg
    weights.save(ema.module, out)
    return {"loss_before": before, "loss": validation_loss(ema.module, states, conditions, cfg)}


def jump_loss(
    student: Transformer, states: Tensor, conditions: Conditions, cfg: StudentInit, generator: np.random.Generator
) -> Tensor:
    """Mean squared error of the jumps from the noisy chunks' states to the ends of their trajectories."""
    device, chunk = next(student.parameters()).device, cfg.rollout.chunk
    levels = torch.tensor(cfg.rollout.timesteps)
    noisy_chunks = {"hybrid": cfg.noisy_chunks, "teacher": 1, "diffusion": cfg.latents}[cfg.forcing]
    # 1. a length in chunks, and clips
    length = chunk * int(generator.integers(1, cfg.latents // chunk + 1))
    rows = torch.from_numpy(generator.integers(len(states), size=cfg.batch))
    clean = states[rows, -1, :length].float()
    # 2. a level for every noisy chunk; the image latent and the earlier chunks are clean
    first_noisy = max(1, length - chunk * noisy_chunks)
    picked = torch.from_numpy(generator.integers(len(levels), size=(cfg.batch, length // chunk)))
    picked = picked.repeat_interleave(chunk, 1)
    noisy = states[rows[:, None], picked, torch.arange(length)].float()
    noisy[:, :first_noisy] = clean[:, :first_noisy]
    timesteps = levels[picked]
    timesteps[:, :first_noisy] = 0
    clean, noisy, timesteps = clean.to(device), noisy.to(device), timesteps.to(device)
    # 3. the jump to the end of the trajectory, now and then without the caption
    dropped = torch.from_numpy(generator.random(cfg.batch) < cfg.text_dropout).to(device)
    batch = conditions.rows(rows).latents(0, length).to(device).without_text(dropped)
    with autocast(device):
        segments = masks.hybrid(length, chunk, noisy_chunks, cfg.rollout.memory)
        velocity, _ = student(noisy, timesteps, batch, segments=segments)
    guess = flow.clean_of(noisy, velocity.float(), timesteps)
    return functional.mse_loss(guess[:, first_noisy:], clean[:, first_noisy:])


@torch.no_grad()
def validation_loss(
    student: Transformer, states: Tensor, conditions: Conditions, cfg: StudentInit, batches: int = 8
) -> float:
    """The jump loss, always on the same trajectories, lengths and levels."""
    generators = [np.random.default_rng((cfg.seed, 2, index)) for index in range(batches)]
    return float(np.mean([jump_loss(student, states, conditions, cfg, generator).item() for generator in generators]))


def solve(cfg: StudentInit, teacher: Transformer, dataset: loader.Dataset, out: Path, run: Run) -> Iterator[Path]:
    """Files of trajectories, a batch each; those that are there already are not solved again."""
    ode = Sampler(steps=cfg.ode_steps, shift=cfg.ode_shift)
    wanted = [round(t, 1) for t in (*cfg.rollout.timesteps, 0.0)]
    total = -(-cfg.trajectories // cfg.trajectory_batch)
    for index in range(total):
        path = out / f".trajectories-{index:05d}.safetensors"
        if not path.exists():
            device = next(teacher.parameters()).device
            rows = dataset.indices(cfg.seed + 1, index, cfg.trajectory_batch)
            batch = dataset.batch(rows, num_latents=cfg.latents, device=device)
            path_of = sampler.trajectory(
                teacher, ode, image_latent=batch.latents[:, 0], conditions=batch.conditions,
                num_latents=cfg.latents, seed=(cfg.seed, index),
            )  # fmt: skip
            kept = {round(t, 1): x for t, x in path_of if round(t, 1) in wanted}
            states = torch.stack([kept[t] for t in wanted], 1)
            write(path, states, batch.conditions)
        run.progress(index + 1, total + cfg.steps, "solving the teacher's ODE")
        yield path


def write(path: Path, states: Tensor, conditions: Conditions) -> None:
    """States [B, timesteps + 1, F, C, H, W] from noise to the end, and their conditions; beside, then renamed."""
    beside = path.with_suffix(".new")
    tensors = {
        "states": states.half(),
        "actions": conditions.actions,
        "poses": conditions.poses,
        "text": conditions.text,
        "empty": conditions.empty,
    }
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside)
    beside.rename(path)


def read(files: list[Path]) -> tuple[Tensor, Conditions]:
    """All trajectories' states [N, timesteps + 1, F, C, H, W] float16 and their conditions, in the host's memory: at
    480x832 a thousand trajectories of 20 s take 82 GB."""
    parts = [load_file(file) for file in files]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    conditions = Conditions(joined["actions"], joined["poses"], joined["text"], joined["empty"][:1])
    return joined["states"], conditions
