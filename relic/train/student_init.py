"""Step student-init: the bidirectional teacher becomes a causal few-step student.

With `initialisation` "ode", which is section 4.4.1 of RELIC, the student starts from the teacher's weights and learns
to jump from a state of the teacher's trajectories (train/trajectories.py) to their end, by MSE. Of a video's chunks the
first are clean and pooled, the last `noisy_chunks` noisy, each at a level of its own (hybrid forcing); the video's
length varies, so that every place is trained with every amount of context. The others are in train/causal.py;
docs/distillation.md compares them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relic.data import loader
from relic.memory import masks
from relic.model import flow, weights
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import causal, optimizer, trainee
from relic.train import trajectories as stored
from relic.train.checkpoint import Checkpoints
from relic.train.config import StudentInit
from relic.train.draws import Draws
from relic.train.watch import Watch

Loss = Callable[[Transformer, Draws], Tensor]  # of a model, for the rows that are drawn


def main(
    cfg: StudentInit, *, teacher: list[Path], samples: list[Path], trajectories: list[Path], out: Path, run: Run,
    mesh: Mesh | None = None,
) -> dict[str, float]:  # fmt: skip
    """Writes model.safetensors and config.json of the student; hidden files are what a killed call goes on from."""
    mesh = mesh or Mesh()
    for size in (cfg.batch, cfg.batch if cfg.initialisation == "ode" else causal.clips(cfg)):
        mesh.rows(size)  # so that one that cannot be shared is said now
    causal_steps = 0 if cfg.initialisation == "ode" else cfg.causal_steps
    stages = [("causal", causal_steps)] if causal_steps else []
    with Watch(run, mesh, folder=out, stages=[*stages, ("jumps", cfg.steps)]) as watch:
        # 1. where it starts, and what it learns
        start, batch = teacher[0], cfg.batch
        if cfg.initialisation == "ode":
            solved = stored.load(trajectories, cfg.rollout.timesteps, cfg.latents)
            loss_of: Loss = partial(jump_loss, solved=solved, cfg=cfg)
        else:
            dataset = loader.load(samples, weights.read_config(start, "transformer"), cfg.loader)
            start = causal.train(cfg, start, dataset, out, watch, mesh)
            many_steps = trainee.frozen(start, mesh)
            batch = causal.clips(cfg)
            loss_of = partial(causal.jump_loss, teacher=many_steps, dataset=dataset, cfg=cfg)
        with watch.pause():
            student = trainee.trainee("student", trainee.loaded(start, mesh), cfg.optimizer, mesh, ema=cfg.ema)
            place = cfg.checkpoint.place(out, "jumps")
            checkpoints = Checkpoints(place, [student], mesh, cfg.checkpoint, facts=student.facts())
            measure = partial(validation_loss, loss_of=loss_of, seed=cfg.seed, batch=batch, mesh=mesh)
            before, losses = measure(student.model), []
            begin = checkpoints.load()
        if cfg.initialisation == "consistency":
            batch, average = cfg.batch, student.average
            loss_of = partial(causal.consistency_loss, teacher=many_steps, average=average, dataset=dataset, cfg=cfg)

        # 2. the jumps
        for step in range(begin, cfg.steps):
            loss = torch.zeros((), device=mesh.device)
            for piece in mesh.pieces(batch):
                share = loss_of(student.model, Draws((cfg.seed, 1, step), piece)) * mesh.share(piece, batch)
                share.backward()
                loss += share.detach()
            watch.computed()
            rate = optimizer.rate(cfg.optimizer, step, cfg.steps)
            value, norm = student.step(loss, rate, step)
            losses.append(value)
            figures = {"loss": value, "gradient_norm": norm, "learning_rate": rate}
            watch.step(causal_steps + step, figures, note=f"loss {np.mean(losses[-50:]):.4f}")
            checkpoints.after(step + 1, watch)

    checkpoints.close()
    trainee.save(student.average, out, mesh)
    return {"loss_before": before, "loss": measure(student.average)}


@torch.no_grad()
def validation_loss(model: Transformer, *, loss_of: Loss, seed: int, batch: int, mesh: Mesh, batches: int = 8) -> float:
    """The error of the jumps, always on the same trajectories, lengths and levels."""
    loss = torch.zeros((), device=mesh.device)
    for index in range(batches):
        for piece in mesh.pieces(batch):
            loss += loss_of(model, Draws((seed, 2, index), piece)) * mesh.share(piece, batch) / batches
    return mesh.mean(loss).item()


def jump_loss(student: Transformer, draws: Draws, *, solved: stored.Solved, cfg: StudentInit) -> Tensor:
    """Mean squared error of the jumps from the noisy chunks' states to the ends of their trajectories."""
    device, chunk, levels = next(student.parameters()).device, cfg.rollout.chunk, torch.tensor(cfg.rollout.timesteps)
    # 1. a length in chunks, and clips
    length = causal.random_length(cfg, draws.shared)
    numbers = draws.integers(len(solved)).tolist()
    clean = torch.stack([solved.state(number, len(levels), 0, length) for number in numbers]).float()
    # 2. a level for every noisy chunk; the image latent and the earlier chunks are clean
    first_noisy = max(1, length - chunk * cfg.num_noisy)
    picked = draws.integers(len(levels), length // chunk).repeat_interleave(chunk, 1)
    timesteps = levels[picked]
    timesteps[:, :first_noisy] = 0
    noisy = clean.clone()
    for row, number in enumerate(numbers):
        for at in range(first_noisy // chunk * chunk, length, chunk):
            span = slice(max(at, first_noisy), at + chunk)
            noisy[row, span] = solved.state(number, int(picked[row, at]), span.start, span.stop).float()
    clean, noisy, timesteps = clean.to(device), noisy.to(device), timesteps.to(device)
    # 3. the jump to the end of the trajectory, now and then without the caption
    dropped = draws.chosen(cfg.text_dropout).to(device)
    conditions = solved.conditions(numbers).latents(0, length).to(device).without_text(dropped)
    memory = cfg.rollout.memory
    landmarks = causal.random_landmarks(memory, first_noisy, draws.shared)
    with autocast(device):
        segments = masks.hybrid(length, chunk, cfg.num_noisy, memory, landmarks=landmarks)
        velocity, _ = student(noisy, timesteps, conditions, segments=segments)
    guess = flow.clean_of(noisy, velocity.float(), timesteps)
    return functional.mse_loss(guess[:, first_noisy:], clean[:, first_noisy:])
