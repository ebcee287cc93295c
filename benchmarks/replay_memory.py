"""Replayed back-propagation beside one graph over the whole video: bytes that autograd keeps, seconds, whole updates.

    python benchmarks/replay_memory.py --json
    python benchmarks/replay_memory.py --device cuda --json figures.json

Both ways make the same video and the same gradients (tests/test_benchmarks.py). `replay_s` is the rollout without a
graph and the replay; `full_graph_s` the rollout, of every chunk the last pass with its graph, and one backward through
all of them, the context detached in both. They go in turns, a figure is the median. A video's last pass is the fourth;
`exit_steps` has the seconds when it is an earlier one, as in training: the fewer passes, the more the replay weighs.
Their peaks are of the bytes that autograd keeps, the weights aside; on CUDA also of what the allocator hands out.

`update_peak_bytes` is of a whole update of distillation, critic and optimisers included, and `phase_peak_bytes` of its
parts: every tensor on a CPU, the allocator's peak on CUDA, above weights, moments and averages.

Random weights, one video at a time; float32 or bfloat16 autocast, as relic/model/precision.py has it for the device.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Graph, Held, facts, peak_bytes, random_text, random_transformer, seconds, write
from torch import Tensor

from relic.data.loader import Batch
from relic.generate.config import Rollout as Walking
from relic.generate.rollout import Rollout, play
from relic.memory.config import Memory
from relic.model import config
from relic.model.attention import KeyValue
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.train import distill, optimizer, replay
from relic.train.config import Distill, Stage
from relic.train.draws import Draws
from relic.train.teacher import flow_loss

CHUNKS = (5, 10, 20, 40, 80)
WAYS = ("replay", "full_graph")


@dataclass(frozen=True, kw_only=True)
class Size:
    model: config.Transformer
    walking: Walking
    latent: tuple[int, int]  # rows, columns


SIZES = {
    "cpu": Size(  # at 5 chunks the memory is as full as at 80
        model=config.Transformer(
            width=64, ffn=256, layers=4, heads=2, latent_channels=4, text_width=8, text_tokens=4, control_width=16
        ),
        walking=Walking(chunk=2, memory=Memory(window=4, capacity=8)),
        latent=(8, 12),
    ),
    "cuda": Size(  # two layers of 1.3B at half of 480x832 a side, so that one graph over 80 chunks fits a GPU
        model=config.Transformer(
            width=1536, ffn=8960, layers=2, heads=12, control_width=256, text_width=4096, text_tokens=512,
            text_vocabulary=0, trained_frames=21, frames=21,
        ),
        walking=Walking(chunk=4, memory=Memory(window=8, capacity=16)),
        latent=(30, 52),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    chunks: int
    replay_peak_bytes: int
    full_graph_peak_bytes: int
    replay_s: float
    full_graph_s: float
    time_ratio: float  # replay / full graph, median over the pairs
    update_peak_bytes: int
    phase_peak_bytes: dict[str, int]
    allocated_peak_bytes: dict[str, int]  # by CUDA's allocator, of both ways


def batch_of(size: Size, num_latents: int, device: torch.device) -> Batch:
    """A random video and its conditions."""
    torch.manual_seed(0)
    cfg, num_frames = size.model, 4 * num_latents - 3
    latents = torch.randn(1, num_latents, cfg.latent_channels, *size.latent, device=device)
    actions = 0.1 * torch.rand(1, num_frames, 13, device=device)
    poses = torch.eye(4, device=device).expand(1, num_frames, 4, 4)
    text = random_text(cfg, device)
    return Batch(latents, Conditions(actions, poses, text, torch.zeros_like(text)))


class Graphed(Rollout):
    """A walk that keeps the graph of every chunk's last pass. What goes into that pass, and the memory, are detached,
    as `step` and `remember` compute without a graph."""

    exit_time: float
    made: list[Tensor]

    def _clean(self, noisy: Tensor, timesteps: Tensor, *, remember: bool = False) -> tuple[Tensor, list[KeyValue]]:
        is_last = math.isclose(timesteps[0, -1].item(), self.exit_time, rel_tol=1e-6)  # float32 of it
        with torch.set_grad_enabled(is_last):
            clean, own = super()._clean(noisy, timesteps, remember=remember)
        if is_last:
            self.made.append(clean)
        return clean, own


def ways(model: Transformer, size: Size, batch: Batch, exit_step: int) -> dict[str, Callable[[], None]]:
    """Calls that add the gradient of half the video's sum of squares to the weights' gradients."""
    actions, num_latents = batch.conditions.actions, batch.latents.shape[1]
    start: dict[str, Any] = {"image_latent": batch.latents[:, 0], "text": batch.conditions.text, "seed": 1}

    def replayed() -> None:
        walk = Rollout(model, size.walking, **start)
        made, passes = play(walk, actions, num_latents=num_latents, exit_step=exit_step)
        replay.backward(Rollout(model, size.walking, **start), actions, made, passes, made)

    def full_graph() -> None:
        walk = Graphed(model, size.walking, **start)
        walk.exit_time, walk.made = size.walking.timesteps[exit_step], []
        made, _ = play(walk, actions, num_latents=num_latents, exit_step=exit_step)
        torch.autograd.backward(walk.made, list(made.split(size.walking.chunk, 1)))

    return {"replay": replayed, "full_graph": full_graph}


class Updates:
    """Whole updates of distillation, as relic/train/distill.py has them in its loop, with one step of the critic."""

    def __init__(self, size: Size, device: torch.device):
        self.size, self.device = size, device
        self.generator, self.critic, self.teacher = (random_transformer(size.model, device) for _ in range(3))
        self.cfg = Distill(rollout=size.walking, stages=(Stage(latents=size.walking.chunk, steps=1, batch=1),))
        self.optimizers = optimizer.Optimizers(self.generator, self.cfg.optimizer)
        self.critic_optimizers = optimizer.Optimizers(self.critic, self.cfg.critic_optimizer)
        self.ema = optimizer.Ema(self.generator, self.cfg.ema)

    def phases(self, batch: Batch) -> Iterator[str]:
        """One update; yields a phase's name at its end."""
        cfg, random = self.cfg, Draws((0, 0), range(len(batch.latents)))
        video = distill.roll_out(self.generator, cfg, batch, -1, random)
        yield "rollout"
        loss = flow_loss(self.critic, video.latents, video.conditions, cfg.shift, random)
        loss.backward()
        optimizer.update(self.critic, self.critic_optimizers, loss, cfg.critic_optimizer, 1e-6)
        yield "critic"
        difference = distill.score_difference(self.teacher, self.critic, video.latents, video.conditions, cfg, random)
        yield "scores"
        again = distill.start(self.generator, cfg, video.latents[:, 0], video.conditions.text, video.seed)
        gradient = difference / distill.elements(difference)
        replay.backward(again, video.conditions.actions, video.latents, video.passes, gradient)
        optimizer.update(self.generator, self.optimizers, gradient.sum(), cfg.optimizer, 1e-6)
        self.ema.update(self.generator, 0)
        yield "replay"

    def peaks(self, batch: Batch) -> dict[str, int]:
        """The most bytes at once in each phase."""
        peaks = {}
        if self.device.type == "cpu":
            with Held() as held:
                for phase in self.phases(batch):
                    peaks[phase], held.most = held.most, held.now
            return peaks
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        for phase in self.phases(batch):
            peaks[phase] = torch.cuda.max_memory_allocated(self.device) - before
            torch.cuda.reset_peak_memory_stats(self.device)
        return peaks


