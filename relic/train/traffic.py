"""How many bytes a process sends in a training step, in closed form. No torch.

A ring of n sends, of B bytes that are reduced for all, 2 (n - 1) / n B; of B bytes in all that are gathered or reduced
and scattered, (n - 1) / n B; of B bytes that a process gives to an all-to-all, (n - 1) / n B. A few numbers, such as
norms and losses, are not counted.

Gradients go, in float32, once a step under ZeRO 0. DeepSpeed sends those of linear layers as autocast multiplies, and
gathers their weights so: under ZeRO 1 and 2 gradients are reduced for all, and only then cut, once a step or at every
backward; then whole weights are gathered in float32. Under ZeRO 3 gradients are reduced and scattered at every
backward, and weights gathered for every pass and every backward; the last block's are still there when a backward
begins.

Ulysses exchanges queries, keys, values and what attention gives, in every block and again backwards, and joins the
velocity of every pass.
"""

from collections.abc import Iterable

from relic.model.config import Transformer
from relic.train import footprint
from relic.train.config import Machine
from relic.train.footprint import FLOAT, Pass
from relic.train.passes import Passes

EXCHANGES = 4  # of a block: q, k, v and the output
KEPT = 1  # blocks whose weights are not gathered again when the backward begins


def step(cfg: Transformer, machine: Machine, made: Iterable[Passes], *, updates: int = 1) -> float:
    """Bytes that a process sends in a step of these passes, after which `updates` models are updated."""
    passes = list(made)
    backwards = sum(one.times for one in passes if one.graph)
    exchanged = sum(one.times * exchanges(cfg, machine, one.given, graph=one.graph) for one in passes)
    return exchanged + gradients(cfg, machine, backwards, updates) + gathers(cfg, machine, passes, updates)


def gradients(cfg: Transformer, machine: Machine, backwards: float, updates: int) -> float:
    ring = (machine.gpus - 1) / machine.gpus
    if not machine.cut:
        return updates * 2 * ring * FLOAT * footprint.parameters(cfg)
    each = ring * footprint.multiplied(cfg, machine.low)
    return {1: updates * 2 * each, 2: backwards * 2 * each, 3: backwards * each}[machine.cut]


def gathers(cfg: Transformer, machine: Machine, passes: Iterable[Passes], updates: int) -> float:
    """Of weights."""
    ring = (machine.gpus - 1) / machine.gpus
    if machine.cut < 3:
        return updates * ring * FLOAT * footprint.parameters(cfg) if machine.cut else 0
    whole = footprint.multiplied(cfg, machine.low)
    again = whole - KEPT * footprint.multiplied_block(cfg, machine.low)
    return ring * sum(one.times * (whole + (again if one.graph else 0)) for one in passes)


def exchanges(cfg: Transformer, machine: Machine, given: Pass, *, graph: bool) -> float:
    """Of tokens and heads, in one pass and its backward."""
    n = machine.sequence_parallel
    ring = (n - 1) / n
    own = given.batch * given.latents * -(-given.rows * given.columns // n)  # tokens
    times = 1 + graph * (1 + machine.checkpointing)
    patch = cfg.latent_channels * cfg.patch[1] * cfg.patch[2]
    joined = FLOAT * patch * own * n
    return ring * (times * EXCHANGES * cfg.layers * own * cfg.width * given.low + joined)
