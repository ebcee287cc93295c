"""What a chunk attends to, ready for attention: every block's remembered keys, rotated, and values, in the precision
that attention computes in, with room behind them for the chunk's own.

Allocated once; filled once a chunk, read by all its passes. Of the memory it is a second copy, so walks that take turns
share one (`Rollout`'s `context`): each fills it anew."""

import torch
from torch import Tensor

from relic.generate.config import Rollout as Config
from relic.memory.cache import Memory
from relic.model import rope
from relic.model.attention import Past


class Context:
    def __init__(self, memory: Memory, cfg: Config, dtype: torch.dtype):
        """For walks of memories like this one."""
        own = cfg.chunk * memory.whole
        room = own + cfg.memory.room(memory.rows, memory.columns, cfg.chunk)
        shape = (memory.layers, memory.batch, room, memory.heads, memory.head_width)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=memory.device) for _ in range(2))
        self.bias = torch.zeros(room, dtype=dtype, device=memory.device) if cfg.memory.weigh_pooled else None
        self.used = 0  # tokens

    def fill(self, memory: Memory, table: Tensor, poses: Tensor) -> None:
        """Reads all that a chunk is shown whose latents' cameras are at `poses` [B, F, 4, 4]; rotates keys by RoPE's
        `table`."""
        self.used = 0
        for part in memory.parts(poses):
            tokens = slice(self.used, self.used + part.positions.shape[-2])
            turns = rope.cos_sin(rope.angles(part.positions, table))
            for layers in memory.groups(part.positions.shape[-2]):
                keys, values = part.read(layers)
                self.keys[layers, :, tokens], self.values[layers, :, tokens] = rope.turn(keys, turns), values
            if self.bias is not None:
                self.bias[tokens] = part.log_cells
            self.used = tokens.stop
        if self.bias is not None:
            self.bias[self.used :] = 0

    def past(self, own: int) -> list[Past] | None:
        """What every block sees before `own` tokens; views."""
        end = self.used + own
        bias = self.bias[:end] if self.bias is not None else None
        if not self.used:
            return None
        return [Past(k[:, :end], v[:, :end], bias) for k, v in zip(self.keys, self.values, strict=True)]

    def digest(self) -> Tensor:
        """Checksums [2, layers] int64 of the keys and values that were filled in last: one changed bit changes them,
        and so, almost surely, does anything else, another order of tokens or channels included."""
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[self.keys.element_size()]
        return torch.stack([checksums(x[:, :, : self.used].view(bits)) for x in (self.keys, self.values)])


def checksums(x: Tensor) -> Tensor:
    """One int64 of each of the whole numbers x [layers, ...]."""
    by_token, by_channel = x.sum((1, 3, 4), dtype=torch.int64), x.sum(2, dtype=torch.int64).flatten(1)
    sums = torch.cat([by_token, by_channel], 1)
    return (sums * torch.arange(1, 2 * sums.shape[1], 2, device=x.device)).sum(1)
