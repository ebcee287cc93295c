"""Attention holds no cache: it takes past keys and values and returns its own, before rotation.

Three ways of seeing: everything sees everything (the teacher); a chunk sees a past and itself (the student, serving);
chunks see pooled prefixes of one another (the student in training, `Segment`s). Keys are returned before RoPE, so that
memory can pool them and rotate them at the pooled cells' centres.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.memory.masks import Segment
from relic.memory.pooling import centres, log_cells, pool
from relic.model import rope


class KeyValue(NamedTuple):
    """Keys and values [B, N, K, head_width], and what is added to the logits of each key [N], if anything."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class Rotary(NamedTuple):
    """What a forward pass knows about positions: the latents' times [F], the token grid and the frequency table."""

    times: Tensor
    rows: int
    columns: int
    table: Tensor

    def angles(self, stride: int = 1) -> Tensor:
        """Angles [F, tokens a latent, head_width / 2] of all latents, pooled by `stride`."""
        yx = centres(self.rows, self.columns, stride).flatten(0, 1).to(self.times.device)
        t = self.times.double()[:, None, None].expand(-1, len(yx), 1)
        return rope.angles(torch.cat([t, yx.expand(len(self.times), -1, -1)], -1), self.table)


def dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_width) + bias) v over [B, N, K, head_width]; bias [N] of the keys."""
    q, k, v = (rearrange(x, "b n k d -> b k n d") for x in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[None, None, None]
    return rearrange(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b k n d -> b n k d")


def segmented(q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, segments: tuple[Segment, ...]) -> Tensor:
    """Every segment's queries over the pooled prefix it sees; q, k, v [B, N, K, head_width] before rotation."""
    grid = {"h": rotary.rows, "w": rotary.columns}
    strides = sorted({stride for segment in segments for _, stride in segment.seen})
    keys, values, weights = {}, {}, {}
    k_grid, v_grid = (rearrange(x, "b (f h w) k d -> b f h w (k d)", **grid) for x in (k, v))
    for stride in strides:
        angle = rotary.angles(stride)
        pooled = rearrange(pool(k_grid, stride), "b f h w (k d) -> b (f h w) k d", k=k.shape[2])
        rotated = rope.rotate(pooled, angle.flatten(0, 1))
        keys[stride] = rearrange(rotated, "b (f n) k d -> f b n k d", f=len(angle))
        weights[stride] = log_cells(rotary.rows, rotary.columns, stride).flatten().to(q.device)
        values[stride] = rearrange(pool(v_grid, stride), "b f h w (k d) -> f b (h w) k d", k=k.shape[2])
    queries = rearrange(rope.rotate(q, rotary.angles().flatten(0, 1)), "b (f n) k d -> f b n k d", f=len(rotary.times))
    out = []
    for segment in segments:
        own = rearrange(queries[segment.start : segment.stop], "f b n k d -> b (f n) k d")
        seen_keys = torch.cat([keys[stride][i] for i, stride in segment.seen], 1)
        seen_values = torch.cat([values[stride][i] for i, stride in segment.seen], 1)
        bias = torch.cat([weights[stride] for _, stride in segment.seen]) if segment.weigh_pooled else None
        out.append(dot_product(own, seen_keys, seen_values, bias))
    return torch.cat(out, 1)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(
        self, x: Tensor, pose: Tensor, rotary: Rotary, past: KeyValue | None, segments: tuple[Segment, ...] | None
    ) -> tuple[Tensor, KeyValue]:
        """x, pose [B, N, D]; the pose is added to queries and keys, never to values, before their norm (figure 4).

        `past` holds rotated keys. Returns the output [B, N, D] and this call's keys (not rotated) and values."""
        q, k = self.norm_q((self.to_q(x) + pose).float()), self.norm_k((self.to_k(x) + pose).float())
        v = self.to_v(x)
        q, k, v = (rearrange(y, "b n (k d) -> b n k d", k=self.heads).to(v.dtype) for y in (q, k, v))
        if segments is not None:
            out = segmented(q, k, v, rotary, segments)
        else:
            angle = rotary.angles().flatten(0, 1)
            keys, values, bias = rope.rotate(k, angle), v, None
            if past is not None:
                bias = None if past.bias is None else functional.pad(past.bias, (0, keys.shape[1]))
                keys, values = torch.cat([past.keys, keys], 1), torch.cat([past.values, values], 1)
            out = dot_product(rope.rotate(q, angle), keys, values, bias)
        return self.to_out(rearrange(out, "b n k d -> b n (k d)")), KeyValue(k, v)


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, N, D] reads text [B, L, D]."""
        q, k, v = self.norm_q(self.to_q(x).float()), self.norm_k(self.to_k(text).float()), self.to_v(text)
        q, k, v = (rearrange(y, "b n (k d) -> b n k d", k=self.heads).to(v.dtype) for y in (q, k, v))
        return self.to_out(rearrange(dot_product(q, k, v), "b n k d -> b n (k d)"))
