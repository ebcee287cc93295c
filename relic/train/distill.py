"""Distribution matching distillation of the four-step student on its own videos: section 4.4.2 of RELIC.

DMD (eq. 4; arXiv 2311.18828, eq. 7): the student should make videos that are as likely under the data as under its own
distribution. The scores of both are read from two bidirectional models, the frozen teacher and a critic that is
trained on nothing but the student's videos. Both see the whole video at once, so a late chunk that contradicts an early
one is punished; the gradient comes back chunk by chunk (train/replay.py).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relic.data import loader
from relic.generate.rollout import Pass, Rollout, play
from relic.generate.sampler import guided
from relic.model import flow, weights
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import optimizer, replay
from relic.train.checkpoint import Checkpoints
from relic.train.config import Distill, Stage
from relic.train.teacher import flow_loss, noised


class Video(NamedTuple):
    """What the student made, and how."""

    latents: Tensor  # [B, F, C, H, W], the image first
    passes: list[Pass]  # the last of every chunk
    conditions: Conditions
    seed: int


def main(
    cfg: Distill, *, teacher: list[Path], student: list[Path], samples: list[Path], out: Path, run: Run
) -> dict[str, float]:
    """Writes model.safetensors and config.json of the distilled student (its moving average)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folders = {stage.latents: stage_folder(teacher[0], stage.latents) for stage in cfg.stages}
    generator = weights.load_transformer(student[0], device)
    critic = weights.load_transformer(folders[cfg.stages[0].latents], device)
    dataset = loader.load(samples, generator.cfg)
    before = video_error(generator, dataset, cfg)
    averaged = train(
        cfg, generator, critic, teacher_of=lambda latents: weights.load_transformer(folders[latents], device),
        dataset=dataset, out=out, run=run,
    )  # fmt: skip
    weights.save(averaged, out)
    return {"loss_before": before, "loss": video_error(averaged, dataset, cfg)}


def train(
    cfg: Distill,
    generator: Transformer,
    critic: Transformer,
    *,
    teacher_of: Callable[[int], Transformer],
    dataset: loader.Dataset,
    out: Path,
    run: Run,
) -> Transformer:
    """The moving average of the student `generator`, which is trained in place, as is the critic.

    `teacher_of` a number of latents is asked when the stage of that length begins, and again in a resumed call; `out`
    holds the checkpoint that such a call goes on from."""
    device = next(generator.parameters()).device
    optimizers, ema = optimizer.Optimizers(generator, cfg.optimizer), optimizer.Ema(generator, cfg.ema)
    critic_optimizers = optimizer.Optimizers(critic, cfg.critic_optimizer)
    parts = optimizer.parts("student", generator, optimizers, ema)
    parts += optimizer.parts("critic", critic, critic_optimizers)
    mesh = Mesh(device=device.type)
    facts = {"config": {"student": weights.described("transformer", generator.cfg)}}
    checkpoints = Checkpoints(cfg.checkpoint.place(out), parts, mesh, cfg.checkpoint, facts=facts)
    total, measured = sum(stage.steps for stage in cfg.stages), {}

    for stage, steps in stages_from(cfg.stages, checkpoints.load()):
        teacher = teacher_of(stage.latents)
        critic.cfg = dataclasses.replace(critic.cfg, frames=stage.latents)
        for step in steps:
            random = np.random.default_rng((cfg.seed, step))
            draws = stage.batch * (cfg.critic_steps + 1)
            rows = dataset.indices(cfg.seed, step, draws)
            picked = (rows[i : i + stage.batch] for i in range(0, draws, stage.batch))
            batches = (dataset.batch(some, num_latents=stage.latents, device=device) for some in picked)
            exit_step = int(random.integers(len(cfg.rollout.timesteps)))
            # 1. the critic learns what the student makes now
            for given in itertools.islice(batches, cfg.critic_steps):
                video = roll_out(generator, cfg, given, exit_step, random)
                loss = flow_loss(critic, video.latents, video.conditions, cfg.shift, random)
                loss.backward()
                rate = optimizer.rate(cfg.critic_optimizer, step, total)
                optimizer.update(critic, critic_optimizers, loss, cfg.critic_optimizer, rate)
                measured["critic_loss"] = loss.item()
            # 2. a whole video, without a graph
            video = roll_out(generator, cfg, next(batches), exit_step, random)
            # 3. the difference of the scores over all of it
            difference = score_difference(teacher, critic, video.latents, video.conditions, cfg, random)
            # 4. back-propagation, chunk by chunk
            again = start(generator, cfg, video.latents[:, 0], video.conditions.text, video.seed)
            gradient = difference / elements(difference)
            replay.backward(again, video.conditions.actions, video.latents, video.passes, gradient)
            # 5. one step
            rate = optimizer.rate(cfg.optimizer, step, total)
            size = difference.square().sum() / elements(difference)
            measured["gradient_norm"] = optimizer.update(generator, optimizers, size, cfg.optimizer, rate)
            ema.update(generator, step)
            measured["score_difference"] = size.item() ** 0.5
            run.log({**measured, "exit_step": exit_step, "latents": stage.latents}, step)
            note = f"{stage.latents} latents, score difference {measured['score_difference']:.3f}"
            run.progress(step + 1, total, note)
            checkpoints.save_if_due(step + 1)
        del teacher  # leaves the device before the next one comes
    checkpoints.close()
    return ema.module


