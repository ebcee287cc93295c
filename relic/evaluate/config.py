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
        if self.known < 2 or self.unseen < 0:
            raise ValueError(
                f"{self.known} known and {self.unseen} unseen walks; "
                "the win rate needs at least 2 known ones to swap actions"
            )
