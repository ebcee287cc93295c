"""Distribution matching distillation of the four-step student on its own videos: section 4.4.2 of RELIC.

DMD (eq. 4; arXiv 2311.18828, eq. 7): the student should make videos that are as likely under the data as under its own
distribution. The scores of both are read from two bidirectional models, the frozen teacher and a critic that is
trained on nothing but the student's videos. Both see the whole video at once, so a late chunk that contradicts an early
one is punished; the gradient comes back chunk by chunk (train/replay.py).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relic.data import loader
from relic.generate.rollout import Pass, Rollout, play
from relic.generate.sampler import guided
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import footprint, optimizer, passes, replay, trainee
from relic.train.checkpoint import Checkpoints
from relic.train.config import Distill, Stage
from relic.train.draws import Draws
from relic.train.teacher import flow_loss, noised
from relic.train.watch import Watch


class Video(NamedTuple):
    """What the student made, and how."""

    latents: Tensor  # [B, F, C, H, W], the image first
    passes: list[Pass]  # the last of every chunk
    conditions: Conditions
    seed: int


def main(
    cfg: Distill, *, teacher: list[Path], student: list[Path], samples: list[Path], out: Path, run: Run,
    mesh: Mesh | None = None,
) -> dict[str, float]:  # fmt: skip
    """Writes model.safetensors and config.json of the distilled student (its moving average)."""
    mesh = mesh or Mesh()
    for stage in cfg.stages:
        mesh.rows(stage.batch)  # so that one that cannot be shared is said now
    folders = {stage.latents: stage_folder(teacher[0], stage.latents) for stage in cfg.stages}
    generator = trainee.loaded(student[0], mesh)
    critic = trainee.loaded(folders[cfg.stages[0].latents], mesh)
    dataset = loader.load(samples, generator.cfg, cfg.loader)
    averaged, before = train(
        cfg, generator, critic, teacher_of=lambda latents: trainee.frozen(folders[latents], mesh), dataset=dataset,
        out=out, run=run, mesh=mesh,
    )  # fmt: skip
    trainee.save(averaged, out, mesh)
    return {"loss_before": before, "loss": video_error(averaged, dataset, cfg, mesh)}


def train(
    cfg: Distill,
    generator: Transformer,
    critic: Transformer,
    *,
    teacher_of: Callable[[int], Any],
    dataset: loader.Dataset,
    out: Path,
    run: Run,
    mesh: Mesh | None = None,
) -> tuple[Any, float]:
    """The moving average of the student `generator`, which is trained in place, as is the critic; and the student's
    `video_error` before.

    `teacher_of` a number of latents is asked when the stage of that length begins, and again in a resumed call; `out`
    holds the checkpoints that such a call goes on from."""
    mesh = mesh or Mesh()
    student = trainee.trainee("student", generator, cfg.optimizer, mesh, ema=cfg.ema)
    fake = trainee.trainee("critic", critic, cfg.critic_optimizer, mesh)
    before = video_error(student.model, dataset, cfg, mesh)
    checkpoints = Checkpoints(cfg.checkpoint.place(out), [student, fake], mesh, cfg.checkpoint, facts=student.facts())
    total, measured = sum(stage.steps for stage in cfg.stages), {}
    begin = checkpoints.load()
    batches = dataset.ahead(requests(cfg, dataset, mesh, begin), device=mesh.device)

    with Watch(run, mesh, folder=out, stages=[stage.named for stage in cfg.stages]) as watch:
        for stage, steps in stages_from(cfg.stages, begin):
            with watch.pause():
                teacher = teacher_of(stage.latents)
                fake.set_length(stage.latents)
            for step in steps:
                num_tokens, num_flops = 0, 0.0
                exit_step = int(Draws((cfg.seed, step), ()).shared.integers(len(cfg.rollout.timesteps)))
                # 1. the critic learns what the student makes now
                for turn in range(cfg.critic_steps):
                    loss = torch.zeros((), device=mesh.device)
                    for piece in mesh.pieces(stage.batch):
                        draws = Draws((cfg.seed, step, turn + 1), piece)
                        with watch.waiting():
                            given = next(batches)
                        video = roll_out(student.model, cfg, given, exit_step, draws)
                        share = flow_loss(fake.model, video.latents, video.conditions, cfg.shift, draws)
                        share = share * mesh.share(piece, stage.batch)
                        share.backward()
                        loss += share.detach()
                    watch.computed()
                    rate = optimizer.rate(cfg.critic_optimizer, step, total)
                    measured["critic_loss"], _ = fake.step(loss, rate, step)
                size = torch.zeros((), device=mesh.device)
                for piece in mesh.pieces(stage.batch):
                    draws = Draws((cfg.seed, step, cfg.critic_steps + 1), piece)
                    with watch.waiting():
                        given = next(batches)
                    # 2. a whole video, without a graph
                    video = roll_out(student.model, cfg, given, exit_step, draws)
                    # 3. the difference of the scores over all of it
                    difference = score_difference(teacher, fake.model, video.latents, video.conditions, cfg, draws)
                    # 4. back-propagation, chunk by chunk
                    text, first = video.conditions.text, piece.start
                    again = start(student.model, cfg, video.latents[:, 0], text, video.seed, first)
                    gradient = difference * (mesh.share(piece, stage.batch) / elements(difference))
                    replay.backward(again, video.conditions.actions, video.latents, video.passes, gradient)
                    size += (difference * gradient).sum()
                    passed = footprint.passed(generator.cfg, video.latents.shape)
                    num_tokens += passed.batch * passed.tokens // mesh.sequence.size
                    made = passes.distill(cfg, passed, exits=exit_step + 1)
                    num_flops += passes.computed(generator.cfg, list(made)) / mesh.sequence.size
                watch.computed()
                # 5. one step
                rate = optimizer.rate(cfg.optimizer, step, total)
                value, measured["gradient_norm"] = student.step(size, rate, step)
                measured["score_difference"] = value**0.5
                figures = {**measured, "exit_step": exit_step, "latents": stage.latents, "skipped": dataset.skipped}
                note = f"score difference {measured['score_difference']:.3f}"
                watch.step(step, figures, tokens=num_tokens, flops=num_flops, note=note)
                checkpoints.after(step + 1, watch)
            trainee.release(teacher, mesh)
            del teacher  # leaves the device before the next one comes
    checkpoints.close()
    return student.average, before


def requests(cfg: Distill, dataset: loader.Dataset, mesh: Mesh, step: int) -> Iterator[tuple[list[int], int]]:
    """What this process takes of the data set from a step on, piece by piece: samples and their length. In a step the
    critic's batches come first."""
    for stage, steps in stages_from(cfg.stages, step):
        for each in steps:
            drawn = dataset.indices(cfg.seed, each, stage.batch * (cfg.critic_steps + 1))
            for first in range(0, len(drawn), stage.batch):
                pieces = mesh.pieces(stage.batch)
                yield from (([drawn[first + row] for row in piece], stage.latents) for piece in pieces)


