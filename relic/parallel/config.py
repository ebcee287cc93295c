"""How a training is spread over processes. Nothing here changes what is learnt, so no artifact's key counts it."""

from dataclasses import dataclass

OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Dials of a training on one process or many (docs/training.md)."""

    zero: int = 0  # shared by all processes: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too
    sequence: int = 1  # processes that share the tokens and heads of their samples (Ulysses)
    offload: str = "none"  # to the host's memory, of ZeRO's shards: "none" | "optimizer" | "all" (weights too, ZeRO 3)
    checkpointing: bool = False  # a block keeps its input only and is computed again in the backward
    samples: int = 0  # that a process takes at once, the rest of its batch by accumulation; 0: all
    timeout_s: float = 600.0  # a process that waits longer for the others says where everyone stands and ends

    def __post_init__(self) -> None:
        if self.zero not in range(4):
            raise ValueError(f"zero is {self.zero}; allowed are 0, 1, 2 and 3")
        if self.sequence < 1 or self.samples < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"sequence is {self.sequence}, samples {self.samples} and timeout_s {self.timeout_s}; "
                "allowed are at least 1, at least 0, and more than 0"
            )
        if self.offload not in OFFLOADS:
            raise ValueError(f"offload is {self.offload!r}; allowed are {', '.join(OFFLOADS)}")
        if self.offload != "none" and self.zero < (3 if self.offload == "all" else 1):
            raise ValueError(
                f"offload is {self.offload!r} with zero {self.zero}; 'optimizer' needs zero 1 or more, 'all' needs 3"
            )
