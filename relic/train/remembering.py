"""Flow matching of a causal model on data, every chunk as a walk generates it: over the true latents before it, which
the memory shows by its policy and pooling. The clean video stands beside the noisy chunks, so that one call trains many
of them (memory/masks.py, `beside`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from relic.generate.config import Rollout
from relic.memory import masks
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.train.draws import Draws
from relic.train.teacher import noised


def remembered_loss(
    model: Transformer,
    latents: Tensor,
    conditions: Conditions,
    rollout: Rollout,
    *,
    first: int,
    shift: float,
    draws: Draws,
    landmarks: Mapping[int, Sequence[int]] | None = None,
) -> Tensor:
    """Mean squared error of the velocity of the chunks from latent `first` on, each at a timestep of its own, given the
    clean latents before it as a walk's memory shows them (`masks.beside`); latents [B, F, C, H, W]."""
    length, chunk, device = latents.shape[1], rollout.chunk, latents.device
    clean, target = latents[:, : length - chunk], latents[:, first:]
    noisy, timesteps, noise = noised(target, shift, draws, chunk=chunk, num_clean=0)
    both = torch.cat([clean, noisy], 1)
    times = torch.cat([torch.arange(clean.shape[1]), torch.arange(first, length)]).to(device)
    parts = conditions.latents(0, clean.shape[1]), conditions.latents(first, length)
    doubled = replace(
        conditions,
        actions=torch.cat([part.actions for part in parts], 1),
        poses=torch.cat([part.poses for part in parts], 1),
    )
    segments = masks.beside(length, chunk, first, rollout.memory, landmarks=landmarks)
    levels = torch.cat([torch.zeros(clean.shape[:2], device=device), timesteps], 1)
    with autocast(device):
        velocity, _ = model(both, levels, doubled, times=times, segments=segments)
    return functional.mse_loss(velocity[:, clean.shape[1] :].float(), noise - target)
