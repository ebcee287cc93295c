"""Dials of sampling (the teacher, many steps) and of the rollout (the student, few steps)."""

from dataclasses import dataclass, field

from relic.memory.config import Memory


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Euler integration of the teacher's flow."""

    steps: int = 24
    shift: float = 3.0
    spacing: str = "even"  # as Wan's own sampler; "diffusers": as its FlowMatchEulerDiscreteScheduler (model/flow.py)
    guidance: float = 1.0  # uncond + guidance (cond - uncond); 1 means one pass without the empty prompt

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shift <= 0:
            raise ValueError(f"steps is {self.steps} and shift {self.shift}; they must be at least 1 and above 0")
        if self.spacing not in ("even", "diffusers"):
            raise ValueError(f"spacing is {self.spacing!r}; allowed are 'even' and 'diffusers'")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Few-step generation, chunk by chunk."""

    chunk: int = 2  # latents generated together
    timesteps: tuple[float, ...] = (1000.0, 937.5, 833.3, 625.0)  # of 1000: 1000, 750, 500, 250 shifted by 5
    context: str = "clean"  # keys and values of a pass over the clean latents; "noisy": of the last denoising pass
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk} latents; it must be at least 1")
        if self.context not in ("clean", "noisy"):
            raise ValueError(f"context is {self.context!r}; allowed are 'clean' and 'noisy'")
        if self.memory.capacity <= self.memory.window + self.chunk:
            raise ValueError(
                f"the memory's capacity is {self.memory.capacity} latents; the image, the window of "
                f"{self.memory.window} and a chunk of {self.chunk} must fit"
            )
        if list(self.timesteps) != sorted(set(self.timesteps), reverse=True) or not 0 < self.timesteps[-1] <= 1000:
            raise ValueError(f"timesteps are {self.timesteps}; they must fall from at most 1000 and stay above 0")
