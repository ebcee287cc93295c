"""Flow matching of a causal model on data: what a chunk is, given the chunks before it.

The last `noisy_chunks` chunks of a video are noisy, each at a timestep of its own, the earlier ones clean and seen as
the memory shows them (memory/masks.py). With one noisy chunk this is teacher forcing; with all of them, diffusion
forcing (arXiv 2407.01392)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relic.generate.config import Rollout
from relic.memory import masks
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer


def flow_loss(
    model: Transformer,
    latents: Tensor,
    conditions: Conditions,
    rollout: Rollout,
    *,
    noisy_chunks: int,
    shift: float,
    generator: np.random.Generator,
    landmarks: Sequence[int] = (),
) -> Tensor:
    """Mean squared error of the velocity of the noisy chunks of latents [B, F, C, H, W], whose F divides by the chunk.

    The image latent stays clean and bears no loss."""
    batch, length = latents.shape[:2]
    chunk, device = rollout.chunk, latents.device
    first_noisy = max(1, length - chunk * noisy_chunks)
    share = torch.from_numpy(generator.random((batch, length // chunk), np.float32)).to(device)
    timesteps = flow.shifted(share, shift).repeat_interleave(chunk, 1)
    timesteps[:, :first_noisy] = 0
    noise = torch.from_numpy(generator.standard_normal(latents.shape, np.float32)).to(device)
    segments = masks.hybrid(length, chunk, noisy_chunks, rollout.memory, landmarks=landmarks)
    with autocast(device):
        velocity, _ = model(flow.add_noise(latents, noise, timesteps), timesteps, conditions, segments=segments)
    return functional.mse_loss(velocity[:, first_noisy:].float(), (noise - latents)[:, first_noisy:])
