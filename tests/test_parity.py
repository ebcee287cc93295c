"""The transformer is Wan's: its outputs and gradients are those of diffusers' with the same weights."""

import pytest
import torch
import wan_models
from einops import rearrange
from torch import Tensor, nn

from relic.model import config, wan


def sizes(width: int, heads: int, layers: int) -> config.Transformer:
    return config.Transformer(
        width=width, ffn=2 * width + 8, layers=layers, heads=heads, text_width=32, text_tokens=7, text_vocabulary=0,
        control_width=16, trained_frames=21, frames=21,
    )  # fmt: skip


CASES = [  # sizes, latents, rows and columns of latents
    (sizes(48, 2, 2), 3, (6, 10)),
    (sizes(128, 2, 3), 5, (10, 14)),
    (sizes(128, 1, 2), 2, (6, 6)),
    (sizes(120, 5, 4), 1, (2, 26)),
]


def given(cfg: config.Transformer, num_latents: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [2, F, C, H, W], a timestep a latent [2, F], and weights of a loss, like the latents."""
    generator = torch.Generator().manual_seed(1)
    latents, weights = torch.randn(2, 2, num_latents, cfg.latent_channels, *size, generator=generator)
    return latents, 1000 * torch.rand(2, num_latents, generator=generator), weights


def diffusers(model: nn.Module, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Velocity as ours; the timesteps are expanded to tokens, as for Wan-2.2's image and text to video."""
    tokens = latents.shape[-2] * latents.shape[-1] // 4
    x = rearrange(latents, "b f c h w -> b c f h w")
    (velocity,) = model(x, timesteps.repeat_interleave(tokens, 1), text, return_dict=False)
    return rearrange(velocity, "b c f h w -> b f c h w")


@pytest.mark.parametrize(("cfg", "num_latents", "size"), CASES)
@torch.inference_mode()
def test_the_output_is_diffusers(cfg: config.Transformer, num_latents: int, size: tuple[int, int]) -> None:
    theirs = wan_models.wan(cfg)
    conditions = wan_models.conditions(cfg, num_latents, batch=2)
    latents, timesteps, _ = given(cfg, num_latents, size)
    velocity, _ = wan_models.relic(cfg, theirs)(latents, timesteps, conditions)
    expected = diffusers(theirs, latents, timesteps, conditions.text)
    assert 0.5 < expected.std() < 2
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)


def gradients(velocity: Tensor, weights: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of sum(velocity weights) for each of the inputs."""
    found = torch.autograd.grad((velocity * weights).sum(), list(inputs.values()))
    return dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize(("cfg", "num_latents", "size"), CASES)
def test_the_gradients_are_diffusers(cfg: config.Transformer, num_latents: int, size: tuple[int, int]) -> None:
    theirs = wan_models.wan(cfg)
    ours = wan_models.relic(cfg, theirs)
    conditions = wan_models.conditions(cfg, num_latents, batch=2)
    latents, timesteps, weights = given(cfg, num_latents, size)
    inputs = {"latents": latents.requires_grad_(), "text": conditions.text.requires_grad_()}
    here = {name: x for name, x in ours.named_parameters() if not name.startswith(wan.CONTROL)}
    there = {name: theirs.get_parameter(wan.name_in("diffusers", name)) for name in here}
    assert len(there) == len(list(theirs.parameters()))
    mine = gradients(ours(latents, timesteps, conditions)[0], weights, inputs | here)
    expected = gradients(diffusers(theirs, latents, timesteps, conditions.text), weights, inputs | there)
    for name, x in expected.items():
        y = x if name in inputs else wan.ours(name, x, cfg)
        largest = max(y.abs().max().item(), 1e-3)  # what is smaller is zero but for rounding
        assert (mine[name] - y).abs().max() < 1e-4 * largest, name


@torch.inference_mode()
def test_a_new_relic_is_wan_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, num_latents, size = CASES[0]
    model = wan_models.relic(cfg, wan_models.wan(cfg))
    latents, timesteps, _ = given(cfg, num_latents, size)
    here, there = (wan_models.conditions(cfg, num_latents, batch=2, seed=seed) for seed in (0, 1))
    velocity, elsewhere = (model(latents, timesteps, c.with_text(here.text))[0] for c in (here, there))
    absent = [torch.full((2, num_latents, cfg.width), -0.0)] * cfg.layers  # x + -0.0 is x, also where x is -0.0
    for encoder in (model.action_encoder, model.pose_encoder):
        monkeypatch.setattr(encoder, "forward", lambda frames: absent)
    assert torch.equal(velocity, elsewhere)
    assert torch.equal(velocity, model(latents, timesteps, here)[0])
