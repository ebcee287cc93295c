"""Dials of the evaluation."""

from dataclasses import dataclass, field

from relic.generate.config import Rollout, Sampler
from relic.geometry.config import Actions


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Held-out walks, each continued from one real frame by every model."""

    base: str = ""  # the start weights that the teacher came from ("tiny/base"), measured beside it; empty: none
    known: int = 24  # test walks in known maps
    unseen: int = 12  # test walks in maps held out
    num_latents: int = 16  # length of the generated videos
    batch: int = 8
    sampler: Sampler = field(default_factory=Sampler)
    rollout: Rollout = field(default_factory=Rollout)
    actions: Actions = field(default_factory=Actions)
    horizon_s: float = 1.0  # the headline figures are means over this time
    strips: int = 6  # walks shown as strips of frames, a region
    seed: int = 0

    def __post_init__(self) -> None:
        if self.known < 2 or self.unseen < 0 or self.unseen == 1:
            raise ValueError(
                f"{self.known} known and {self.unseen} unseen walks; "
                "the win rate swaps actions between walks, so allowed are at least 2 of each, or 0 unseen"
            )
        if self.num_latents % self.rollout.chunk or self.num_latents < 2:
            raise ValueError(
                f"num_latents is {self.num_latents}; it must be a multiple of the chunk, {self.rollout.chunk}, "
                "and at least 2"
            )
