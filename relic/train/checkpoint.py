"""A training's state on disk: written beside, then renamed, so that a kill at any moment leaves a whole one.

Everything random in a step is a function of (seed, step), so the state is tensors and one integer, no generator.
"""

import os
import time
from pathlib import Path

import torch


class Checkpoint:
    """Saves `parts` (name -> object with state_dict and load_state_dict) every `every_s` seconds."""

    def __init__(self, path: Path, parts: dict[str, object], every_s: float):
        self.path, self.parts, self.every_s = path, parts, every_s
        self.saved_at = time.monotonic()

    def load(self) -> int:
        """Restores what was saved and returns the step to go on with; 0 where nothing was saved."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])  # type: ignore[attr-defined]
        return state["step"]

    def save_if_due(self, step: int) -> None:
        if time.monotonic() - self.saved_at > self.every_s:
            self.save(step)

    def save(self, step: int) -> None:
        """Everything up to, not including, `step` is done."""
        state = {name: part.state_dict() for name, part in self.parts.items()}  # type: ignore[attr-defined]
        beside = self.path.with_suffix(".new")
        torch.save({"step": step, **state}, beside)
        os.replace(beside, self.path)
        self.saved_at = time.monotonic()
