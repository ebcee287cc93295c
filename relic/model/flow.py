"""Flow matching as Wan-2.1 uses it.

x_t = (1 - s) x_0 + s noise with s = t / 1000, and the model says v = noise - x_0.
"""

import torch
from torch import Tensor

STEPS = 1000.0  # a timestep t in (0, 1000] is the noise level s = t / 1000


def level(timesteps: Tensor) -> Tensor:
    """Noise levels [B, F, 1, 1, 1] of timesteps [B, F], ready to scale latents [B, F, C, H, W]."""
    return (timesteps / STEPS)[..., None, None, None]


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Noisy latents [B, F, C, H, W] at timesteps [B, F]."""
    s = level(timesteps)
    return (1 - s) * clean + s * noise


def clean_of(noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """The clean latents that a velocity points back to: x_0 = x_t - s v."""
    return noisy - level(timesteps) * velocity


def shifted(share: Tensor, shift: float) -> Tensor:
    """Timesteps of uniform shares in 0..1: s = shift u / (1 + (shift - 1) u); a shift above 1 favours noise."""
    return STEPS * shift * share / (1 + (shift - 1) * share)


def schedule(steps: int, shift: float) -> Tensor:
    """The `steps` + 1 falling timesteps of an Euler integration, from 1000 to 0."""
    return shifted(torch.linspace(1, 0, steps + 1), shift)
