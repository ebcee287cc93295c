"""The teacher's sampler: the flow's ODE integrated by Euler, all latents at once, the image latent clean throughout."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from relic.generate.config import Sampler
from relic.generate.noise import noise
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer

Velocity = Callable[[Tensor, Tensor], Tensor]  # of latents [B, F, C, H, W] at timesteps [B, F]


def sample(
    model: Transformer, cfg: Sampler, *, image_latent: Tensor, conditions: Conditions, num_latents: int, seed: int
) -> Tensor:
    """Latents [B, F, C, H, W] whose first is `image_latent` [B, C, H, W]; conditions of 4 (F - 1) + 1 frames."""
    path = trajectory(
        model, cfg, image_latent=image_latent, conditions=conditions, num_latents=num_latents, seed=(seed,)
    )
    *_, (_, latents) = path
    return latents


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
    latents = noise((*seed, 0), (len(image_latent), num_latents, *image_latent.shape[1:]), image_latent.device)
    latents[:, 0] = image_latent
    times = flow.schedule(cfg.steps, cfg.shift, cfg.spacing).tolist()
    yield from integrated(velocity(model, cfg.guidance, conditions), latents, times)


def velocity(model: Transformer, guidance: float, conditions: Conditions) -> Velocity:
    """`guided` of a model under its conditions, for `integrated`."""
    return lambda latents, timesteps: guided(model, guidance, latents, timesteps, conditions)


@torch.no_grad()
def integrated(
    velocity_of: Velocity, latents: Tensor, times: Sequence[float], *, num_clean: int = 1
) -> Iterator[tuple[float, Tensor]]:
    """The (timestep, latents [B, F, C, H, W]) of Euler's steps through falling `times`, `latents` at times[0] first.

    The first `num_clean` latents stay as they are, at timestep 0."""
    clean = latents[:, :num_clean]
    yield times[0], latents
    for time, following in itertools.pairwise(times):
        timesteps = torch.full(latents.shape[:2], time, device=latents.device)
        timesteps[:, :num_clean] = 0
        velocity = velocity_of(latents, timesteps)
        latents = latents + velocity * (following - time) / flow.STEPS
        latents[:, :num_clean] = clean
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
