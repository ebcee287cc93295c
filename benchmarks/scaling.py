"""Training steps on several processes: bytes sent, peak memory, seconds, and what a checkpoint costs; each beside what
`relic plan` says for the same dials.

    python benchmarks/scaling.py --json
    python benchmarks/scaling.py --device cuda --size wan_1b --json figures.json

The steps are those of relic/train/teacher.py and distill.py, on random weights and videos. On a CPU 1, 2 and 4
processes meet over gloo; on CUDA as many as there are devices meet over NCCL, and one needs no DeepSpeed.

`sent_bytes` is what one process sends in a step. Every collective that reaches torch.distributed is counted, DeepSpeed's
too, as a ring of n processes sends it: of B bytes, 2 (n - 1) / n B for an all-reduce, (n - 1) / n B for an all-gather or
a reduce-scatter to or from B in all, (n - 1) / n B for an all-to-all, a broadcast or a reduce.

`peak_bytes` is the most of a step: all tensors on a CPU, the allocator's on CUDA; weights and moments are among them.
`checkpoint_s` is how long a step waits for a save of the model in training, `checkpoint_share` that over its seconds.
`mfu` counts no operation that checkpointing of activations repeats.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from measure import Held, facts, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from relic import recipes
from relic.data.loader import Batch
from relic.generate.config import Rollout
from relic.memory.config import Memory
from relic.model import config
from relic.model.conditions import Conditions
from relic.model.precision import native_bfloat16
from relic.model.transformer import Transformer
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import distill, measures, optimizer, passes, planner, trainee
from relic.train.checkpoint import Checkpoints
from relic.train.config import Checkpointing, Distill, Machine, Optimizer, Stage, Teacher
from relic.train.draws import Draws
from relic.train.footprint import Pass
from relic.train.fragments import Image, shared
from relic.train.teacher import flow_loss

STEPS = 3  # of which the first warms up
ADAMW = Optimizer(warmup=0)


@dataclass(frozen=True, kw_only=True)
class Size:
    teacher: Teacher
    distill: Distill
    rows: int  # tokens of a latent
    columns: int
    bucket: int = Parallel().bucket

    @property
    def model(self) -> config.Transformer:
        return self.teacher.model


@dataclass(frozen=True, kw_only=True)
class Case:
    training: str  # "teacher" | "distill"
    processes: int
    parallel: Parallel


@dataclass(frozen=True, kw_only=True)
class Row:
    training: str
    processes: int
    zero: int
    sequence: int
    checkpointing: bool
    batch: int  # of all processes
    latents: int
    sent_bytes: int
    planned_sent_bytes: int
    peak_bytes: int
    planned_peak_bytes: int
    step_s: float
    mfu: float | None
    checkpoint_s: float | None
    checkpoint_share: float | None  # of `step_s`


class Taken(NamedTuple):
    """What a process measured of a training."""

    sent: list[int]  # bytes, a step
    peak: list[int]
    seconds: list[float]
    checkpoint_s: float | None


def sizes(name: str) -> Size:
    """"cpu", whose states are most of its memory, or a recipe's of one video at a time with one step of the critic."""
    if name == "cpu":
        model = config.Transformer(
            width=192, ffn=768, layers=6, heads=4, latent_channels=4, text_width=16, text_tokens=4, control_width=16
        )
        rollout = Rollout(chunk=2, timesteps=(1000.0, 700.0), memory=Memory(window=2, capacity=8))
        return Size(
            teacher=Teacher(model=model, stages=(Stage(latents=4, steps=STEPS, batch=4),), optimizer=ADAMW),
            distill=Distill(
                stages=(Stage(latents=4, steps=STEPS, batch=4),), rollout=rollout, critic_steps=1, optimizer=ADAMW,
                critic_optimizer=ADAMW,
            ),
            rows=4, columns=6, bucket=500_000,
        )  # fmt: skip
    recipe = recipes.named(name)
    rows, columns = planner.grid(recipe)
    teacher, student = (replace(cfg.stages[0], steps=STEPS, batch=1) for cfg in (recipe.teacher, recipe.distill))
    return Size(
        teacher=replace(recipe.teacher, start="", stages=(teacher,)),
        distill=replace(recipe.distill, stages=(student,), critic_steps=1),
        rows=rows, columns=columns,
    )  # fmt: skip


class Videos:
    """Random videos in place of a dataset."""

    def __init__(self, size: Size):
        self.size = size

    def indices(self, seed: int, step: int, global_batch: int) -> list[int]:
        return list(range(global_batch))

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


