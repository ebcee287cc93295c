"""What the processes of a training measure of their steps, put together: throughput, memory, who is slow, who starves.

A process's own time of a step is that until it may have to wait for the others. Processes that wait for each other
within it, as sequence-parallel neighbours do in every layer, are slow together."""

import resource
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from relic.parallel.config import Watching

PEAKS = {  # torch's name of a device -> FLOP/s of dense bf16 products, from NVIDIA's data sheets
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
GIB = 2**30
Moment = float | torch.cuda.Event
FELT = 0.1  # of a step's time: a process that is slower by less is not named


class Seen(NamedTuple):
    """What a process has measured since the last gathering."""

    rank: int
    host: str
    steps: int
    step_s: float  # a step's time, as the next two a mean
    own_s: float  # of it until the process may have to wait for the others
    wait_s: float  # of it for data
    memory_gib: float  # most that was ever taken
    tokens: int  # of all the steps, as the next
    flops: float
    peak: float | None  # FLOP/s
    figures: list[tuple[int, dict[str, float]]]  # by step

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass
class Window:
    """Adds up what is measured between two gatherings."""

    steps: int = 0
    step_s: float = 0.0
    own_s: float = 0.0
    owns: int = 0  # steps whose own time is known
    wait_s: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, *, step_s: float, own_s: float | None, wait_s: float, tokens: int, flops: float) -> None:
        """A step, whose own time may be unknown."""
        self.steps, self.step_s, self.wait_s = self.steps + 1, self.step_s + step_s, self.wait_s + wait_s
        self.tokens, self.flops = self.tokens + tokens, self.flops + flops
        if own_s is not None:
            self.own_s, self.owns = self.own_s + own_s, self.owns + 1

    def seen(self, rank: int, device: torch.device) -> Seen:
        step_s = self.step_s / self.steps
        return Seen(
            rank=rank, host=socket.gethostname(), steps=self.steps,
            step_s=step_s, own_s=self.own_s / self.owns if self.owns else step_s, wait_s=self.wait_s / self.steps,
            memory_gib=memory_gib(device), tokens=self.tokens, flops=self.flops, peak=peak(device),
            figures=self.figures,
        )  # fmt: skip


def throughput(seen: Sequence[Seen]) -> dict[str, float]:
    """Figures of all processes together. MFU, of the devices' peaks, only where all are known."""
    step_s = statistics.mean(one.step_s for one in seen)
    seconds = step_s * seen[0].steps
    figures = {
        "step_s": step_s,
        "own_s": statistics.mean(one.own_s for one in seen),
        "wait_share": sum(one.wait_s for one in seen) / sum(one.step_s for one in seen),
        "memory_gib": max(one.memory_gib for one in seen),
    }
    if tokens := sum(one.tokens for one in seen):
        figures["tokens_per_s"] = tokens / seconds
    peaks = [one.peak for one in seen if one.peak]
    if len(peaks) == len(seen) and (flops := sum(one.flops for one in seen)):
        figures["mfu"] = flops / seconds / sum(peaks)
    return figures


def means(seen: Sequence[Seen]) -> list[tuple[int, dict[str, float]]]:
    """Each step's figures, as means over the processes."""
    return [
        (step, {name: statistics.fmean(one.figures[place][1][name] for one in seen) for name in figures})
        for place, (step, figures) in enumerate(seen[0].figures)
    ]


def slow(seen: Sequence[Seen], cfg: Watching) -> dict[int, str]:
    """The stragglers, by rank, in words."""
    median = statistics.median_low(one.own_s for one in seen)
    return {
        one.rank: f"{one.name} is slow: {one.own_s:.3g} s a step for its own part, the median is {median:.3g} s"
        for one in seen
        if one.own_s > cfg.slow * median and one.own_s - median > FELT * one.step_s
    }


def starving(seen: Sequence[Seen], cfg: Watching) -> dict[int, str]:
    """The processes whose loader does not keep up, by rank, in words."""
    return {
        one.rank: f"{one.name} waits for data: {one.wait_s:.3g} s of a step's {one.step_s:.3g} s"
        for one in seen
        if one.wait_s > cfg.stalled_share * one.step_s
    }


def memory_gib(device: torch.device) -> float:
    """Most memory that this process has taken: of the device, or of the host where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts KiB


def peak(device: torch.device) -> float | None:
    """FLOP/s that the device can reach, where that is known."""
    return PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def moment(device: torch.device) -> Moment:
    """Now, as the device comes to it."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Moment, end: Moment) -> float | None:
    """Seconds between two moments; None where the device has not come to the later one: nobody waits for it."""
    if isinstance(start, float):
        assert isinstance(end, float)
        return end - start
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end) / 1000 if end.query() else None


def per_second(figures: Mapping[str, float]) -> str:
    """The throughput as a note beside the progress."""
    pieces = [f"{figures['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in figures else []
    return ", ".join(pieces + ([f"MFU {figures['mfu']:.0%}"] if "mfu" in figures else []))