def stages_from(stages: tuple[Stage, ...], step: int) -> Iterator[tuple[Stage, range]]:
    """Every stage that is not over at a step, and the steps that are left of it."""
    end = 0
    for stage in stages:
        begin, end = end, end + stage.steps
        if step < end:
            yield stage, range(max(begin, step), end)


def video_error(student: Transformer, dataset: loader.Dataset, cfg: Distill, batches: int = 2) -> float:
    """Mean squared distance of the student's videos to the true ones, always of the same samples and noise.

    DMD does not lower it on purpose: it says whether a video still is the one that the actions lead to."""
    stage, device, errors = cfg.stages[-1], next(student.parameters()).device, []
    for index in range(batches):
        random = np.random.default_rng((cfg.seed + 1, index))
        rows = dataset.indices(cfg.seed + 1, index, stage.batch)
        batch = dataset.batch(rows, num_latents=stage.latents, device=device)
        video = roll_out(student, cfg, batch, -1, random)
        errors.append((video.latents - batch.latents)[:, 1:].square().mean().item())
    return float(np.mean(errors))


def stage_folder(teacher: Path, num_latents: int) -> Path:
    """The teacher of a length, or of the next longer one: the student's lengths are whole chunks."""
    lengths = sorted(int(found.name.removeprefix("stage-")) for found in teacher.glob("stage-*"))
    for length in lengths:
        if length >= num_latents:
            return teacher / f"stage-{length}"
    raise ValueError(
        f"the teacher has no model for {num_latents} latents; it has {', '.join(map(str, lengths)) or 'none'}"
    )


def start(student: Transformer, cfg: Distill, image_latent: Tensor, text: Tensor, seed: int) -> Rollout:
    return Rollout(student, cfg.rollout, image_latent=image_latent, text=text, seed=seed, unit=cfg.actions)


def roll_out(
    student: Transformer, cfg: Distill, batch: loader.Batch, exit_step: int, random: np.random.Generator
) -> Video:
    """The student's own videos of a batch's images and actions, all chunks left at the same timestep."""
    walk = start(student, cfg, batch.latents[:, 0], batch.conditions.text, int(random.integers(2**31)))
    latents, passes = play(walk, batch.conditions.actions, num_latents=batch.latents.shape[1], exit_step=exit_step)
    return Video(latents, passes, batch.conditions, walk.seed)


@torch.no_grad()
def score_difference(
    teacher: Transformer,
    critic: Transformer,
    latents: Tensor,
    conditions: Conditions,
    cfg: Distill,
    random: np.random.Generator,
) -> Tensor:
    """The gradient [B, F, C, H, W] of DMD's loss for each latent of videos [B, F, C, H, W]; the image's is 0.

    Critic's minus teacher's guess of the clean video from a noisy one, over the sample's mean distance to the teacher's
    guess (DMD's eq. 8)."""
    noisy, timesteps, _ = noised(latents, cfg.shift, random, least=cfg.least_timestep, largest=cfg.largest_timestep)
    real = flow.clean_of(noisy, guided(teacher, cfg.guidance, noisy, timesteps, conditions), timesteps)
    fake = flow.clean_of(noisy, guided(critic, 1.0, noisy, timesteps, conditions), timesteps)
    distance = (latents - real)[:, 1:].abs().mean((1, 2, 3, 4), keepdim=True)
    difference = (fake - real) / distance.clamp(min=1e-6)
    difference[:, 0] = 0
    return difference


def elements(difference: Tensor) -> int:
    """Numbers of a batch of videos that bear a loss: all but the image's."""
    return difference[:, 1:].numel()
