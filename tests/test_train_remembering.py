"""What a causal model is trained on is what it meets on a walk."""

import pytest
import torch
from tiny_models import conditions, draws, latents, transformer

from relic.generate.config import Rollout
from relic.generate.rollout import Pass
from relic.generate.rollout import Rollout as Walk
from relic.geometry.actions import integrate
from relic.geometry.config import Actions
from relic.memory import masks
from relic.memory.config import POLICIES, Memory
from relic.model import flow
from relic.model.conditions import Conditions
from relic.train.remembering import remembered_loss


def config(policy: str) -> Rollout:
    memory = Memory(policy=policy, window=2, capacity=16, schedule=(1, 2), weigh_pooled=True, dtype="fp32", retrieved=3)
    return Rollout(chunk=2, memory=memory)


def given(num_latents: int) -> Conditions:
    found = conditions(num_latents)
    found.actions[:, 0] = torch.eye(13)[12]
    return Conditions(found.actions, integrate(found.actions, Actions()).float(), found.text)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_loss_of_a_noisy_chunk_is_that_of_the_same_chunk_on_a_walk(policy, monkeypatch):
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)
    cfg, model, clean, control = config(policy), transformer(), latents(8), given(8)
    every = (
        {4: (1,), 6: (1, 2, 3)} if policy == "relic_landmarks" else {}
    )  # all that have left the window but the image
    loss = remembered_loss(model, clean, control, cfg, first=6, shift=3.0, draws=draws(1), landmarks=every)
    # the same numbers drawn once more
    random = draws(1)
    timesteps = flow.shifted(random.uniform(1), 3.0).repeat(1, 2)
    noise = random.normal(2, *clean.shape[2:])
    walk = Walk(model, cfg, image_latent=clean[:, 0], text=control.text, seed=0)
    for start in range(0, 6, 2):
        rows = control.actions[:, walk.num_frames :][:, : walk.num_actions]
        walk.see(rows, clean[:, start : start + 2])
    noisy = flow.add_noise(clean[:, 6:], noise, timesteps)
    guess = walk.replay(control.actions[:, 21:], Pass(noisy, timesteps, torch.zeros(())))
    velocity = (noisy - guess) / flow.level(timesteps)
    torch.testing.assert_close(loss, (velocity - (noise - clean[:, 6:])).square().mean(), atol=0, rtol=1e-5)


def test_a_landmark_is_seen_whole_beside_its_pooled_self():
    segments = masks.beside(12, 2, 10, config("relic_landmarks").memory, landmarks={10: (3,)})
    assert segments[-1].start == 10
    assert {(3, 1), (3, 2)} <= set(segments[-1].seen)
    assert (3, 1) not in segments[-2].seen


def test_noisy_chunks_do_not_see_each_other():
    segments = masks.beside(12, 2, 6, config("full").memory)
    assert [s.seen[-2:] for s in segments[-3:]] == [((10, 1), (11, 1)), ((12, 1), (13, 1)), ((14, 1), (15, 1))]
    assert all(latent < 10 for s in segments[-3:] for latent, _ in s.seen[:-2])


@pytest.mark.parametrize(("length", "first"), [(9, 4), (8, 3), (8, 8), (18, 4)])
def test_lengths_that_do_not_divide_by_the_chunk_or_pass_the_capacity_are_refused(length, first):
    with pytest.raises(ValueError, match=f"latent {first} of {length}"):
        masks.beside(length, 2, first, config("relic").memory)
