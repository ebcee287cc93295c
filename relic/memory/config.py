"""Dials of the attention memory."""

from dataclasses import dataclass

SCHEDULE = (1, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4)  # section 5.1 of RELIC: pooling factor a side


def pooled_tokens(rows: int, columns: int, stride: int) -> int:
    """Tokens of one latent of rows x columns after pooling; the edges are rounded up."""
    return -(-rows // stride) * -(-columns // stride)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """RELIC's memory: the last `window` latents whole, older ones pooled by `schedule`, at most `capacity` latents."""

    window: int = 8  # latents kept whole
    schedule: tuple[int, ...] = SCHEDULE  # pooling factor a side of latent i: schedule[i % len]
    capacity: int = 80  # latents; the oldest but the first (the sink) leave beyond it
    weigh_pooled: bool = False  # a pooled token weighs as much as the cells it stands for: log s^2 on its logits
    dtype: str = "fp8"  # "fp8" (E4M3 with scales) | "bf16" | "fp32"

    def __post_init__(self) -> None:
        if self.dtype not in ("fp8", "bf16", "fp32"):
            raise ValueError(f"memory dtype is {self.dtype!r}; allowed are 'fp8', 'bf16' and 'fp32'")
        if not self.schedule or min(self.schedule) < 1:
            raise ValueError(f"schedule is {self.schedule}; it needs pooling factors of at least 1")
        if not 0 < self.window < self.capacity:
            raise ValueError(f"window {self.window} must be above 0 and below the capacity {self.capacity}")

    def stride(self, latent: int) -> int:
        """Pooling factor a side of the latent with this absolute index, once it has left the window."""
        return self.schedule[latent % len(self.schedule)]

    def room(self, rows: int, columns: int) -> int:
        """Tokens that storage is allocated for, of latents of rows x columns: the sink, the old, the window."""
        whole = rows * columns
        schedule = [pooled_tokens(rows, columns, s) for s in self.schedule]
        old = sum(sorted(schedule, reverse=True)[: self.capacity % len(schedule)])
        old += self.capacity // len(schedule) * sum(schedule)
        return whole + old + self.window * whole

    def tokens(self, rows: int, columns: int, latents: int) -> int:
        """Tokens remembered of the first `latents` latents, of rows x columns, within the capacity."""
        old = [pooled_tokens(rows, columns, self.stride(i)) for i in range(latents - self.window)]
        return sum(old) + min(latents, self.window) * rows * columns
