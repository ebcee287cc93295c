"""Dials of the clips and the shards. Loads no torch."""

import math
from dataclasses import dataclass, field

from relic.geometry.config import Actions
from relic.worlds.config import Doom, Rooms

REGIONS = ("train", "known", "unseen")
SOURCES = ("doom", "rooms", "folder")
DAMAGED = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class CameraMotion:
    """Limits on speed, abrupt rotation and velocity profile. A step is the clip's mean non-zero displacement."""

    max_step: float = 4.0  # clip-mean steps in one frame: a jump
    max_velocity_change: float = 3.0  # clip-mean steps a frame, from one frame to the next
    max_turn: float = 120.0  # degrees a second
    max_turn_acceleration: float = 1500.0  # degrees a second, squared
    max_still_share: float = 0.8  # of the frames without any motion
    min_step_pixels: float = 0.2  # parallax of a mean step; less is noise that normalising would make an action of


@dataclass(frozen=True, kw_only=True)
class ViewpointStability:
    """Limits on micro-jitter, oscillation and near-collision."""

    max_turn_jitter: float = 0.2  # share of the angular velocity's power above 3 Hz
    max_step_jitter: float = 0.25  # share of the linear velocity's power above 3 Hz
    max_reversals: float = 2.0  # a second, of the turn or the walk
    min_clearance: float = 1.5  # nearest depth in clip-mean steps, where the source has depth


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Limits on under- and over-exposure and flicker; luminance is in 0..255."""

    min_luminance: float = 20.0  # mean of the clip
    max_luminance: float = 190.0
    max_clipped_share: float = 0.4  # of the pixels of any second that are black or white
    max_flicker: float = 3.0  # rms of the mean luminance's second difference


@dataclass(frozen=True, kw_only=True)
class RenderQuality:
    """Limits on missing texture and popping."""

    max_flat_share: float = 0.4  # of a frame, in exactly uniform 4x4 blocks
    max_missing_share: float = 0.02  # of a frame, in the magenta that engines draw for a missing texture
    max_pop: float = 1.4  # a frame's change, reprojected, over its neighbours'


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The four automatic filters of RELIC's section 3.2, which the paper does by hand and without thresholds."""

    camera_motion: CameraMotion = field(default_factory=CameraMotion)
    viewpoint_stability: ViewpointStability = field(default_factory=ViewpointStability)
    exposure: Exposure = field(default_factory=Exposure)
    render_quality: RenderQuality = field(default_factory=RenderQuality)


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Where clips come from, how many, and what is kept. A part takes a contiguous range of each region's clips."""

    source: str = "doom"  # doom, rooms or folder
    doom: Doom = field(default_factory=Doom)
    rooms: Rooms = field(default_factory=Rooms)
    folder: str = ""  # of videos or image folders with an npz each, for source folder
    height: int = 64  # pixels; imported frames are scaled and cut to this size, doom and rooms have their own
    width: int = 96
    train: int = 96  # clips; a folder gives at most as many as it has
    known: int = 16  # clips of test regions in known maps
    unseen: int = 16  # clips of maps held out
    num_frames: int = 61  # a clip
    fps: float = 16.0
    seed: int = 0
    crf: int = 10  # H.264 quality; smaller is better
    actions: Actions = field(default_factory=Actions)
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}; it must be one of {', '.join(SOURCES)}")
        if self.source == "folder" and not self.folder:
            raise ValueError("source is folder but folder is empty; name the folder that holds the videos")
        if self.num_frames < 5 or (self.num_frames - 1) % 4:
            raise ValueError(f"num_frames is {self.num_frames}; it must be 4 k + 1 and at least 5, such as 61")
        if min(self.height, self.width) < 8 or self.height % 8 or self.width % 8:
            raise ValueError(
                f"frames are {self.width}x{self.height} pixels; both sides must be positive multiples of 8"
            )
        if min(self.train, self.known, self.unseen) < 0 or self.train + self.known + self.unseen == 0:
            raise ValueError(f"clips are {self.train}, {self.known} and {self.unseen}; they must be >= 0, not all 0")
        if self.fps <= 0:
            raise ValueError(f"fps is {self.fps}; it must be positive")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}; H.264 allows 0 to 51")
        for name in ("doom", "rooms"):
            if self.source == name and getattr(self, name).fps != self.fps:
                raise ValueError(f"{name}.fps is {getattr(self, name).fps} and fps is {self.fps}; they must agree")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """How clips become latents in shards. A part takes every `parts`-th clip."""

    regions: tuple[str, ...] = ("train",)  # whose kept clips are taken
    palindromes: float = 0.5  # share of the clips that become a palindrome as well, drawn by seed and clip id
    actions: Actions = field(default_factory=Actions)
    text_encoder: str = ""  # umT5's folder, whose embeddings of the captions are kept too; empty: models hash words
    batch: int = 8  # clips encoded at once, each with its palindrome; what a killed call repeats
    shard_bytes: int = 64 * 2**20  # a shard is closed once it has as many
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.regions or not set(self.regions) <= set(REGIONS):
            raise ValueError(f"regions are {list(self.regions)}; allowed are one or more of {', '.join(REGIONS)}")
        if not 0 <= self.palindromes <= 1:
            raise ValueError(f"palindromes is {self.palindromes}; it is a share of the clips, from 0 to 1")
        if self.batch < 1 or self.shard_bytes < 1:
            raise ValueError(f"batch is {self.batch} and shard_bytes {self.shard_bytes}; both must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How a training draws and reads its samples."""

    mixture: tuple[float, ...] = ()  # the artifacts' shares of the draws, in any unit; empty: by their samples
    max_weight: float = 2.0  # a sample is drawn at most as many times as often for its rare actions; 1: all alike
    damaged: str = "stop"  # at a sample whose bytes are not the index's: "stop", or "skip" and take another
    retries: int = 3  # of a read that fails, before that
    pause_s: float = 1.0  # before the first of them, and twice as long before each further one
    prefetch: int = 2  # batches that are fetched while a step runs
    memory_bytes: int = 2 * 2**30  # samples stay in memory once read where all of them have at most as many
    cache_bytes: int = 32 * 2**30  # on this machine's disk, of samples that lie in S3; 0: none

    def __post_init__(self) -> None:
        if self.mixture and not 0 < sum(self.mixture) / 1000 <= min(self.mixture) < math.inf:
            raise ValueError(
                f"mixture is {self.mixture}; allowed are positive numbers, none below a thousandth of their sum"
            )
        if self.max_weight < 1:
            raise ValueError(f"max_weight is {self.max_weight}; it must be at least 1, which balances nothing")
        if self.damaged not in DAMAGED:
            raise ValueError(f"damaged is {self.damaged!r}; allowed are {', '.join(DAMAGED)}")
        if min(self.retries, self.pause_s, self.prefetch, self.memory_bytes, self.cache_bytes) < 0:
            raise ValueError(
                f"retries is {self.retries}, pause_s {self.pause_s}, prefetch {self.prefetch}, memory_bytes "
                f"{self.memory_bytes} and cache_bytes {self.cache_bytes}; none may be negative"
            )
