"""How a training is spread over processes, and what a node must have for it. Nothing here changes what is learnt, so no
artifact's key counts it."""

from dataclasses import dataclass, field

OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True, kw_only=True)
class Watching:
    """When a training says how it goes, and whom it names (train/watch.py)."""

    every_s: float = 10.0  # from one gathering of the processes' figures to the next
    slow: float = 1.5  # a process whose own part of a step takes this many times the median's is named
    stalled_share: float = 0.5  # of its steps' time: a process that waits longer for data is named
    stalled_s: float = 30.0  # a single wait for data that is longer is said while it lasts

    def __post_init__(self) -> None:
        if self.every_s <= 0 or self.slow <= 1 or not 0 < self.stalled_share < 1 or self.stalled_s <= 0:
            raise ValueError(
                f"every_s is {self.every_s}, slow {self.slow}, stalled_share {self.stalled_share} and stalled_s "
                f"{self.stalled_s}; allowed are more than 0, more than 1, between 0 and 1, and more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Dials of a training on one process or many (docs/training.md)."""

    zero: int = 0  # shared by all processes: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too
    sequence: int = 1  # processes that share the tokens and heads of their samples (Ulysses)
    offload: str = "none"  # to the host's memory, of ZeRO's shards: "none" | "optimizer" | "all" (weights too, ZeRO 3)
    checkpointing: bool = False  # a block keeps its input only and is computed again in the backward
    compile: bool = False  # what only reads and writes in a block becomes one kernel each (model/fused.py)
    samples: int = 0  # that a process takes at once, the rest of its batch by accumulation; 0: all
    bucket: int = 50_000_000  # numbers of gradients or weights that are sent together, and a buffer's size
    timeout_s: float = 600.0  # when no step ends for so long, all say where they stand and end (train/watchdog.py)
    watching: Watching = field(default_factory=Watching)

    def __post_init__(self) -> None:
        if self.zero not in range(4):
            raise ValueError(f"zero is {self.zero}; allowed are 0, 1, 2 and 3")
        if self.sequence < 1 or self.samples < 0 or self.bucket < 1 or self.timeout_s <= 0:
            raise ValueError(
                f"sequence is {self.sequence}, samples {self.samples}, bucket {self.bucket} and timeout_s "
                f"{self.timeout_s}; allowed are at least 1, at least 0, at least 1, and more than 0"
            )
        if self.offload not in OFFLOADS:
            raise ValueError(f"offload is {self.offload!r}; allowed are {', '.join(OFFLOADS)}")
        if self.offload != "none" and self.zero < (3 if self.offload == "all" else 1):
            raise ValueError(
                f"offload is {self.offload!r} with zero {self.zero}; 'optimizer' needs zero 1 or more, 'all' needs 3"
            )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What a node, or every process of a launch, must have before a run."""

    store: str = "out/demo/store"  # that must be writable: a folder or s3://BUCKET/PREFIX
    gpus: int = 0  # that a node must have
    gpu_free_share: float = 0.9  # of a GPU's memory; less says that another process has it
    shm_gb: float = 1.0  # size of /dev/shm; a container has 64 MB unless told otherwise
    disk_gb: float = 20.0  # free where the store, or its cache, lies
    bus_gb_s: float = 0.1  # bus bandwidth of an all-reduce over the processes, in 1e9 bytes a second
    skew_s: float = 1.0  # that the processes' clocks may be apart
    timeout_s: float = 60.0  # for the processes to meet, and for a server to answer
    json: bool = False  # print JSON

    def __post_init__(self) -> None:
        if self.gpus < 0 or not 0 <= self.gpu_free_share <= 1:
            raise ValueError(
                f"gpus is {self.gpus} and gpu_free_share {self.gpu_free_share}; allowed are 0 or more, and 0 to 1"
            )
        if min(self.shm_gb, self.disk_gb, self.bus_gb_s, self.skew_s) < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"shm_gb is {self.shm_gb}, disk_gb {self.disk_gb}, bus_gb_s {self.bus_gb_s}, skew_s {self.skew_s} and "
                f"timeout_s {self.timeout_s}; none may be negative, and timeout_s must be more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of the doctor says."""

    verdict: str  # "ok" | "warn": a run goes, but look | "fail": a run would not
    name: str
    said: str  # what was found, and what is needed
    where: str = ""  # host and number of the process, where there are several
