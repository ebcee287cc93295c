"""The teacher's sampler: the flow's ODE integrated by Euler, all latents at once, the image latent clean throughout."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from relic.generate.config import Sampler
from relic.generate.noise import noise
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer


def sample(
    model: Transformer, cfg: Sampler, *, image_latent: Tensor, conditions: Conditions, num_latents: int, seed: int
) -> Tensor:
    """Latents [B, F, C, H, W] whose first is `image_latent` [B, C, H, W]; conditions of 4 (F - 1) + 1 frames."""
    path = trajectory(
        model, cfg, image_latent=image_latent, conditions=conditions, num_latents=num_latents, seed=(seed,)
    )
    *_, (_, latents) = path
    return latents


@torch.no_grad()
def trajectory(
    model: Transformer,
    cfg: Sampler,
    *,
    image_latent: Tensor,
    conditions: Conditions,
    num_latents: int,
    seed: tuple[int, ...],
) -> Iterator[tuple[float, Tensor]]:
    """The (timestep, latents [B, F, C, H, W]) of the integration, from noise at 1000 to the end at 0."""
    batch, device = len(image_latent), image_latent.device
    latents = noise((*seed, 0), (batch, num_latents, *image_latent.shape[1:]), device)
    latents[:, 0] = image_latent
    times = flow.schedule(cfg.steps, cfg.shift, cfg.spacing).tolist()
    yield times[0], latents
    for time, following in itertools.pairwise(times):
        timesteps = torch.full((batch, num_latents), time, device=device)
        timesteps[:, 0] = 0
        velocity = guided(model, cfg.guidance, latents, timesteps, conditions)
        latents = latents + velocity * (following - time) / flow.STEPS
        latents[:, 0] = image_latent
        yield following, latents


def guided(model: Transformer, guidance: float, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """uncond + guidance (cond - uncond), where uncond has the empty prompt; one pass at guidance 1."""
    with autocast(latents.device):
        velocity, _ = model(latents, timesteps, conditions)
        if guidance != 1:
            everyone = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
            without, _ = model(latents, timesteps, conditions.without_text(everyone))
            velocity = without + guidance * (velocity - without)
    return velocity.float()
