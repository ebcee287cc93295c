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
from relic.train import causal, optimizer
from relic.train import trajectories as stored
from relic.train.checkpoint import Checkpoints
from relic.train.config import StudentInit

Loss = Callable[[Transformer, tuple[int, int]], Tensor]  # of a model; all that is random is a function of the pair


def main(
    cfg: StudentInit, *, teacher: list[Path], samples: list[Path], trajectories: list[Path], out: Path, run: Run
) -> dict[str, float]:
    """Writes model.safetensors and config.json of the student; hidden files are what a killed call goes on from."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = weights.load_transformer(teacher[0], device)
    # 1. where it starts, and what it learns
    if cfg.initialisation == "ode":
        solved = stored.load(trajectories, cfg.rollout.timesteps, cfg.latents)
        loss_of: Loss = partial(jump_loss, solved=solved, cfg=cfg)
    else:
        dataset = loader.load(samples, student.cfg)
        many_steps = causal.train(cfg, student, dataset, out, run)
        student.load_state_dict(many_steps.state_dict())
        loss_of = partial(causal.jump_loss, teacher=many_steps, dataset=dataset, cfg=cfg)
    optimizers, ema = optimizer.Optimizers(student, cfg.optimizer), optimizer.Ema(student, cfg.ema)
    parts = optimizer.parts("student", student, optimizers, ema)
    facts = {"config": {"student": weights.described("transformer", student.cfg)}}
    place, mesh = cfg.checkpoint.place(out, "jumps"), Mesh(device=device)
    checkpoints = Checkpoints(place, parts, mesh, cfg.checkpoint, facts=facts)
    measure = loss_of
    before, losses = validation_loss(student, measure), []
    if cfg.initialisation == "consistency":
        average = ema.module
        loss_of = partial(causal.consistency_loss, teacher=many_steps, average=average, dataset=dataset, cfg=cfg)

    # 2. the jumps
    start = 0 if cfg.initialisation == "ode" else cfg.causal_steps
    for step in range(checkpoints.load(), cfg.steps):
        loss = loss_of(student, (1, step))
        loss.backward()
        rate = optimizer.rate(cfg.optimizer, step, cfg.steps)
        norm = optimizer.update(student, optimizers, loss, cfg.optimizer, rate)
        ema.update(student, step)
        losses.append(loss.item())
        run.log({"loss": losses[-1], "gradient_norm": norm, "learning_rate": rate}, start + step)
        run.progress(start + step + 1, start + cfg.steps, f"loss {np.mean(losses[-50:]):.4f}")
        checkpoints.save_if_due(step + 1)

    checkpoints.close()
    weights.save(ema.module, out)
    return {"loss_before": before, "loss": validation_loss(ema.module, measure)}


@torch.no_grad()
def validation_loss(model: Transformer, loss_of: Loss, batches: int = 8) -> float:
    """The error of the jumps, always on the same trajectories, lengths and levels."""
    return float(np.mean([loss_of(model, (2, index)).item() for index in range(batches)]))


def jump_loss(student: Transformer, draw: tuple[int, int], *, solved: stored.Solved, cfg: StudentInit) -> Tensor:
    """Mean squared error of the jumps from the noisy chunks' states to the ends of their trajectories."""
    device, chunk, levels = next(student.parameters()).device, cfg.rollout.chunk, torch.tensor(cfg.rollout.timesteps)
    generator = np.random.default_rng((cfg.seed, *draw))
    # 1. a length in chunks, and clips
    length = causal.random_length(cfg, generator)
    numbers = generator.integers(len(solved), size=cfg.batch).tolist()
    clean = torch.stack([solved.state(number, len(levels), 0, length) for number in numbers]).float()
    # 2. a level for every noisy chunk; the image latent and the earlier chunks are clean
    first_noisy = max(1, length - chunk * cfg.num_noisy)
    picked = torch.from_numpy(generator.integers(len(levels), size=(cfg.batch, length // chunk)))
    picked = picked.repeat_interleave(chunk, 1)
    timesteps = levels[picked]
    timesteps[:, :first_noisy] = 0
    noisy = clean.clone()
    for row, number in enumerate(numbers):
        for at in range(first_noisy // chunk * chunk, length, chunk):
            span = slice(max(at, first_noisy), at + chunk)
            noisy[row, span] = solved.state(number, int(picked[row, at]), span.start, span.stop).float()
    clean, noisy, timesteps = clean.to(device), noisy.to(device), timesteps.to(device)
    # 3. the jump to the end of the trajectory, now and then without the caption
    dropped = torch.from_numpy(generator.random(cfg.batch) < cfg.text_dropout).to(device)
    conditions = solved.conditions(numbers).latents(0, length).to(device).without_text(dropped)
    memory = cfg.rollout.memory
    landmarks = causal.random_landmarks(memory, first_noisy, generator)
    with autocast(device):
        segments = masks.hybrid(length, chunk, cfg.num_noisy, memory, landmarks=landmarks)
        velocity, _ = student(noisy, timesteps, conditions, segments=segments)
    guess = flow.clean_of(noisy, velocity.float(), timesteps)
    return functional.mse_loss(guess[:, first_noisy:], clean[:, first_noisy:])
