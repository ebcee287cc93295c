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


def schedule(steps: int, shift: float, spacing: str = "even") -> Tensor:
    """The `steps` + 1 falling timesteps of an Euler integration, from 1000 to 0.

    "even" spaces all of them evenly before the shift, as Wan's own `get_sampling_sigmas` does. diffusers'
    FlowMatchEulerDiscreteScheduler gives the same when it is handed `sigmas=linspace(1, 0, steps + 1)[:-1]`, and its
    UniPCMultistepScheduler, which the published Wan-2.1 names, levels within shift / 1000 of it.

    "diffusers" is what FlowMatchEulerDiscreteScheduler makes of a number of steps alone, as in a WanPipeline that it
    was put into: even from 1 to the lowest training level, which is shifted there once more (0.024 at shift 5), then 0.
    Its last step crosses next to nothing, so the others are longer: it is for comparing with such a pipeline."""
    if spacing == "diffusers":
        lowest = shifted(torch.tensor(1 / STEPS), shift).item() / STEPS
        return torch.cat([shifted(torch.linspace(1, lowest, steps), shift), torch.zeros(1)])
    assert spacing == "even", spacing
    return shifted(torch.linspace(1, 0, steps + 1), shift)
