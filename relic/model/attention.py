"""Attention holds no cache: it takes past keys and values and returns its own, before rotation.

Three ways of seeing: everything sees everything (the teacher); a chunk sees a past and itself (the student, serving);
chunks see pooled prefixes of one another (the student in training, `Segment`s). Keys are returned before RoPE, so that
memory can pool them and rotate them at the pooled cells' centres.
"""

import functools
import importlib.util
from collections.abc import Set
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.masks import Segment
from relic.memory.pooling import centres, log_cells, pool
from relic.model import flex, rope
from relic.parallel.sequence import ALONE, Sequence


class KeyValue(NamedTuple):
    """Keys and values [B, N, K, head_width]."""

    keys: Tensor
    values: Tensor


class Past(NamedTuple):
    """Earlier keys, rotated, and values [B, N + M, K, head_width] in front of M free places for a call's own; and what
    is added to the logits of each key [N + M], if anything."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    def joined(self, keys: Tensor, values: Tensor) -> "Past":
        """The same with a call's own keys and values [B, M, K, head_width] in the free places.

        Where a graph is made they are copies: it keeps what it read, and the next call would write there again."""
        num_past = self.keys.shape[1] - keys.shape[1]
        if torch.is_grad_enabled():
            all_keys, all_values = (
                torch.cat([past[:, :num_past], own], 1) for past, own in ((self.keys, keys), (self.values, values))
            )
            return Past(all_keys, all_values, self.bias.clone() if self.bias is not None else None)
        self.keys[:, num_past:], self.values[:, num_past:] = keys, values
        return self


class Rotary:
    """What a forward pass knows about positions: the latents' times [F], the token grid, the frequency table, and for
    each pooling stride that it needs how its tokens are turned, computed once for all blocks. `own` is the stride of
    the tokens that come in: latents may have been pooled."""

    def __init__(
        self, times: Tensor, rows: int, columns: int, table: Tensor, *, strides: Set[int] = frozenset(), own: int = 1
    ):
        self.times, self.rows, self.columns, self.table = times, rows, columns, table
        self.turns = {stride: rope.cos_sin(self.angles(stride)) for stride in {own, *strides}}
        self.own = self.turns[own]
        self.tokens = len(cells(rows, columns, own, times.device))  # of a latent

    def angles(self, stride: int) -> Tensor:
        """Angles [tokens of all latents, head_width / 2], pooled by `stride`."""
        yx = cells(self.rows, self.columns, stride, self.times.device)
        t = self.times.double()[:, None, None].expand(-1, len(yx), 1)
        positions = torch.cat([t, yx.expand(len(self.times), -1, -1)], -1)
        return rope.angles(positions.flatten(0, 1), self.table)


@functools.lru_cache(maxsize=64)
def cells(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """Rows and columns [n, 2] of the cells' centres; kept on the device, so that a pass copies nothing there."""
    return centres(rows, columns, stride).flatten(0, 1).to(device)


def dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(head_width) + bias) v over [B, N, K, head_width]; bias [N] of the keys.

    `backend` is `config.Transformer.attention`; what it names is taken, or a ValueError says what is missing."""
    if backend == "flash":
        return flash(q, k, v, bias)
    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[None, None, None]
    return rearrange(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b k n d -> b n k d")


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`dot_product` by flash-attn, which takes no bias."""
    if importlib.util.find_spec("flash_attn") is None:
        raise ValueError("attention is 'flash', but flash-attn is not installed; install it or choose 'sdpa'")
    if q.dtype not in (torch.float16, torch.bfloat16) or not q.is_cuda:
        raise ValueError(f"attention is 'flash' on {q.device} in {q.dtype}; it needs a GPU and float16 or bfloat16")
    if bias is not None:
        raise ValueError("attention is 'flash', which cannot weigh pooled tokens; choose 'sdpa' for weigh_pooled")
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def segmented(
    q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, segments: tuple[Segment, ...], *, backend: str = "sdpa"
) -> Tensor:
    """Every segment's queries over the pooled prefix it sees; q, k, v [B, N, K, head_width] before rotation.

    One kernel with a mask by blocks on CUDA; elsewhere, where FlexAttention has no backward, segment by segment."""
    strides = sorted({stride for segment in segments for _, stride in segment.seen})
    queries = rope.turn(q, rotary.own)
    keys = [rope.turn(pooled(k, rotary, stride), rotary.turns[stride]) for stride in strides]
    values = [pooled(v, rotary, stride) for stride in strides]
    if q.is_cuda and backend == "sdpa":
        plan = flex.plan(segments, rotary.rows, rotary.columns, q.device)
        return flex.attend(queries, torch.cat(keys, 1), torch.cat(values, 1), plan)
    whole, weights, parts = rotary.rows * rotary.columns, {}, {}
    for stride, key, value in zip(strides, keys, values, strict=True):
        weights[stride] = log_cells(rotary.rows, rotary.columns, stride).flatten().to(q.device)
        parts[stride] = [x.split(len(weights[stride]), 1) for x in (key, value)]
    out = []
    for segment in segments:
        own = queries[:, segment.start * whole : segment.stop * whole]
        seen_keys = torch.cat([parts[stride][0][latent] for latent, stride in segment.seen], 1)
        seen_values = torch.cat([parts[stride][1][latent] for latent, stride in segment.seen], 1)
        bias = torch.cat([weights[stride] for _, stride in segment.seen]) if segment.weigh_pooled else None
        out.append(dot_product(own, seen_keys, seen_values, bias, backend=backend))
    return torch.cat(out, 1)