def stages_from(stages: tuple[Stage, ...], step: int) -> Iterator[tuple[Stage, range]]:
    """Every stage that is not over at a step, and the steps that are left of it."""
    end = 0
    for stage in stages:
        begin, end = end, end + stage.steps
        if step < end:
            yield stage, range(max(begin, step), end)


def video_error(student: Any, dataset: loader.Dataset, cfg: Distill, mesh: Mesh, batches: int = 2) -> float:
    """Mean squared distance of the student's videos to the true ones, always of the same samples and noise.

    DMD does not lower it on purpose: it says whether a video still is the one that the actions lead to."""
    stage, error = cfg.stages[-1], torch.zeros((), device=mesh.device)
    for index in range(batches):
        rows = dataset.indices(cfg.seed + 1, index, stage.batch)
        for piece in mesh.pieces(stage.batch):
            batch = dataset.batch([rows[row] for row in piece], num_latents=stage.latents, device=mesh.device)
            video = roll_out(student, cfg, batch, -1, Draws((cfg.seed + 1, index), piece))
            part = (video.latents - batch.latents)[:, 1:].square().mean()
            error += part * mesh.share(piece, stage.batch) / batches
    return mesh.mean(error).item()


def stage_folder(teacher: Path, num_latents: int) -> Path:
    """The teacher of a length, or of the next longer one: the student's lengths are whole chunks."""
    lengths = sorted(int(found.name.removeprefix("stage-")) for found in teacher.glob("stage-*"))
    for length in lengths:
        if length >= num_latents:
            return teacher / f"stage-{length}"
    raise ValueError(
        f"the teacher has no model for {num_latents} latents; it has {', '.join(map(str, lengths)) or 'none'}"
    )


def start(student: Any, cfg: Distill, image_latent: Tensor, text: Tensor, seed: int, first: int = 0) -> Rollout:
    """A walk of the videos that are the `first` and following ones of a batch."""
    return Rollout(
        student, cfg.rollout, image_latent=image_latent, text=text, seed=seed, first=first, unit=cfg.actions
    )  # fmt: skip


def roll_out(student: Any, cfg: Distill, batch: loader.Batch, exit_step: int, draws: Draws) -> Video:
    """The student's own videos of a batch's images and actions, all chunks left at the same timestep."""
    seed = int(draws.shared.integers(2**31))
    walk = start(student, cfg, batch.latents[:, 0], batch.conditions.text, seed, draws.rows[0])
    latents, passes = play(walk, batch.conditions.actions, num_latents=batch.latents.shape[1], exit_step=exit_step)
    return Video(latents, passes, batch.conditions, seed)


@torch.no_grad()
def score_difference(
    teacher: Any,
    critic: Any,
    latents: Tensor,
    conditions: Conditions,
    cfg: Distill,
    draws: Draws,
) -> Tensor:
    """The gradient [B, F, C, H, W] of DMD's loss for each latent of videos [B, F, C, H, W]; the image's is 0.

    Critic's minus teacher's guess of the clean video from a noisy one, over the sample's mean distance to the teacher's
    guess (DMD's eq. 8)."""
    noisy, timesteps, _ = noised(latents, cfg.shift, draws, least=cfg.least_timestep, largest=cfg.largest_timestep)
    real = flow.clean_of(noisy, guided(teacher, cfg.guidance, noisy, timesteps, conditions), timesteps)
    fake = flow.clean_of(noisy, guided(critic, 1.0, noisy, timesteps, conditions), timesteps)
    distance = (latents - real)[:, 1:].abs().mean((1, 2, 3, 4), keepdim=True)
    difference = (fake - real) / distance.clamp(min=1e-6)
    difference[:, 0] = 0
    return difference


def elements(difference: Tensor) -> int:
    """Numbers of a batch of videos that bear a loss: all but the image's."""
    return difference[:, 1:].numel()
