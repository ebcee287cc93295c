"""The teacher's sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tiny_models import CFG, conditions, latents, transformer

from relic.generate import sampler
from relic.generate.config import Sampler
from relic.generate.noise import noise
from relic.model import flow


def sampled(seed: int = 0, **dials) -> torch.Tensor:
    cfg = Sampler(**{"steps": 4, **dials})
    return sampler.sample(
        transformer(), cfg, image_latent=latents(1)[:, 0], conditions=conditions(4), num_latents=4, seed=seed
    )


def test_the_image_latent_stays_as_it_was_given():
    assert torch.equal(sampled()[:, 0], latents(1)[:, 0])


def test_a_seed_gives_one_video():
    assert torch.equal(sampled(), sampled())
    assert not torch.equal(sampled(), sampled(seed=1))


def test_guidance_of_one_is_the_conditional_model():
    near_one = sampled(guidance=1.0 + 1e-6)
    torch.testing.assert_close(sampled(), near_one, atol=5e-2, rtol=0)


@pytest.mark.parametrize("vocabulary", [0, 512])
def test_guidance_leads_away_from_the_empty_prompt(vocabulary: int):
    model, given, generator = transformer(replace(CFG, text_vocabulary=vocabulary)), conditions(4), torch.Generator()
    if vocabulary == 0:
        text, empty = torch.randn(2, 1, 4, 8, generator=generator)
        given = replace(given, text=text, empty=empty)
    noisy, timesteps = latents(4), torch.full((1, 4), 500.0)
    without = replace(given, text=given.empty.expand_as(given.text))
    one, other = (sampler.guided(model, 1.0, noisy, timesteps, x) for x in (given, without))
    found = sampler.guided(model, 3.0, noisy, timesteps, given)
    torch.testing.assert_close(found, other + 3 * (one - other), atol=5e-2, rtol=0)
    assert (one - other).abs().max() > 0.1


def test_the_path_begins_in_noise_and_passes_the_students_timesteps():
    cfg = Sampler(steps=8, shift=5.0)
    path = sampler.trajectory(
        transformer(), cfg, image_latent=latents(1)[:, 0], conditions=conditions(4), num_latents=4, seed=(3,)
    )
    times = [round(t, 1) for t, _ in path]
    assert times[0] == 1000.0
    assert times[-1] == 0.0
    assert {937.5, 833.3, 625.0} <= set(times)


def test_noise_is_a_function_of_its_seed_alone():
    first = noise((1, 2, 3), (4,))
    torch.manual_seed(99)
    assert torch.equal(noise((1, 2, 3), (4,)), first)
    assert not torch.equal(noise((1, 3, 2), (4,)), first)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_integer_is_a_seed(seed: int):
    assert noise((seed,), (2,)).isfinite().all()


# Parity with diffusers

STEPS_AND_SHIFTS = [(steps, shift) for steps in (1, 4, 7, 50) for shift in (1.0, 3.0, 5.0)]


def euler(steps: int, shift: float, spacing: str) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler, told only how many steps, or Wan's own levels before the shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    given = {} if spacing == "diffusers" else {"sigmas": np.linspace(1, 0, steps + 1)[:-1].tolist()}
    scheduler.set_timesteps(steps, **given)
    return scheduler


class Field(torch.nn.Module):
    """A velocity that depends on everything; it keeps the timesteps that it was asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[torch.Tensor] = []

    def forward(self, latents, timesteps, conditions):
        self.asked.append(timesteps)
        text = conditions.text.float().mean() / 500
        return torch.sin(latents + latents.roll(1, 1) + timesteps[..., None, None, None] / 400 + text), []


@pytest.mark.parametrize("spacing", ["even", "diffusers"])
@pytest.mark.parametrize(("steps", "shift"), STEPS_AND_SHIFTS)
def test_the_schedule_is_diffusers(steps: int, shift: float, spacing: str) -> None:
    theirs, ours = euler(steps, shift, spacing), flow.schedule(steps, shift, spacing)
    torch.testing.assert_close(ours / flow.STEPS, theirs.sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[:-1], theirs.timesteps, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("steps", "shift"), STEPS_AND_SHIFTS)
def test_the_schedule_is_nearly_that_of_the_published_unipc(steps: int, shift: float) -> None:
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction")
    theirs.set_timesteps(steps)
    assert (flow.schedule(steps, shift) / flow.STEPS - theirs.sigmas).abs().max() <= shift / 1000


@pytest.mark.parametrize("spacing", ["even", "diffusers"])
@pytest.mark.parametrize(("steps", "shift"), STEPS_AND_SHIFTS)
def test_every_sample_of_the_path_is_diffusers(steps: int, shift: float, spacing: str) -> None:
    model, image, given = Field(), latents(1)[:, 0], conditions(4)
    cfg = Sampler(steps=steps, shift=shift, guidance=5.0, spacing=spacing)
    path = list(sampler.trajectory(model, cfg, image_latent=image, conditions=given, num_latents=4, seed=(0,)))  # type: ignore[arg-type]
    asked, theirs, x = model.asked[::2], euler(steps, shift, spacing), path[0][1]
    for at, time in enumerate(theirs.timesteps):
        times = time.expand(1, 4).clone()
        times[:, 0] = 0
        torch.testing.assert_close(asked[at], times, atol=1e-3, rtol=0)
        with_text, _ = model(x, times, given)
        without, _ = model(x, times, given.with_text(torch.zeros_like(given.text)))
        x = theirs.step(without + 5.0 * (with_text - without), time, x, return_dict=False)[0]  # type: ignore[arg-type]
        x[:, 0] = image
        torch.testing.assert_close(path[at + 1][1], x, atol=1e-5, rtol=0)
