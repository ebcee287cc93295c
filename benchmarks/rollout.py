"""What a chunk costs as a walk gets longer, by the memory's policy, and the FLOPs of a pass beside the formula.

    python benchmarks/rollout.py --json
    python benchmarks/rollout.py --device cuda --json figures.json

A row is the chunk that ends at a horizon, made again and again from a copy of the walk before it, all walks in a random
order each time; `chunk_ms` is the median. `tokens` are those of the past that it sees, `memory_bytes` what the memory
allocates and `context_bytes` what a chunk's passes read, a copy that walks may share. The full cache's capacity is the
horizon, the others' always 80 latents. Up to there a walk remembers random latents, which takes one pass a chunk
instead of five.

FLOPs are of one pass over a chunk, as torch's FlopCounterMode counts them on tensors without storage, attention as
matrix products: of small models and of both of Wan's sizes. Beside them the closed form, relic/train/flops.py.

Random weights; float32 or bfloat16 autocast, as relic/model/precision.py has it for the device.
"""

import argparse
import copy
import functools
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from measure import facts, random_text, random_transformer, seconds, write
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from relic import recipes
from relic.generate.config import Rollout as Walking
from relic.generate.rollout import Rollout
from relic.memory.config import POLICIES, Memory
from relic.model import config
from relic.model.attention import Past
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.train import flops, footprint

HORIZONS = (20, 40, 80, 160, 320)  # latents
CHUNK = 4
CAPACITY = 80  # latents, of all policies but full
LEAST = Memory().window + 2 * CHUNK  # latents that a full cache needs room for


@dataclass(frozen=True, kw_only=True)
class Size:
    model: config.Transformer
    rows: int  # tokens of a latent
    columns: int


