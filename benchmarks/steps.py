"""A few steps of the trainings on random weights and videos, and what a process measures of each."""

import contextlib
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # by the counting modes, too late once ZeRO 3 has put its own constructors in torch's place
from measure import Held
from sent import Sent

from relic import recipes
from relic.data.loader import Batch
from relic.generate.config import Rollout
from relic.memory.config import Memory
from relic.model import config
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import distill, planner, trainee
from relic.train.checkpoint import Checkpoints
from relic.train.config import Checkpointing, Distill, Optimizer, Stage, Teacher
from relic.train.draws import Draws
from relic.train.fragments import Image, shared
from relic.train.teacher import flow_loss

ADAMW = Optimizer(warmup=0)


@dataclass(frozen=True, kw_only=True)
class Size:
    teacher: Teacher
    distill: Distill
    rows: int  # tokens of a latent
    columns: int
    bucket: int = Parallel().bucket

    def stage(self, training: str) -> Stage:
        """The only one; its first step warms up."""
        (stage,) = self.teacher.stages if training == "teacher" else self.distill.stages
        return stage

    @property
    def model(self) -> config.Transformer:
        return self.teacher.model


class Taken(NamedTuple):
    """What a process measured of a training."""

    sent: list[int]  # bytes, a step
    peak: list[int]
    seconds: list[float]
    checkpoint_s: float | None


def sizes(name: str) -> Size:
    """ "cpu", whose states are most of its memory, or a recipe's of one video at a time with one step of the critic."""
    if name == "cpu":
        model = config.Transformer(
            width=192, ffn=768, layers=4, heads=4, latent_channels=4, text_width=16, text_tokens=4, control_width=16
        )
        rollout = Rollout(chunk=2, timesteps=(1000.0, 700.0), memory=Memory(window=2, capacity=8))
        return Size(
            teacher=Teacher(model=model, stages=(Stage(latents=4, steps=2, batch=4),), optimizer=ADAMW),
            distill=Distill(
                stages=(Stage(latents=4, steps=2, batch=4),), rollout=rollout, critic_steps=1, optimizer=ADAMW,
                critic_optimizer=ADAMW,
            ),
            rows=4, columns=6, bucket=500_000,
        )  # fmt: skip
    recipe = recipes.named(name)
    rows, columns = planner.grid(recipe)
    teacher, student = (replace(cfg.stages[0], steps=3, batch=1) for cfg in (recipe.teacher, recipe.distill))
    return Size(
        teacher=replace(recipe.teacher, start="", stages=(teacher,)),
        distill=replace(recipe.distill, stages=(student,), critic_steps=1),
        rows=rows, columns=columns,
    )  # fmt: skip


class Videos:
    """Random videos in place of a dataset."""

    skipped = 0

    def __init__(self, size: Size):
        self.size = size

    def indices(self, seed: int, step: int, global_batch: int) -> list[int]:
        return list(range(global_batch))

    def ahead(self, requests: Iterable[tuple[list[int], int]], *, device: str) -> Iterator[Batch]:
        return (self.batch(indices, num_latents=length, device=device) for indices, length in requests)

    def batch(self, indices: Sequence[int], *, num_latents: int, device: str) -> Batch:
        cfg, batch, frames = self.size.model, len(indices), 4 * num_latents - 3
        torch.manual_seed(0)
        latents = torch.randn(
            batch, num_latents, cfg.latent_channels, self.size.rows * cfg.patch[1], self.size.columns * cfg.patch[2],
            device=device,
        )  # fmt: skip
        if cfg.text_vocabulary:
            text = torch.randint(1, cfg.text_vocabulary, (batch, cfg.text_tokens), device=device)
        else:
            text = torch.randn(batch, cfg.text_tokens, cfg.text_width, device=device)
        poses = torch.eye(4, device=device).expand(batch, frames, 4, 4)
        return Batch(latents, Conditions(0.1 * torch.rand(batch, frames, 13, device=device), poses, text, text[:1] * 0))