def pooled(x: Tensor, rotary: Rotary, stride: int) -> Tensor:
    """The tokens [B, N', K, head_width] of latents whose tokens are x [B, N, K, head_width]."""
    if stride == 1:
        return x
    cells = pool(rearrange(x, "b (f h w) k d -> b f h w (k d)", h=rotary.rows, w=rotary.columns), stride)
    return rearrange(cells, "b f h w (k d) -> b (f h w) k d", k=x.shape[2])


def normed(x: Tensor, weight: Tensor, pose: Tensor | None = None) -> Tensor:
    """RMS norm in float32 of x [B, ..., D], to which a pose [B, F, D] is added first, in place: x [B, F, S, D] is a
    linear layer's own result then."""
    if pose is not None:
        added = pose[:, :, None].to(x.dtype)
        x = x + added if torch.compiler.is_compiling() else x.add_(added)
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps=1e-6).to(x.dtype)


class Norm(nn.RMSNorm):
    """`normed` by this module's weight."""

    def forward(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        return normed(x, self.weight, pose)


class SelfAttention(nn.Module):
    sequence: Sequence = ALONE

    def __init__(self, width: int, heads: int, backend: str):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (Norm(width) for _ in range(2))

    def forward(
        self,
        x: Tensor,
        pose: Tensor,
        rotary: Rotary,
        past: Past | None,
        segments: tuple[Segment, ...] | None,
        remember: bool,
    ) -> tuple[Tensor, KeyValue | None]:
        """x [B, F, S, D]; pose [B, F, D] is added to queries and keys, never to values, before their norm (figure 4).

        Returns the output [B, F, S, D] and, to `remember`, this call's keys (not rotated)
        and values [B, F S, K, head_width]; of a shared sequence, of this process's heads of all tokens."""
        v = self.to_v(x)
        q, k = self.norm_q(self.to_q(x), pose), self.norm_k(self.to_k(x), pose)
        q, k, v = (rearrange(y, "b f s (k d) -> b f s k d", k=self.heads) for y in (q, k, v))
        q, k, v = (self.sequence.by_heads(y, rotary.tokens).flatten(1, 2) for y in (q, k, v))
        own = KeyValue(k, v) if remember else None
        if segments is not None:
            out = segmented(q, k, v, rotary, segments, backend=self.backend)
        else:
            q, k, bias = rope.turn(q, rotary.own), rope.turn(k, rotary.own), None
            if past is not None:
                k, v, bias = past.joined(k, v)
            out = dot_product(q, k, v, bias, backend=self.backend)
        out = self.sequence.by_tokens(rearrange(out, "b (f s) k d -> b f s k d", f=x.shape[1]), rotary.tokens)
        return self.to_out(out.flatten(3)), own


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, backend: str):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (Norm(width) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, F, S, D] reads text [B, L, D]."""
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(text)), self.to_v(text)
        q = rearrange(q, "b f s (k d) -> b (f s) k d", k=self.heads)
        k, v = (rearrange(y, "b n (k d) -> b n k d", k=self.heads) for y in (k, v))
        out = dot_product(q, k, v, backend=self.backend)
        return self.to_out(rearrange(out, "b (f s) k d -> b f s (k d)", f=x.shape[1]))
