"""Small networks with weights that matter, for tests."""

import torch

from relic.model import config
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer

CFG = config.Transformer(width=48, ffn=64, layers=2, heads=2, latent_channels=4, text_width=8, text_tokens=4, control_width=16)


def transformer(cfg: config.Transformer = CFG, seed: int = 0) -> Transformer:
    """A transformer in which no layer is zero."""
    torch.manual_seed(seed)
    model = Transformer(cfg).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def conditions(num_latents: int, batch: int = 1, seed: int = 0) -> Conditions:
    """Conditions of 4 (F - 1) + 1 frames."""
    generator = torch.Generator().manual_seed(seed)
    num_frames = 4 * (num_latents - 1) + 1
    poses = torch.eye(4).expand(batch, num_frames, 4, 4).clone()
    poses[..., :3, 3] = torch.randn(batch, num_frames, 3, generator=generator)
    return Conditions(
        torch.rand(batch, num_frames, 13, generator=generator), poses,
        torch.randint(1, 512, (batch, 4), generator=generator),
    )  # fmt: skip


def latents(num_latents: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num_latents, 4, 8, 12, generator=torch.Generator().manual_seed(seed))
