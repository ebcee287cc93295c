"""Segments' attention on a GPU in one kernel, FlexAttention: all queries at once over all latents at all strides.

Which blocks of BLOCK x BLOCK tokens are seen, and which are seen whole, is counted from small tables, so that no matrix
of tokens x tokens exists: pairs seen in a block = queries of each segment in its rows [blocks, segments] x who sees
whom [segments, parts] x keys of each part in its columns [parts, blocks]. A part is a latent at a stride.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from relic.memory.masks import Segment
from relic.memory.pooling import log_cells

BLOCK = 128  # FlexAttention's own
VARIANTS = 128  # of the compiled kernel: twice the lengths of a training in chunks


class Plan(NamedTuple):
    """Who sees whom; the logarithm of the cells that each key stands for [M]; which queries weigh by it [N], if any."""

    mask: BlockMask
    log_cells: Tensor
    weighs: Tensor | None


@functools.cache
def kernel() -> Callable[..., Tensor]:
    """FlexAttention, compiled: else it would hold tokens x tokens. Loading the compiler takes seconds, so late.

    A training has a variant of it for every length, with and without a graph; past its limit torch would go on without
    compiling, so the limit is above that, and hitting it stops the run."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=False)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
    """Attention [B, N, K, head_width] of queries to the keys [B, M, K, head_width] that `plan` lets them see."""

    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (q, k, v))
    out = kernel()(q, k, v, score_mod=weighing(plan), block_mask=plan.mask)
    return rearrange(out, "b k n d -> b n k d")


def weighing(plan: Plan) -> Callable[..., Tensor] | None:
    """What adds to a score the logarithm of the cells that its key stands for."""
    _, log_cells, weighs = plan
    if weighs is None:
        return None

    def weighed(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + torch.where(weighs[query], log_cells[key], 0.0)

    return weighed


@functools.lru_cache(maxsize=VARIANTS)
def plan(segments: tuple[Segment, ...], rows: int, columns: int, device: torch.device) -> Plan:
    """Queries are the segments' tokens in order; keys all latents' at the smallest stride, then at the next ..."""
    whole, num_latents = rows * columns, max(segment.stop for segment in segments)
    strides = sorted({stride for segment in segments for _, stride in segment.seen})
    cells = [log_cells(rows, columns, stride).flatten() for stride in strides]
    visible = torch.zeros(len(segments), len(strides) * num_latents, dtype=torch.bool)
    for number, segment in enumerate(segments):
        for latent, stride in segment.seen:
            visible[number, strides.index(stride) * num_latents + latent] = True
    sizes = torch.tensor([(segment.stop - segment.start) * whole for segment in segments])
    tokens = torch.tensor([len(c) for c in cells]).repeat_interleave(num_latents)
    segment_of = torch.arange(len(segments)).repeat_interleave(sizes)
    part_of = torch.arange(len(tokens)).repeat_interleave(tokens)
    weighs = torch.tensor([segment.weigh_pooled for segment in segments])[segment_of]
    return Plan(
        block_mask(segment_of, part_of, visible, device),
        torch.cat([c.repeat(num_latents) for c in cells]).to(device),
        weighs.to(device) if weighs.any() else None,
    )


def block_mask(segment_of: Tensor, part_of: Tensor, visible: Tensor, device: torch.device) -> BlockMask:
    """segment_of [N] of the queries and part_of [M] of the keys say where to look in visible [segments, parts]; all
    three are on the CPU, where whole numbers are multiplied whatever autocast is on."""
    there = visible.to(device), segment_of.to(device), part_of.to(device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        whether, segment, part = there
        return whether[segment[query], part[key]]

    def counts(of: Tensor, kinds: int) -> Tensor:
        """How many tokens of each kind a block has [blocks, kinds]."""
        block = torch.arange(len(of)) // BLOCK
        blocks = -(-len(of) // BLOCK)
        return torch.bincount(block * kinds + of, minlength=blocks * kinds).view(blocks, kinds)

    pairs = counts(segment_of, len(visible)) @ visible.long() @ counts(part_of, visible.shape[1]).mT
    whole = pairs == BLOCK**2
    some_counts, some = (x.to(device) for x in listed((pairs > 0) & ~whole))
    whole_counts, whole_blocks = (x.to(device) for x in listed(whole))
    return BlockMask.from_kv_blocks(
        some_counts, some, whole_counts, whole_blocks, BLOCK_SIZE=BLOCK, mask_mod=seen,
        seq_lengths=(len(segment_of), len(part_of)),
    )  # fmt: skip


def listed(some: Tensor) -> tuple[Tensor, Tensor]:
    """How many of a row's blocks are in `some` [rows, blocks], and which: those first, then the others."""
    order = some.int().argsort(dim=-1, descending=True, stable=True)
    return some.sum(-1).int()[None, None], order.int()[None, None].contiguous()
