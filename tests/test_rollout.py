"""The one rollout."""

import gc
import warnings

import pytest
import torch
from tiny_models import conditions, latents, remembered, transformer

from relic.generate.config import Rollout as Config
from relic.generate.rollout import Rollout, play
from relic.geometry import actions as algorithm1
from relic.memory import masks
from relic.memory.config import POLICIES, Memory
from relic.model.attention import KeyValue
from relic.model.conditions import Conditions

EXACT = Memory(window=12, capacity=16, dtype="fp32")


def rollout(chunk: int = 2, memory: Memory = EXACT, seed: int = 0, batch: int = 1, **dials) -> Rollout:
    cfg = Config(chunk=chunk, memory=memory, **dials)
    text = conditions(1, batch).text
    return Rollout(transformer(), cfg, image_latent=latents(1, batch)[:, 0], text=text, seed=seed)


def actions(count: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, count, 13, generator=torch.Generator().manual_seed(seed))


def walked(num_latents: int, batch: int = 1, **dials) -> tuple[Rollout, torch.Tensor]:
    walk, every = rollout(batch=batch, **dials), actions(4 * (num_latents - 1) + 1, batch=batch)
    made, _ = play(walk, every, num_latents=num_latents)
    return walk, made


def uncached(walk: Rollout, made: torch.Tensor, memory: Memory, chunk: int = 2) -> tuple[torch.Tensor, list[KeyValue]]:
    """Velocity, and every block's keys and values, of clean latents in one call under the mask of training."""
    count = made.shape[1]
    every = actions(4 * (count - 1) + 1)
    every[:, 0] = torch.eye(13)[12]
    given = Conditions(every, algorithm1.integrate(every, walk.unit).float(), walk.text)
    segments = masks.hybrid(count, chunk, 0, memory)
    with torch.no_grad():
        return walk.model(made, torch.zeros(1, count), given, segments=segments, remember=True)


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_every_chunk_size_gives_the_latents_it_announced(chunk: int):
    memory = Memory(window=4, capacity=12, dtype="fp32")
    walk, made = walked(16, chunk=chunk, memory=memory)
    assert made.shape == (1, 16, 4, 8, 12)
    assert made.isfinite().all()
    assert walk.num_frames == 61
    assert walk.poses.shape == (1, 4 * chunk, 4, 4)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_cached_equals_uncached(chunk: int):
    memory = Memory(window=2, capacity=16, policy="full", dtype="fp32")
    walk, made = walked(8, chunk=chunk, memory=memory)
    _, own = uncached(walk, made, memory, chunk)
    keys, values, _ = remembered(walk.memory)
    torch.testing.assert_close(keys, torch.stack([kv.keys for kv in own]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, torch.stack([kv.values for kv in own]), atol=1e-5, rtol=1e-5)


def test_a_pass_over_the_memory_equals_the_uncached_pass():
    memory = Memory(window=2, capacity=16, policy="full", dtype="fp32")
    walk, made = walked(8, memory=memory)
    before, every = rollout(memory=memory), actions(29)
    for start in range(0, 6, 2):
        before.see(every[:, before.num_frames : before.num_frames + before.num_actions], made[:, start : start + 2])
    before._begin(every[:, before.num_frames :])
    with torch.no_grad():
        velocity, _ = before._forward(made[:, 6:], torch.zeros(1, 2), remember=False)
    torch.testing.assert_close(velocity, uncached(walk, made, memory)[0][:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weigh_pooled", [False, True])
@pytest.mark.parametrize("policy", ["relic", "window"])
def test_cached_equals_uncached_with_compression(policy: str, weigh_pooled: bool):
    memory = Memory(policy=policy, window=2, capacity=16, dtype="fp32", weigh_pooled=weigh_pooled)
    walk, made = walked(10, memory=memory)
    _, own = uncached(walk, made, memory)
    keys, _, _ = remembered(walk.memory)
    window = 2 * 24
    torch.testing.assert_close(
        keys[:, :, -window:], torch.stack([kv.keys for kv in own])[:, :, -window:], atol=1e-5, rtol=1e-5
    )


def test_walks_that_share_a_context_take_turns():
    alone = [walked(8, seed=seed)[1] for seed in (0, 1)]
    one, two = rollout(seed=0), rollout(seed=1)
    two.context = one.context
    every, made = actions(29), [[latents(1)], [latents(1)]]
    while one.num_latents < 8:
        for walk, found in zip((one, two), made, strict=True):
            found.append(walk.step(every[:, walk.num_frames : walk.num_frames + walk.num_actions]))
    assert all(torch.equal(torch.cat(found, 1), other) for found, other in zip(made, alone, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_walk_goes_back_to_a_snapshot(policy: str):
    walk, _ = walked(8, memory=Memory(policy=policy, window=2, capacity=8, landmarks=3, retrieved=2))
    snapshot = walk.branch()
    once = [walk.step(actions(8, seed)) for seed in (1, 2)]
    elsewhere = [snapshot.branch().step(actions(8, seed)) for seed in (3, 4)]
    back = snapshot.branch()
    again = [back.step(actions(8, seed)) for seed in (1, 2)]
    assert all(map(torch.equal, once, again))
    assert not torch.equal(*elsewhere)


def test_noisy_context_saves_the_pass_over_clean_latents(monkeypatch):
    calls = []
    forward = Rollout._forward
    monkeypatch.setattr(Rollout, "_forward", lambda *a, **k: calls.append(k) or forward(*a, **k))
    for context, passes in (("clean", 5), ("noisy", 4)):
        calls.clear()
        walk, _ = walked(2, context=context)
        assert len(calls) == passes
        assert calls[-1]["remember"]
        assert walk.memory.num_latents == 2


def test_a_walk_keeps_no_keys_and_values_of_a_pass_beside_its_memory():
    def kept() -> int:
        return sum(type(x) is KeyValue for x in gc.get_objects())

    gc.collect()
    before = kept()
    walks = [walked(6, context=context)[0] for context in ("clean", "noisy")]
    assert kept() == before
    assert len(walks) == 2


def test_what_was_truly_seen_is_remembered_like_what_was_made():
    walk, made = walked(6)
    other = rollout()
    every = actions(21)
    for start in range(0, 6, 2):
        other.see(every[:, other.num_frames : other.num_frames + other.num_actions], made[:, start : start + 2])
    assert all(map(torch.equal, remembered(walk.memory), remembered(other.memory)))
    assert torch.equal(walk.step(actions(8, 3)), other.step(actions(8, 3)))


def test_a_step_asks_the_device_nothing():
    from torch.utils._python_dispatch import TorchDispatchMode

    asked = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            asked.append(func.__name__)
            return func(*args, **(kwargs or {}))

    memory = Memory(policy="relic_landmarks", window=2, capacity=8, landmarks=3, retrieved=2)
    walk, _ = walked(12, memory=memory)
    with Watching():
        walk.step(actions(8))
    waits = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}
    assert not waits & {name.split(".")[0] for name in asked}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_pass_is_replayed_as_a_cuda_graph():
    walk = Rollout(
        transformer().cuda(), Config(memory=Memory(window=2, capacity=8)), image_latent=latents(1)[:, 0].cuda(),
        text=conditions(1).text.cuda(), seed=0,
    )  # fmt: skip
    for count in (4, 8, 8, 8):
        walk.step(actions(count).cuda())
    given = actions(8).pin_memory()
    with warnings.catch_warnings(action="ignore"):  # the mode is a prototype, torch says
        torch.cuda.set_sync_debug_mode("error")
    try:
        walk.step(given.cuda(non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    noisy, timesteps = (x.clone() for x in walk.last[:2])
    with torch.no_grad():
        expected, _ = walk._forward(noisy, timesteps, remember=False)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured, _ = walk._forward(noisy, timesteps, remember=False)
        graph.replay()
    torch.testing.assert_close(captured, expected)


def test_encoding_pooled_latents_keeps_what_pooling_keys_keeps_where_a_picture_is_even():
    even = latents(6)[..., :1, :1].expand(-1, -1, -1, 8, 12).contiguous()
    found = []
    for pooled in ("keys", "latents"):
        walk = rollout(memory=Memory(window=2, capacity=16, dtype="fp32", schedule=(1, 2), pooled=pooled))
        for start in range(0, 6, 2):
            walk.see(actions(8)[:, : walk.num_actions], even[:, start : start + 2])
        keys, values, positions = remembered(walk.memory)
        found.append([x[:1, :, (positions[:, 0] == 1)] for x in (keys, values)])  # the first block: no attention yet
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_encoding_pooled_latents_is_another_thing_where_it_is_not():
    found = []
    for pooled in ("keys", "latents"):
        walk, _ = walked(8, memory=Memory(window=2, capacity=16, dtype="fp32", schedule=(1, 2), pooled=pooled))
        found.append(remembered(walk.memory)[0])
    assert found[0].shape == found[1].shape
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_the_same_seed_walks_the_same_way():
    torch.testing.assert_close(walked(6)[1], walked(6)[1], atol=0, rtol=0)
    assert not torch.equal(walked(6)[1], walked(6, seed=1)[1])


def test_a_walk_longer_than_the_capacity_goes_on():
    walk, made = walked(24, memory=Memory(window=4, capacity=8, dtype="fp8"))
    assert made.isfinite().all()
    assert len(walk.memory.slots) == 8


def test_a_wrong_number_of_actions_is_refused():
    with pytest.raises(ValueError, match="3 actions were given; the next chunk takes 4"):
        rollout().step(actions(3))


def test_memory_that_is_shuffled_changes_what_follows():
    walk, _ = walked(12, memory=Memory(window=2, capacity=16, dtype="fp32"))
    other, _ = walked(12, memory=Memory(window=2, capacity=16, dtype="fp32"))
    for part in other.memory.parts()[1:-1]:
        part.write(part.read(slice(None)).flip(3))
    step = actions(8, seed=3)
    assert (walk.step(step) - other.step(step)).abs().max() > 1e-4
