"""Videos whose law is known, for tests: the law, its exact score as a teacher, samples, and a distance.

A video is `LENGTH` latents of two numbers. Given the image, which is standard normal, a hidden coin says on which of
two sides all later latents lie, and each follows the one before it: exchanged, weakened, and with noise. So the law of
the latents after the image is a mixture of two Gaussians, whose posterior mean given noisy latents is known.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from relic.data.loader import Batch
from relic.model import config, flow
from relic.model.attention import KeyValue
from relic.model.conditions import Conditions
from relic.model.precision import full_precision

LENGTH, SHAPE = 4, (1, 1, 2)  # latents, the image included; [C, H, W] of each
NUMBERS = 2  # of a latent
MODEL = config.Transformer(
    width=32, ffn=64, layers=2, heads=2, latent_channels=1, patch=(1, 1, 2), text_width=4, text_tokens=1,
    text_vocabulary=2, frequency_width=32, control_width=4, trained_frames=LENGTH, frames=LENGTH,
)  # fmt: skip


def conditions(batch: int) -> Conditions:
    """A camera at rest and no words."""
    frames = 4 * (LENGTH - 1) + 1
    still = torch.eye(13)[-1].expand(batch, frames, 13)
    return Conditions(still, torch.eye(4).expand(batch, frames, 4, 4), torch.zeros(batch, 1, dtype=torch.int64))


class Law(nn.Module):
    """The law; called as a `Transformer` is, the exact teacher.

    side: distance of a side from the middle, at which all numbers are `centre`; following: the share of a latent that
    the next one keeps."""

    def __init__(self, *, side: float = 0.7, centre: float = 0.0, following: float = 0.6) -> None:
        super().__init__()
        later = LENGTH - 1
        direction = torch.tensor([[1.0, 1], [1, -1], [1, 1]]) / 2**0.5
        self.sides = centre + side * torch.stack([direction, -direction])  # [side, later latent, number]
        # x_i - side_i = following step (x_{i-1} - side_{i-1}) + noise, step an exchange of the numbers
        step = following * torch.eye(NUMBERS).roll(1, 0)
        powers = [torch.linalg.matrix_power(step, i) for i in range(LENGTH)]
        self.from_image = torch.cat(powers[1:])  # [later x number, number]
        zero = torch.zeros(NUMBERS, NUMBERS)
        from_noise = (
            torch.cat([torch.cat([powers[i - j] if i >= j else zero for j in range(later)], 1) for i in range(later)])
            * (1 - following**2) ** 0.5
        )
        self.from_noise = from_noise
        self.variances, self.axes = torch.linalg.eigh(from_noise @ from_noise.mT)

    def means(self, image: Tensor) -> Tensor:
        """Means [B, side, later x number] of the latents after images [B, number]."""
        return self.sides.flatten(1) + (image @ self.from_image.mT)[:, None]

    def sample(self, count: int, seed: int) -> Tensor:
        """Videos [B, F, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(count, NUMBERS, generator=generator)
        side = torch.randint(2, (count,), generator=generator)
        noise = torch.randn(count, self.from_noise.shape[1], generator=generator)
        later = self.means(image)[torch.arange(count), side] + noise @ self.from_noise.mT
        return torch.cat([image, later], 1).view(count, LENGTH, *SHAPE)

    def forward(self, latents: Tensor, timesteps: Tensor, _: Conditions) -> tuple[Tensor, list[KeyValue]]:
        """Velocity [B, F, C, H, W] of latents whose image is clean and whose others share a timestep above 0."""
        assert not timesteps[:, 0].any()
        assert (timesteps[:, 1:] == timesteps[:, 1:2]).all()
        with full_precision(latents.device):
            flat = latents.float().flatten(2)
            level = timesteps[:, 1, None, None] / flow.STEPS
            means, noisy = self.means(flat[:, 0]), flat[:, 1:].flatten(1)[:, None]
            off = (noisy - (1 - level) * means) @ self.axes  # [B, side, later x number]
            variances = (1 - level) ** 2 * self.variances + level**2
            likely = -0.5 * (off.square() / variances).sum(-1)
            guesses = means + ((1 - level) * self.variances / variances * off) @ self.axes.mT
            clean = (likely.softmax(-1)[..., None] * guesses).sum(1)
        velocity = torch.zeros_like(flat)
        velocity[:, 1:] = ((noisy[:, 0] - clean) / level[:, 0]).view_as(flat[:, 1:])
        return velocity.view_as(latents), []


class Samples:
    """Videos as a data set: what a training calls of `loader.Dataset`."""

    skipped = 0

    def __init__(self, videos: Tensor) -> None:
        self.videos = videos

    def ahead(self, requests: Iterable[tuple[list[int], int]], *, device: torch.device | str) -> Iterator[Batch]:
        return (self.batch(indices, num_latents=length, device=device) for indices, length in requests)

    def indices(self, seed: int, step: int, global_batch: int) -> list[int]:
        return np.random.default_rng((seed, step)).integers(len(self.videos), size=global_batch).tolist()

    def batch(self, indices: list[int], *, num_latents: int, device: torch.device | str = "cpu") -> Batch:
        assert num_latents == LENGTH
        return Batch(self.videos[indices].to(device), conditions(len(indices)).to(device))


def distance(a: Tensor, b: Tensor) -> float:
    """Maximum mean discrepancy of points [N, ...] of two laws, by a Gaussian kernel as wide as normal points are far
    from the middle."""
    a, b = a.flatten(1), b.flatten(1)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * x.shape[1])).mean()

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).clamp(min=0).sqrt().item()


def distances(videos: Tensor, true: Tensor, chunk: int) -> dict[str, float]:
    """Of whole videos, the image included, and of the latents of every chunk."""
    starts = range(0, LENGTH, chunk)
    parts = {f"chunk {i // chunk}": slice(max(1, i), i + chunk) for i in starts if i + chunk > 1}
    return {"joint": distance(videos, true)} | {name: distance(videos[:, p], true[:, p]) for name, p in parts.items()}
