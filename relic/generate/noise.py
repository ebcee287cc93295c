"""Noise as a pure function of a seed and a place, so that a walk is the same however its calls are cut."""

import numpy as np
import torch
from torch import Tensor


def noise(seed: tuple[int, ...], shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise float32 of `shape`, drawn on the CPU (the same on every device) from `seed`."""
    state = int(np.random.SeedSequence([s % 2**32 for s in seed]).generate_state(1, np.uint64)[0] >> 1)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(state))
    if torch.device(device).type == "cuda":  # from pinned memory, so that the host need not wait
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)