def timed(both: dict[str, Callable[[], None]], pairs: int, device: torch.device) -> dict[str, float]:
    """Medians of the seconds of both ways, and of their ratio, which have been called before."""
    taken: dict[str, list[float]] = {way: [] for way in both}
    for number in range(pairs):
        for way in WAYS if number % 2 else WAYS[::-1]:
            taken[way].append(seconds(both[way], device))
    ratios = [taken["replay"][pair] / taken["full_graph"][pair] for pair in range(pairs)]
    medians = {f"{way}_s": statistics.median(taken[way]) for way in WAYS}
    return {**medians, "time_ratio": statistics.median(ratios)}


def by_exit_step(size: Size, device: torch.device, *, chunks: int, pairs: int) -> Iterator[dict[str, float]]:
    """Seconds where the student's passes end early, as they do in training, which draws the exit step evenly."""
    model, batch = random_transformer(size.model, device), batch_of(size, chunks * size.walking.chunk, device)
    for exit_step in range(len(size.walking.timesteps)):
        both = ways(model, size, batch, exit_step)
        for run in both.values():
            run()
        yield {"exit_step": exit_step, "chunks": chunks, **timed(both, pairs, device)}


def measure(size: Size, device: torch.device, *, chunks: int, pairs: int, updates: Updates) -> Row:
    model, batch = random_transformer(size.model, device), batch_of(size, chunks * size.walking.chunk, device)
    both = ways(model, size, batch, -1)
    kept, allocated = {}, {}
    for way, run in both.items():
        graph = Graph(model)
        with graph:
            run()
        kept[way] = graph.most
        if device.type == "cuda":
            allocated[way] = peak_bytes(run, device)
    phases = updates.peaks(batch)
    return Row(
        chunks=chunks,
        replay_peak_bytes=kept["replay"],
        full_graph_peak_bytes=kept["full_graph"],
        **timed(both, pairs, device),
        update_peak_bytes=max(phases.values()),
        phase_peak_bytes=phases,
        allocated_peak_bytes=allocated,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(SIZES))
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS)
    parser.add_argument("--pairs", type=int, default=5, help="at least 5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    if given.pairs < 5:
        parser.error(f"--pairs is {given.pairs}; a median needs at least 5")
    torch.set_num_threads(given.threads)
    device, size = torch.device(given.device), SIZES[given.device]
    updates = Updates(size, device)
    updates.peaks(batch_of(size, given.chunks[0] * size.walking.chunk, device))  # makes the moments, and warms up
    print("| chunks | kept MiB, replay / full graph | s | ratio | update MiB, and its phases |\n|---|---|---|---|---|")
    rows = []
    for chunks in given.chunks:
        row = measure(size, device, chunks=chunks, pairs=given.pairs, updates=updates)
        rows.append(row)
        phases = ", ".join(f"{name} {peak / 2**20:.1f}" for name, peak in row.phase_peak_bytes.items())
        print(
            f"| {chunks} | {row.replay_peak_bytes / 2**20:.2f} / {row.full_graph_peak_bytes / 2**20:.2f} "
            f"| {row.replay_s:.3f} / {row.full_graph_s:.3f} | {row.time_ratio:.2f} "
            f"| {row.update_peak_bytes / 2**20:.1f}: {phases} |",
            flush=True,
        )
    print("\n| last pass | s, replay / full graph | ratio |\n|---|---|---|")
    exits, middle = [], sorted(given.chunks)[len(given.chunks) // 2]
    for one in by_exit_step(size, device, chunks=middle, pairs=given.pairs):
        exits.append(one)
        print(f"| {one['exit_step']} | {one['replay_s']:.3f} / {one['full_graph_s']:.3f} | {one['time_ratio']:.2f} |")
    if given.json:
        write(given.json, {**facts(device), "size": asdict(size), "pairs": given.pairs, "exit_steps": exits}, rows)


if __name__ == "__main__":
    main()
