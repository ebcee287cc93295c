"""RELIC's compressed attention memory (section 4.3): keys and values of every block, in storage allocated once.

Two parts lie one behind the other in the same buffer: first the old latents, each pooled in space once, by the
schedule, when it leaves the window; then the window, whole. `view` is therefore one slice, oldest first:

    | latent 0 (sink) | 1 pooled | 2 pooled | ... | w latents whole | free ...

Appending a chunk of f latents rewrites the window only, so it costs the same at latent 20 and at latent 2000. `reserve`
keeps what is remembered and what comes within the capacity: the oldest pooled latents leave; latent 0, the clean image,
stays, because attention leans on its first tokens; and the times of all others move down, so that positions never pass
the capacity, however long the walk.

Keys are stored before RoPE. Rotated keys of neighbouring cells point in different directions, so that their mean nearly
cancels in the fast frequencies; pooled first and rotated at the pooled cell's centre, they keep their length.

E4M3 has 3 bits of mantissa and ends at 448: each token and head has a scale that brings its largest entry there, which
bounds the relative error of that entry by 2^-4 and costs one float for `head_width` bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from relic.memory import config
from relic.memory.pooling import centres, log_cells, pool

DTYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp32": torch.float32}
FP8_LARGEST = 448.0


def fp8_scale(x: Tensor) -> Tensor:
    """Scale [..., 1] of each row of x [..., N]: x over it has its largest entry at the end of E4M3."""
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_LARGEST


@dataclass(frozen=True)
class Slot:
    """One remembered latent: its absolute index, pooling stride and number of tokens."""

    latent: int
    stride: int
    tokens: int


class Memory:
    """Remembered keys and values [layers, B, N, K, head_width] of latents of rows x columns tokens."""

    def __init__(
        self,
        cfg: config.Memory,
        *,
        layers: int,
        batch: int,
        rows: int,
        columns: int,
        heads: int,
        head_width: int,
        device: torch.device | str = "cpu",
    ):
        self.cfg, self.rows, self.columns = cfg, rows, columns
        self.slots: list[Slot] = []
        self.room = cfg.room(rows, columns)
        shape = (2, layers, batch, self.room, heads, head_width)  # keys, values
        self.storage = torch.zeros(shape, dtype=DTYPES[cfg.dtype], device=device)
        self.scales = torch.ones(*shape[:-1], 1, device=device) if cfg.dtype == "fp8" else None

    @property
    def used(self) -> int:
        """Tokens remembered."""
        return sum(slot.tokens for slot in self.slots)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage, scales included; constant."""
        return sum(t.numel() * t.element_size() for t in (self.storage, self.scales) if t is not None)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Remembers the next latents: keys (before RoPE) and values [layers, B, F * rows * columns, K, head_width]."""
        whole = self.rows * self.columns
        count = keys.shape[2] // whole
        following = self.slots[-1].latent + 1 if self.slots else 0
        old = [s for s in self.slots if s.latent < following - self.cfg.window]
        window = self.slots[len(old) :]
        start = sum(s.tokens for s in old)
        recent = torch.cat([self._read(start, self.used), torch.stack([keys, values]).float()], 3)
        window = window + [Slot(following + i, 1, whole) for i in range(count)]
        # 1. what falls out of the window is pooled and joins the old
        num_leaving = max(0, len(window) - self.cfg.window)
        for i, slot in enumerate(window[:num_leaving]):
            stride = self.cfg.stride(slot.latent)
            latent = recent[:, :, :, i * whole : (i + 1) * whole].unflatten(3, (self.rows, self.columns))
            pooled = pool(latent.flatten(-2), stride).flatten(3, 4).unflatten(-1, latent.shape[-2:])
            self._write(start, pooled)
            old.append(Slot(slot.latent, stride, pooled.shape[3]))
            start += pooled.shape[3]
        # 2. the window lies behind the old
        self._write(start, recent[:, :, :, num_leaving * whole :])
        self.slots = old + window[num_leaving:]

    def reserve(self, count: int) -> None:
        """Forgets the oldest pooled latents but the sink, so that `count` more stay within the capacity."""
        excess = len(self.slots) + count - self.cfg.capacity
        if excess <= 0:
            return
        kept, dropped, end = self.slots[0].tokens, sum(s.tokens for s in self.slots[1 : 1 + excess]), self.used
        for store in (self.storage, self.scales):
            if store is not None:
                store[:, :, :, kept : end - dropped] = store[:, :, :, kept + dropped : end].clone()
        del self.slots[1 : 1 + excess]

    def _write(self, start: int, x: Tensor) -> None:
        part = slice(start, start + x.shape[3])
        if self.scales is not None:
            scale = fp8_scale(x)
            self.scales[:, :, :, part] = scale
            x = x / scale
        self.storage[:, :, :, part] = x.to(self.storage.dtype)

    def _read(self, start: int, stop: int) -> Tensor:
        x = self.storage[:, :, :, start:stop].float()
        return x * self.scales[:, :, :, start:stop] if self.scales is not None else x

    def view(self) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values of all that is remembered, oldest first.

        Both are float32 [layers, B, N, K, head_width].
        """
        keys, values = self._read(0, self.used)
        return keys, values

    def log_cells(self) -> Tensor:
        """Logarithm [N] of how many cells each remembered token stands for."""
        parts = [log_cells(self.rows, self.columns, slot.stride).flatten() for slot in self.slots]
        return torch.cat(parts).to(self.storage.device)

    def time(self, latent: int) -> int:
        """Temporal position of a latent, remembered or to come.

        Its index less the number forgotten; the sink's is 0.
        """
        forgotten = self.slots[-1].latent + 1 - len(self.slots) if self.slots else 0
        return latent - forgotten if latent else 0

    def positions(self) -> Tensor:
        """Positions [N, 3] (time, row, column) of the remembered tokens; pooled cells are at their centres."""
        parts = []
        for slot in self.slots:
            yx = centres(self.rows, self.columns, slot.stride).flatten(0, 1)
            parts.append(torch.cat([torch.full((len(yx), 1), float(self.time(slot.latent)), dtype=yx.dtype), yx], -1))
        return torch.cat(parts).to(self.storage.device)