class Sent(TorchDispatchMode):
    """Adds up the bytes that this process sends, as a ring sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes += sent(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))


def sent(collective: str, args: Sequence[Any]) -> float:
    """Bytes that one process sends in a collective with torch's arguments."""
    if collective == "barrier":
        return 0
    groups = (x for x in args if isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type()))
    n = dist.ProcessGroup.unbox(next(groups)).size()
    first, second = (sum(x.nbytes for x in ([of] if isinstance(of, Tensor) else of) if isinstance(x, Tensor))
                     for of in (args[0], args[1] if isinstance(args[1], list | Tensor) else []))  # fmt: skip
    return {
        "allreduce_": lambda: 2 * (n - 1) / n * first,
        "allgather_": lambda: (n - 1) * second,
        "_allgather_base_": lambda: (n - 1) * second,
        "_reduce_scatter_base_": lambda: (n - 1) * first,
        "reduce_scatter_": lambda: (n - 1) * first,
        "alltoall_base_": lambda: (n - 1) / n * second,
        "broadcast_": lambda: (n - 1) / n * first,
        "reduce_": lambda: (n - 1) / n * first,
    }[collective]()


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
    """Seconds that a step waits for a save, in the longest of all processes; its memory is there, as after the first."""
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


# Cases


def measured(case: Case, size: Size) -> Taken:
    """What a case takes in this process; all of its processes call it."""
    mesh = meshes.joined(case.parallel)
    device = torch.device(mesh.device)
    counts = device.type == "cpu" or mesh.world > 1
    meter = Meter(device, counting=counts)
    with meter.running():
        checkpoint_s = once(case.training, size, mesh, meter, save=not counts)
    gc.collect()  # engines refer to themselves
    if not counts:
        return meter.taken._replace(checkpoint_s=checkpoint_s)
    timed = Meter(device, counting=False)  # counting takes time
    checkpoint_s = once(case.training, size, mesh, timed, save=True)
    gc.collect()
    return meter.taken._replace(seconds=timed.taken.seconds, checkpoint_s=checkpoint_s)


def once(training: str, size: Size, mesh: Mesh, ended: Callable[[], None], *, save: bool) -> float | None:
    if training == "distill":
        distilled(size, mesh, ended)
        return None
    model = teach(size, mesh, ended)
    return checkpointed(model, mesh) if save else None


def row(case: Case, size: Size, taken: Sequence[Taken], device: torch.device) -> Row:
    """What the processes of a case measured, the first step aside; the planner's figures beside it."""
    parallel = case.parallel
    need = planned(case, size, device)
    (stage,) = size.teacher.stages if case.training == "teacher" else size.distill.stages
    step_s = max(statistics.fmean(one.seconds[1:]) for one in taken)
    peaks = measures.peak(device)
    operations = flops(case, size) * case.processes / parallel.sequence
    saves = [one.checkpoint_s for one in taken if one.checkpoint_s is not None]
    return Row(
        training=case.training, processes=case.processes, zero=parallel.zero, sequence=parallel.sequence,
        checkpointing=parallel.checkpointing, batch=stage.batch, latents=stage.latents,
        sent_bytes=max((round(statistics.fmean(one.sent[1:])) for one in taken if one.sent), default=0),
        planned_sent_bytes=round(need.sent),
        peak_bytes=max(max(one.peak[1:]) for one in taken), planned_peak_bytes=round(need.total),
        step_s=step_s, mfu=operations / step_s / (case.processes * peaks) if peaks else None,
        checkpoint_s=max(saves, default=None), checkpoint_share=max(saves) / step_s if saves else None,
    )  # fmt: skip


def exits(size: Size) -> float:
    """Passes of a chunk until it is clean, as the measured steps draw them (relic/train/distill.py); their mean."""
    cfg = size.distill
    drawn = [int(Draws((cfg.seed, step), ()).shared.integers(len(cfg.rollout.timesteps))) for step in range(1, STEPS)]
    return 1 + statistics.fmean(drawn)


def machine(case: Case, device: torch.device) -> Machine:
    parallel = case.parallel
    return Machine(
        gpus=case.processes, sequence_parallel=parallel.sequence, checkpointing=parallel.checkpointing,
        samples=parallel.samples, zero=parallel.zero, bucket=parallel.bucket, bfloat16=native_bfloat16(device),
    )  # fmt: skip


def planned(case: Case, size: Size, device: torch.device) -> planner.Need:
    """The planner's figures of a case; of distillation the fuller of its moments."""
    place: Any = {"rows": size.rows, "columns": size.columns, "machine": machine(case, device)}
    if case.training == "teacher":
        return planner.teacher(size.teacher, size.teacher.stages[0], **place)
    needs = planner.distill(size.model, size.distill, size.distill.stages[0], **place, exits=exits(size))
    return max(needs, key=lambda need: need.total)


