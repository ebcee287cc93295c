"""Noise as a pure function of a seed and a place, so that a walk is the same however its calls are cut."""

import numpy as np
import torch
from torch import Tensor


def noise(
    seed: tuple[int, ...], shape: tuple[int, ...], device: torch.device | str = "cpu", *, first: int = 0
) -> Tensor:
    """Standard normal noise float32 [B, ...] of `shape`, drawn on the CPU (the same on every device) from `seed`.

    A sample's is its own, of its place `first` + b in a larger batch, whoever draws the others."""
    drawn = torch.empty(shape)
    for row in range(shape[0]):
        # + 1: to a seed's sequence a zero at the end is nothing
        whole = np.random.SeedSequence([s % 2**32 for s in (*seed, first + row + 1)])
        state = int(whole.generate_state(1, np.uint64)[0] >> 1)
        drawn[row] = torch.randn(shape[1:], generator=torch.Generator().manual_seed(state))
    if torch.device(device).type == "cuda":  # from pinned memory, so that the host need not wait
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)
