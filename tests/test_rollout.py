"""The one rollout."""

import pytest
import torch
from tiny_models import CFG, conditions, latents, transformer

from relic.generate.config import Rollout as Config
from relic.generate.rollout import Rollout
from relic.memory import masks
from relic.memory.config import Memory
from relic.model.conditions import Conditions

EXACT = Memory(window=15, capacity=16, dtype="fp32")


def rollout(chunk: int = 2, memory: Memory = EXACT, seed: int = 0) -> Rollout:
    cfg = Config(chunk=chunk, memory=memory)
    return Rollout(transformer(), cfg, image_latent=latents(1)[:, 0], text=conditions(1).text, seed=seed)


def actions(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, count, 13, generator=torch.Generator().manual_seed(seed))


def walked(num_latents: int, **dials) -> tuple[Rollout, torch.Tensor]:
    walk, every = rollout(**dials), actions(4 * (num_latents - 1))
    made, done = [], 0
    while walk.num_latents < num_latents:
        step = walk.num_actions
        made.append(walk.step(every[:, done : done + step]))
        done += step
    return walk, torch.cat(made, 1)


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_every_chunk_size_gives_the_latents_it_announced(chunk: int):
    walk, made = walked(8, chunk=chunk)
    assert made.shape == (1, 7, 4, 8, 12)
    assert walk.poses.shape == (1, 29, 4, 4)


def test_cached_equals_uncached():
    walk, made = walked(6, memory=Memory(window=15, capacity=16, schedule=(1,), dtype="fp32"))
    clean = torch.cat([latents(1), made], 1)
    given = Conditions(walk.actions, walk.poses.float(), walk.text)
    with torch.no_grad():
        _, own = walk.model(clean, torch.zeros(1, 6), given, segments=masks.hybrid(6, 2, 0, EXACT), remember=True)
    keys, values = walk.memory.view()
    torch.testing.assert_close(keys, torch.stack([kv.keys for kv in own]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, torch.stack([kv.values for kv in own]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weigh_pooled", [False, True])
def test_cached_equals_uncached_with_compression(weigh_pooled: bool):
    memory = Memory(window=2, capacity=16, dtype="fp32", weigh_pooled=weigh_pooled)
    walk, made = walked(8, memory=memory)
    clean = torch.cat([latents(1), made], 1)
    given = Conditions(walk.actions, walk.poses.float(), walk.text)
    with torch.no_grad():
        _, own = walk.model(clean, torch.zeros(1, 8), given, segments=masks.hybrid(8, 2, 0, memory), remember=True)
    keys, _ = walk.memory.view()
    window = 2 * 24
    torch.testing.assert_close(
        keys[:, :, -window:], torch.stack([kv.keys for kv in own])[:, :, -window:], atol=1e-5, rtol=1e-5
    )


def test_the_same_seed_walks_the_same_way():
    torch.testing.assert_close(walked(6)[1], walked(6)[1], atol=0, rtol=0)
    assert not torch.equal(walked(6)[1], walked(6, seed=1)[1])


def test_a_walk_longer_than_the_capacity_goes_on():
    walk, made = walked(24, memory=Memory(window=4, capacity=8, dtype="fp8"))
    assert made.isfinite().all()
    assert len(walk.memory.slots) == 8


def test_a_walk_that_waits_holds_no_second_copy_of_its_memory():
    assert walked(6)[0].past is None


def test_a_wrong_number_of_actions_is_refused():
    with pytest.raises(ValueError, match="3 actions were given; the next chunk takes 4"):
        rollout().step(actions(3))


def test_memory_that_is_shuffled_changes_what_follows():
    walk, _ = walked(12, memory=Memory(window=2, capacity=16, dtype="fp32"))
    other, _ = walked(12, memory=Memory(window=2, capacity=16, dtype="fp32"))
    old = slice(24, other.memory.used - 2 * 24)
    other.memory.storage[:, :, :, old] = other.memory.storage[:, :, :, old].flip(3)
    step = actions(8, seed=3)
    assert (walk.step(step) - other.step(step)).abs().max() > 1e-4


def test_the_widths_of_the_tests_are_as_stated():
    assert (CFG.latent_channels, CFG.text_tokens) == (4, 4)
