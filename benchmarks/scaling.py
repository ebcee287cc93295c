"""Training steps on several processes: bytes sent, peak memory, seconds, and what a checkpoint costs; each beside what
`relic plan` says for the same dials.

    python benchmarks/scaling.py --json
    python benchmarks/scaling.py --device cuda --size wan_1b --json figures.json

The steps are those of relic/train/teacher.py and distill.py, on random weights and videos. On a CPU 1, 2 and 4
processes meet over gloo; on CUDA as many as there are devices meet over NCCL, and one needs no DeepSpeed.

`sent_bytes` is what one process sends in a step, as rings do (benchmarks/sent.py). `peak_bytes` is the most of a step:
all tensors on a CPU, the allocator's on CUDA; weights and moments are among them. Seconds are of a run of its own, for
counting takes time; distillation on a CPU is only counted. `checkpoint_s` is how long a step waits for a save of the
model in training, `checkpoint_share` that over its seconds. `mfu` counts no operation that checkpointing repeats.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measure import facts, write
from steps import Size, Taken, measured, sizes

from relic.model.precision import native_bfloat16
from relic.parallel.config import Parallel
from relic.train import measures, passes, planner
from relic.train.config import Machine
from relic.train.draws import Draws
from relic.train.footprint import Pass

PATIENCE_S = 900.0  # for what a case measured


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
    step_s: float | None
    mfu: float | None
    checkpoint_s: float | None
    checkpoint_share: float | None  # of `step_s`


# Cases


def row(case: Case, size: Size, taken: Sequence[Taken], device: torch.device) -> Row:
    """What the processes of a case measured, the first step aside; the planner's figures beside it. Of distillation
    process 0 alone is told when a step has ended; it takes the largest part of every latent."""
    parallel = case.parallel
    need = planned(case, size, device)
    stage = size.stage(case.training)
    step_s = max((statistics.fmean(one.seconds[1:]) for one in taken if one.seconds), default=None)
    peaks = measures.peak(device)
    operations = flops(case, size) * case.processes / parallel.sequence
    saves = [one.checkpoint_s for one in taken if one.checkpoint_s is not None]
    return Row(
        training=case.training, processes=case.processes, zero=parallel.zero, sequence=parallel.sequence,
        checkpointing=parallel.checkpointing, batch=stage.batch, latents=stage.latents,
        sent_bytes=max((round(statistics.fmean(one.sent[1:])) for one in taken if one.sent), default=0),
        planned_sent_bytes=round(need.sent),
        peak_bytes=max(peak for one in taken for peak in one.peak[1:]), planned_peak_bytes=round(need.total),
        step_s=step_s, mfu=operations / step_s / (case.processes * peaks) if step_s and peaks else None,
        checkpoint_s=max(saves, default=None), checkpoint_share=max(saves) / step_s if step_s and saves else None,
    )  # fmt: skip


def exits(size: Size) -> float:
    """Passes of a chunk until it is clean, as the measured steps draw them (relic/train/distill.py); their mean."""
    cfg = size.distill
    drawn = [
        int(Draws((cfg.seed, step), ()).shared.integers(len(cfg.rollout.timesteps)))
        for step in range(1, cfg.stages[0].steps)
    ]
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
    stage = size.stage(case.training)
    batch = stage.batch * case.parallel.sequence // case.processes
    video = Pass(latents=stage.latents, rows=size.rows, columns=size.columns, batch=batch)
    if case.training == "teacher":
        return passes.computed(size.model, [passes.Passes(video, graph=True)])
    return passes.computed(size.model, list(passes.distill(size.distill, video, exits=exits(size))))


def cases(size: Size, worlds: Sequence[int], *, checkpointing: bool) -> Iterator[Case]:
    """ZeRO 0 to 3 times a sequence shared by 1, 2 and 4, as far as there are processes, and samples for them. One has
    nothing to cut; Muon cannot be cut."""
    is_cut = not (size.teacher.optimizer.muon or size.distill.optimizer.muon)
    batch, heads = size.stage("teacher").batch, size.model.heads
    for world in worlds:
        for sequence in (n for n in (1, 2, 4) if world % n == heads % n == 0 and batch % (world // n) == 0):
            for zero in range(4 if world > 1 and is_cut else 1):
                for training in ("teacher", "distill"):
                    parallel = Parallel(
                        zero=zero, sequence=sequence, checkpointing=checkpointing, bucket=size.bucket
                    )  # fmt: skip
                    yield Case(training=training, processes=world, parallel=parallel)


# Processes


def results(found: Sequence[Case], size: Size) -> Iterator[tuple[Case, list[Taken]]]:
    """What each case took in its processes, started once for all cases of as many. One process is this one."""
    for world in sorted({case.processes for case in found}):
        same = [case for case in found if case.processes == world]
        if world == 1:
            yield from ((case, [measured(case.training, size, case.parallel)]) for case in same)
            continue
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        workers = [context.Process(target=work, args=(rank, world, port, same, size, queue)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for case in same:
            yield case, [queue.get(timeout=PATIENCE_S) for _ in workers]
        for worker in workers:
            worker.join()


def work(rank: int, world: int, port: int, found: Sequence[Case], size: Size, queue: Any) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # what DeepSpeed calls
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for case in found:
        queue.put(measured(case.training, size, case.parallel))
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
        f"| {'-' if one.step_s is None else f'{one.step_s:.3f}'} | {mfu} | {save} |"
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
    chosen = cases(size, worlds, checkpointing=checkpointing)
    found = [case for case in chosen if case.parallel.zero in given.zero]
    heads = ("training", "processes", "ZeRO", "sequence", "MB sent / planned", "ratio", "MB peak / planned", "ratio",
             "s a step", "MFU", "checkpoint")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    rows = []
    for case, taken in results(found, size):
        rows.append(row(case, size, taken, device))
        print(printed(rows[-1]), flush=True)
    if given.json:
        write(given.json, {**facts(device), "size": asdict(size)}, rows)


if __name__ == "__main__":
    main()
