"""Dials of the evaluation."""

from dataclasses import dataclass, field

from relic.generate.config import Rollout, Sampler
from relic.geometry.config import Actions

SERVED = "distilled"  # which of the report's models is looked at most closely, judged by the gate and exported


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """How an estimated track is held against the one that was asked for."""

    distances: tuple[int, ...] = (1, 16)  # frames between the two poses of a relative error
    scale_range: tuple[float, float] = (0.2, 5.0)  # a scale outside is a failed estimate
    noise_floor: float = 0.05  # share of the reference's path: an estimated path up to it is noise
    still: float = 1e-6  # mean step, in the reference's own units, up to which a reference does not move
    resamples: int = 1000  # of the clips, for the intervals
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 1:
            raise ValueError(f"distances are {self.distances}; allowed are whole frames from 1 on, at least one")
        low, high = self.scale_range
        if not 0 <= low < high:
            raise ValueError(f"scale_range is {self.scale_range}; allowed is 0 <= low < high")


@dataclass(frozen=True, kw_only=True)
class Revisit:
    """When a camera counts as back. Poses are as far apart as their steps and their turn, in steps, together."""

    degrees_per_step: float = 5.0  # a turn that counts as much as one mean step
    near: float = 0.4  # at most so far from the earlier pose, in mean steps: it is back (2 degrees)
    left: float = 6.0  # at least so far from it in between: it was away (30 degrees)
    min_away: int = 16  # frames between the two
    similarity_drop: float = 0.15  # of the picture on the way, for which a return counts in full
    curve_frames: int = 8  # width of a bin of the curve over time away

    def __post_init__(self) -> None:
        if not 0 < self.near < self.left:
            raise ValueError(f"near is {self.near} and left {self.left}; allowed is 0 < near < left")
        if min(self.degrees_per_step, self.similarity_drop, self.min_away, self.curve_frames) <= 0:
            raise ValueError(
                f"degrees_per_step is {self.degrees_per_step}, similarity_drop {self.similarity_drop}, "
                f"min_away {self.min_away}, curve_frames {self.curve_frames}; they must be positive"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Held-out walks, each continued from one real frame by every model."""

    base: str = ""  # the start weights that the teacher came from ("tiny/base"), measured beside it; empty: none
    known: int = 24  # test walks in known maps
    unseen: int = 12  # test walks in maps held out
    text_encoder: str = ""  # umT5's folder, for models that take its embeddings
    num_latents: int = 16  # length of the generated videos
    batch: int = 8
    sampler: Sampler = field(default_factory=Sampler)
    rollout: Rollout = field(default_factory=Rollout)
    actions: Actions = field(default_factory=Actions)
    trajectory: Trajectory = field(default_factory=Trajectory)
    following: Actions = field(  # dead-zones about half way from rest to a usual motion: below is noise
        default_factory=lambda: Actions(translation_dead_zone=0.3, rotation_dead_zone=0.5)
    )
    revisit: Revisit = field(default_factory=Revisit)
    script_starts: int = 8  # walks whose first frames every script of actions starts from
    script_latents: int = 8
    horizon_s: float = 1.0  # the headline figures are means over this time
    strips: int = 6  # walks shown as strips of frames, a region
    seed: int = 0

    def __post_init__(self) -> None:
        if self.known < 2 or self.unseen < 0 or self.unseen == 1:
            raise ValueError(
                f"{self.known} known and {self.unseen} unseen walks; "
                "the win rate swaps actions between walks, so allowed are at least 2 of each, or 0 unseen"
            )
        for name in ("num_latents", "script_latents"):
            if (count := getattr(self, name)) % self.rollout.chunk or count < 2:
                raise ValueError(
                    f"{name} is {count}; it must be a multiple of the chunk, {self.rollout.chunk}, and at least 2"
                )