SIZES = {
    "cpu": Size(
        model=config.Transformer(
            width=128, ffn=512, layers=4, heads=2, latent_channels=4, text_width=8, text_tokens=4, control_width=16,
            frames=CAPACITY,
        ),
        rows=6,
        columns=10,
    ),
    "cuda": Size(  # three layers of 1.3B at 480x832, so that full caches of all horizons fit a GPU
        model=config.Transformer(
            width=1536, ffn=8960, layers=3, heads=12, control_width=256, text_width=4096, text_tokens=512,
            text_vocabulary=0, trained_frames=21, frames=CAPACITY,
        ),
        rows=30,
        columns=52,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    policy: str
    latents: int
    tokens: int
    chunk_ms: float
    memory_bytes: int
    context_bytes: int


@dataclass(frozen=True, kw_only=True)
class Count:
    """FLOPs of one pass over a chunk."""

    model: str
    tokens: int  # of the chunk
    seen: int  # tokens that it sees, its own among them
    counted: int  # by torch
    formula: int
    ratio: float  # formula / counted
    linear: int  # the formula's parts
    attention: int
    cross_attention: int


def memory_of(policy: str, horizon: int) -> Memory:
    return Memory(policy=policy, capacity=horizon if policy == "full" else CAPACITY)


def walk_of(model: Transformer, size: Size, memory: Memory, device: torch.device) -> Rollout:
    cfg = size.model
    torch.manual_seed(0)
    rows, columns = size.rows * cfg.patch[1], size.columns * cfg.patch[2]
    image = torch.randn(1, cfg.latent_channels, rows, columns, device=device)
    walking = Walking(chunk=CHUNK, memory=memory)
    return Rollout(model, walking, image_latent=image, text=random_text(cfg, device), seed=1)


def actions_for(walk: Rollout) -> Tensor:
    return 0.1 * torch.rand(1, walk.num_actions, 13, device=walk.image.device)


def measure(
    size: Size, device: torch.device, *, horizons: tuple[int, ...], policies: tuple[str, ...], rounds: int
) -> Iterator[Row]:
    """A row for every policy and horizon."""
    model, walks = random_transformer(size.model, device), {}
    for policy in policies:
        for horizon in horizons:
            walk = walk_of(model, size, memory_of(policy, horizon), device)
            while walk.num_latents < horizon - CHUNK:
                walk.see(actions_for(walk), torch.randn(1, CHUNK, *walk.image.shape[1:], device=device))
            walks[policy, horizon] = walk
    taken: dict[tuple[str, int], list[float]] = {name: [] for name in walks}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(walks), len(walks)):
            walk = walks[name]
            again = copy.deepcopy(walk, {id(kept): kept for kept in (model, walk.context)})
            taken[name].append(seconds(functools.partial(again.step, actions_for(again)), device))
    for (policy, horizon), walk in walks.items():
        yield Row(
            policy=policy,
            latents=horizon,
            tokens=walk.context.used,
            chunk_ms=1000 * statistics.median(taken[policy, horizon]),
            memory_bytes=walk.memory.num_bytes,
            context_bytes=sum(x.nbytes for x in (walk.context.keys, walk.context.values)),
        )


def counts() -> Iterator[Count]:
    """Small models, a layer of Wan's 1.3B, and both of Wan's sizes at 480x832, where a chunk sees 80 latents: 31,200
    tokens of them when compressed."""
    small = SIZES["cpu"].model
    yield count("width 128, 4 layers", small, 6, 10, seen=2000)
    yield count("width 64, 2 layers", replace(small, width=64, ffn=160, layers=2), 4, 6, seen=500)
    large = recipes.named("wan_1b").teacher.model
    yield count("one layer of 1.3B", replace(large, layers=1), 30, 52, seen=31_200)
    yield count("1.3B", large, 30, 52, seen=31_200)
    yield count("1.3B, full cache", large, 30, 52, seen=80 * 1560)
    yield count("14B", recipes.named("relic_14b").teacher.model, 30, 52, seen=31_200)
    yield count("14B, full cache", recipes.named("relic_14b").teacher.model, 30, 52, seen=80 * 1560)


def count(name: str, cfg: config.Transformer, rows: int, columns: int, *, seen: int) -> Count:
    given = footprint.Pass(latents=CHUNK, rows=rows, columns=columns, past=seen - CHUNK * rows * columns)
    counted, formula = counted_by_torch(cfg, given), flops.forward(cfg, given)
    return Count(
        model=name,
        tokens=given.tokens,
        seen=seen,
        counted=counted,
        formula=formula.total,
        ratio=formula.total / counted,
        **formula._asdict(),
    )


def counted_by_torch(cfg: config.Transformer, given: footprint.Pass) -> int:
    """FLOPs of the matrix products of a pass without a graph, which is not computed: its tensors have no storage."""
    frames = 4 * given.latents
    with torch.device("meta"):
        model = Transformer(cfg)
        shape = (1, given.past + given.tokens, cfg.heads, cfg.head_width)
        past = [Past(torch.empty(shape), torch.empty(shape)) for _ in model.blocks]
        latents = torch.empty(
            1, given.latents, cfg.latent_channels, given.rows * cfg.patch[1], given.columns * cfg.patch[2]
        )
        conditions = Conditions(
            torch.empty(1, frames, 13), torch.empty(1, frames, 4, 4), random_text(cfg, latents.device)
        )
        timesteps = torch.empty(latents.shape[:2])
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(latents, timesteps, conditions, past=past if given.past else None, segments=given.segments or None)
    return counter.get_total_flops()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(SIZES))
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--horizons", type=int, nargs="+", default=HORIZONS, help=f"latents, multiples of {CHUNK}")
    parser.add_argument("--rounds", type=int, default=9, help="how often a chunk is made, at least 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    wrong = [horizon for horizon in given.horizons if horizon % CHUNK or horizon < LEAST]
    if given.rounds < 3 or wrong:
        parser.error(
            f"--rounds is {given.rounds} and --horizons are {given.horizons}; allowed are at least 3 rounds and "
            f"multiples of {CHUNK} latents from {LEAST} on"
        )
    torch.set_num_threads(given.threads)
    device, size = torch.device(given.device), SIZES[given.device]
    print("| policy | latents | tokens seen | chunk, ms | memory, MiB |\n|---|---|---|---|---|")
    rows = []
    for row in measure(
        size, device, horizons=tuple(given.horizons), policies=tuple(given.policies), rounds=given.rounds
    ):
        rows.append(row)
        print(f"| {row.policy} | {row.latents} | {row.tokens} | {row.chunk_ms:.1f} | {row.memory_bytes / 2**20:.2f} |")
    print("\n| model | tokens | seen | TFLOP, counted | formula | ratio |\n|---|---|---|---|---|---|")
    found = list(counts())
    for one in found:
        print(
            f"| {one.model} | {one.tokens} | {one.seen} | {one.counted / 1e12:.4g} | {one.formula / 1e12:.4g} "
            f"| {one.ratio:.4f} |"
        )
    if given.json:
        write(
            given.json,
            {**facts(device), "size": asdict(size), "rounds": given.rounds, "flops": list(map(asdict, found))},
            rows,
        )


if __name__ == "__main__":
    main()
