"""The teacher's sampler."""

from dataclasses import replace

import pytest
import torch
from tiny_models import CFG, conditions, latents, transformer

from relic.generate import sampler
from relic.generate.config import Sampler
from relic.generate.noise import noise


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
