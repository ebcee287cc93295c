"""Dials of the attention memory, and its policies: which latents a chunk is shown, at which pooling."""

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

SCHEDULE = (1, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4)  # section 5.1 of RELIC: pooling factor a side
POLICIES = ("full", "window", "relic", "relic_landmarks")
AT_ONCE = 2**28  # bytes of float32 that reading and appending work on: at 14B one block, of small models all


class Slot(NamedTuple):
    """A latent that is shown: its absolute index and its pooling factor a side (1: whole)."""

    latent: int
    stride: int


def pooled_tokens(rows: int, columns: int, stride: int) -> int:
    """Tokens of one latent of rows x columns after pooling; the edges are rounded up."""
    return -(-rows // stride) * -(-columns // stride)


def layers_at_once(width: int, tokens: int) -> int:
    """Blocks whose keys and values, `width` numbers a token (all samples'), are read or appended together."""
    return max(1, AT_ONCE // (2 * 4 * width * max(1, tokens)))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered of the latents, of which the last `window` are whole and the first, the image, always stays.

    "relic": older ones pooled by `schedule`. "full": older ones whole too. "window": older ones forgotten.
    "relic_landmarks": as "relic", and of `landmarks` older ones that are kept whole, chosen for showing different
    views, the `retrieved` that lie nearest to where the camera will be."""

    policy: str = "relic"
    window: int = 8  # latents kept whole
    schedule: tuple[int, ...] = SCHEDULE  # pooling factor a side of latent i: schedule[i % len]
    capacity: int = 80  # latents, the chunk to come included; the oldest but the first (the sink) leave beyond it
    landmarks: int = 16  # latents kept whole beside the window
    retrieved: int = 4  # of them, shown to a chunk
    degrees_per_step: float = 5.0  # a turn that takes a view as far away as one mean step does
    pooled: str = "keys"  # what is pooled: "keys" and values, before RoPE | "latents", which are then encoded again
    weigh_pooled: bool = False  # a pooled token weighs as much as the cells it stands for: log s^2 on its logits
    dtype: str = "fp8"  # "fp8" (E4M3 with scales) | "bf16" | "fp32"

    def __post_init__(self) -> None:
        choices = {"policy": POLICIES, "pooled": ("keys", "latents"), "dtype": ("fp8", "bf16", "fp32")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"memory {name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if not self.schedule or min(self.schedule) < 1:
            raise ValueError(f"schedule is {self.schedule}; it needs pooling factors of at least 1")
        if not 0 < self.window < self.capacity - 1:
            raise ValueError(
                f"window {self.window} must be above 0 and two below the capacity {self.capacity}, or less"
            )
        if not 0 < self.retrieved <= self.landmarks or self.degrees_per_step <= 0:
            raise ValueError(
                f"retrieved is {self.retrieved} of {self.landmarks} landmarks and degrees_per_step "
                f"{self.degrees_per_step}; allowed are 0 < retrieved <= landmarks and a positive number of degrees"
            )

    def stride(self, latent: int) -> int:
        """Pooling factor a side of the latent with this absolute index once it has left the window; 0: forgotten."""
        if self.policy == "full":
            return 1
        if self.policy == "window" and latent:
            return 0
        return self.schedule[latent % len(self.schedule)]

    def forgotten(self, latents: int, coming: int = 0) -> int:
        """How many latents have left beyond the capacity when `latents` were remembered and `coming` more come."""
        return max(0, latents + coming - self.capacity)

    def slots(self, latents: int, forgotten: int = 0) -> list[Slot]:
        """What is shown of `latents` latents, landmarks aside, oldest first: the image, then those that are left."""
        if not latents:
            return []
        shown = (Slot(i, self.stride(i) if i < latents - self.window else 1) for i in range(1 + forgotten, latents))
        image = Slot(0, self.stride(0) if latents > self.window else 1)
        return [image, *(slot for slot in shown if slot.stride)]

    def num_retrieved(self, latents: int) -> int:
        """How many landmarks are shown beside the slots, where they would not be whole anyway."""
        if self.policy != "relic_landmarks":
            return 0
        offered = (i for i in range(1, latents - self.window) if self.stride(i) > 1)
        return len(list(itertools.islice(offered, self.retrieved)))

    def tokens(self, rows: int, columns: int, latents: int, coming: int = 0) -> int:
        """Tokens shown of `latents` latents of rows x columns to the chunk of the next `coming`."""
        slots = self.slots(latents, self.forgotten(latents, coming))
        whole = rows * columns * self.num_retrieved(latents)
        return whole + sum(pooled_tokens(rows, columns, slot.stride) for slot in slots)

    @property
    def page_strides(self) -> list[int]:
        """Strides of the places of a page: whole cycles of the schedule, as many as hold a window; [] of no pages."""
        if self.policy == "window":
            return []
        cycle = (1,) if self.policy == "full" else self.schedule
        return list(cycle * -(-self.window // len(cycle)))

    @property
    def num_pages(self) -> int:
        """Pages that hold all old latents but the image, wherever in a page the oldest lies."""
        places = len(self.page_strides)
        return -(-(self.capacity - self.window - 2 + places) // places) if places else 0

    def stored(self, rows: int, columns: int) -> int:
        """Tokens that storage is allocated for: the image, the pages, the window and the landmarks."""
        page = sum(pooled_tokens(rows, columns, stride) for stride in self.page_strides)
        whole = self.window + (self.landmarks + 1 if self.policy == "relic_landmarks" else 0)
        return pooled_tokens(rows, columns, self.stride(0)) + self.num_pages * page + whole * rows * columns

    @functools.cache  # noqa: B019, of a frozen value
    def room(self, rows: int, columns: int, coming: int = 0) -> int:
        """The most tokens that are ever shown, however long the walk."""
        return max(
            self.tokens(rows, columns, n, coming) for n in range(1, self.capacity + self.window + len(self.schedule))
        )