def flops(case: Case, size: Size) -> float:
    """Operations of a step in a group of processes."""
    (stage,) = size.teacher.stages if case.training == "teacher" else size.distill.stages
    batch = stage.batch * case.parallel.sequence // case.processes
    video = Pass(latents=stage.latents, rows=size.rows, columns=size.columns, batch=batch)
    if case.training == "teacher":
        return passes.computed(size.model, [passes.Passes(video, graph=True)])
    return passes.computed(size.model, list(passes.distill(size.distill, video, exits=exits(size))))


def cases(worlds: Sequence[int], *, heads: int, sharded: bool, checkpointing: bool, bucket: int) -> Iterator[Case]:
    """ZeRO 0 to 3 times a sequence shared by 1, 2 and 4, as far as there are processes. Alone there is nothing to cut."""
    for world in worlds:
        for sequence in (n for n in (1, 2, 4) if world % n == heads % n == 0):
            for zero in range(4 if world > 1 and sharded else 1):
                for training in ("teacher", "distill"):
                    yield Case(
                        training=training, processes=world,
                        parallel=Parallel(zero=zero, sequence=sequence, checkpointing=checkpointing, bucket=bucket),
                    )  # fmt: skip


# Processes


def results(found: Sequence[Case], size: Size) -> Iterator[tuple[Case, list[Taken]]]:
    """What each case took in its processes, started once for all cases of as many. One process is this one."""
    for world in sorted({case.processes for case in found}):
        same = [case for case in found if case.processes == world]
        if world == 1:
            yield from ((case, [measured(case, size)]) for case in same)
            continue
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        workers = [context.Process(target=work, args=(rank, world, port, same, size, queue)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for case in same:
            yield case, [queue.get() for _ in workers]
        for worker in workers:
            worker.join()


def work(rank: int, world: int, port: int, found: Sequence[Case], size: Size, queue: Any) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # what DeepSpeed calls
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for case in found:
        queue.put(measured(case, size))
        dist.barrier()
    dist.destroy_process_group()


def printed(one: Row) -> str:
    sent_mb, planned_mb = one.sent_bytes / 1e6, one.planned_sent_bytes / 1e6
    ratios = [f"{plan / real:.2f}" if real else "-" for plan, real in
              ((one.planned_sent_bytes, one.sent_bytes), (one.planned_peak_bytes, one.peak_bytes))]  # fmt: skip
    mfu = "-" if one.mfu is None else f"{one.mfu:.1%}"
    save = "-" if one.checkpoint_share is None else f"{one.checkpoint_s:.3f} s, {one.checkpoint_share:.1%}"
    return (
        f"| {one.training} | {one.processes} | {one.zero} | {one.sequence} | {sent_mb:.1f} / {planned_mb:.1f} "
        f"| {ratios[0]} | {one.peak_bytes / 1e6:.1f} / {one.planned_peak_bytes / 1e6:.1f} | {ratios[1]} "
        f"| {one.step_s:.3f} | {mfu} | {save} |"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="cpu", choices=("cpu", "tiny", "small", "wan_1b"))
    parser.add_argument("--processes", type=int, nargs="+", help="by default 1, 2 and 4, on CUDA as there are devices")
    parser.add_argument("--zero", type=int, nargs="+", choices=range(4), default=range(4))
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="by default for wan_1b only")
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    device, size = torch.device(given.device), sizes(given.size)
    torch.set_num_threads(1 if given.device == "cpu" else torch.get_num_threads())
    devices = 4 if given.device == "cpu" else torch.cuda.device_count()
    worlds = given.processes or [n for n in (1, 2, 4) if n <= devices]
    checkpointing = given.size == "wan_1b" if given.checkpointing is None else given.checkpointing
    muon = size.teacher.optimizer.muon or size.distill.optimizer.muon
    found = list(cases(worlds, heads=size.model.heads, sharded=not muon, checkpointing=checkpointing, bucket=size.bucket))
    print("| training | processes | ZeRO | sequence | MB sent / planned | ratio | MB peak / planned | ratio | s a step | MFU | checkpoint |")
    print("|" + "---|" * 11)
    rows, found = [], [case for case in found if case.parallel.zero in given.zero]
    for case, taken in results(found, size):
        rows.append(row(case, size, taken, device))
        print(printed(rows[-1]), flush=True)
    if given.json:
        write(given.json, {**facts(device), "size": asdict(size)}, rows)


if __name__ == "__main__":
    main()