class Meter:
    """Called at the end of every step."""

    def __init__(self, device: torch.device, *, counting: bool):
        self.device = device
        self.held = Held() if device.type == "cpu" and counting else None
        self.sent = Sent() if counting else None
        self.taken = Taken([], [], [], None)
        self.before, self.began = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for mode in (self.held, self.sent):
                if mode is not None:
                    stack.enter_context(mode)
            yield

    def __call__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.taken.peak.append(torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.held is not None:
            self.taken.peak.append(self.held.most)
            self.held.most = self.held.now
        if self.sent is not None:
            self.taken.sent.append(round(self.sent.bytes - self.before))
            self.before = self.sent.bytes
        now = time.perf_counter()
        self.taken.seconds.append(now - self.began)
        self.began = now


# Trainings


def made(size: Size, mesh: Mesh) -> Transformer:
    """Random weights, made where they are to be."""
    with contextlib.nullcontext() if mesh.zero == 3 else torch.device(mesh.device):
        return trainee.made(size.model, mesh, None).eval()


def teach(size: Size, mesh: Mesh, ended: Callable[[], None]) -> trainee.Trainee:
    """The loop of relic/train/teacher.py."""
    cfg, (stage,), videos = size.teacher, size.teacher.stages, Videos(size)
    model = trainee.trainee("teacher", made(size, mesh), cfg.optimizer, mesh, ema=cfg.ema)
    model.set_length(stage.latents)
    for step in range(stage.steps):
        rows, loss = videos.indices(0, step, stage.batch), torch.zeros((), device=mesh.device)
        for piece in mesh.pieces(stage.batch):
            batch = videos.batch([rows[row] for row in piece], num_latents=stage.latents, device=mesh.device)
            draws = Draws((0, step), piece)
            share = flow_loss(model.model, batch.latents, batch.conditions, cfg.shift, draws)
            share = share * mesh.share(piece, stage.batch)
            share.backward()
            loss += share.detach()
        model.step(loss, cfg.optimizer.learning_rate, step)
        ended()
    return model


def distilled(size: Size, mesh: Mesh, ended: Callable[[], None]) -> None:
    """relic/train/distill.py itself."""

    def teacher_of(_: int) -> Any:
        return trainee.fixed(made(size, mesh), mesh)

    with tempfile.TemporaryDirectory() as out:
        videos: Any = Videos(size)
        cfg = replace(size.distill, checkpoint=Checkpointing(every_s=1e9))
        distill.train(
            cfg, made(size, mesh), made(size, mesh), teacher_of=teacher_of, dataset=videos, out=Path(out),
            run=Run(on_progress=ended), mesh=mesh,
        )  # fmt: skip


def checkpointed(model: trainee.Trainee, mesh: Mesh) -> float:
    """Seconds that a step waits for a save, the longest of all processes; its memory is there, as after the first."""
    folder = mesh.said_by_first(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder, [model], mesh, Checkpointing(every_s=1e9))
    mine = shared(model.fragments(), mesh.rank, mesh.world)
    checkpoints.image = Image(mine, pinned=mesh.device.startswith("cuda"))
    checkpoints.image.fill(mine)
    mesh.wait()
    checkpoints.save(1)
    checkpoints.close()
    mesh.wait()
    if mesh.is_first:
        shutil.rmtree(folder)
    return max(mesh.said_by_all(checkpoints.seconds))


def measured(training: str, size: Size, parallel: Parallel) -> Taken:
    """What steps take in this process; all of its processes call it."""
    taken = counted(training, size, parallel)
    mesh = meshes.joined(parallel)
    if mesh.device == "cpu" and training == "distill":
        return taken
    meter = Meter(torch.device(mesh.device), counting=False)
    checkpoint_s = once(training, size, mesh, meter, save=True)
    gc.collect()
    peak = taken.peak or meter.taken.peak  # on CUDA the allocator counts, which costs no time
    return taken._replace(peak=peak, seconds=meter.taken.seconds, checkpoint_s=checkpoint_s)


def counted(training: str, size: Size, parallel: Parallel) -> Taken:
    """Bytes of steps in this process: none where there is nothing that must be counted."""
    mesh = meshes.joined(parallel)
    if mesh.device != "cpu" and mesh.world == 1:
        return Taken([], [], [], None)
    meter = Meter(torch.device(mesh.device), counting=True)
    with meter.running():
        once(training, size, mesh, meter, save=False)
    gc.collect()  # engines refer to themselves
    return meter.taken._replace(seconds=[])


def once(training: str, size: Size, mesh: Mesh, ended: Callable[[], None], *, save: bool) -> float | None:
    if training == "distill":
        distilled(size, mesh, ended)
        return None
    model = teach(size, mesh, ended)
    return checkpointed(model, mesh) if save else None
