"""Passes as CUDA graphs: a walk is what it is without them."""

import numpy as np
import pytest
import torch
from exports import IMAGE, codec
from test_engine import UNIT, WORLD, forward, step
from tiny_models import CFG, transformer

from relic.generate.config import Rollout
from relic.memory.config import POLICIES, Memory
from relic.pretrained import words
from relic.serve import engine

CUDA = torch.device("cuda")


def student(context: str = "clean", chunk: int = 2) -> engine.Student:
    cfg = Rollout(
        chunk=chunk, timesteps=(1000.0, 625.0), context=context,
        memory=Memory(window=2, capacity=8, schedule=(1, 2, 1), dtype="fp8"),
    )  # fmt: skip
    said = words.of(CFG, "", "cuda")
    made = codec().cuda()
    return engine.Student(transformer().cuda(), made, cfg, words=said, unit=UNIT, world=WORLD, device=CUDA)


def walks(made: engine.Student, chunks: int) -> list[list[np.ndarray]]:
    """Two walks in turns, each from its own seed."""
    both = [made.open(IMAGE, "a hall", seed) for seed in (0, 1)]
    found: list[list[np.ndarray]] = [[], []]
    for _ in range(chunks):
        for frames, walk in zip(found, both, strict=True):
            frames.append(step(walk, forward(walk.num_actions))[0])
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("context", "chunk"), [("clean", 2), ("noisy", 2), ("clean", 1)])
def test_walks_in_turns_are_what_they_are_without_graphs(context: str, chunk: int):
    plain, fast = student(context, chunk), student(context, chunk)
    engine.make_fast(fast, compile=False, replay=True)
    for wanted, found in zip(walks(plain, 20), walks(fast, 20), strict=True):
        apart = [np.abs(a.astype(int) - b).max() for a, b in zip(wanted, found, strict=True)]
        assert max(apart) <= 2, apart


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_warm_engine_captures_nothing_more():
    fast = student()
    engine.make_fast(fast, compile=False, replay=True)
    walk = fast.open(IMAGE, "a hall", 0)
    for _ in range(fast.warm_chunks):
        step(walk, forward(walk.num_actions))
    warm = len(fast.model.forward.captured)
    for _ in range(30):
        step(walk, forward(walk.num_actions))
    assert len(fast.model.forward.captured) == warm


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("context", ["clean", "noisy"])
def test_a_warm_walk_is_the_same_alone_gone_back_to_and_restored(context: str):
    fast = student(context)
    engine.make_fast(fast, compile=False, replay=True)
    other, walk = (fast.open(IMAGE, "a hall", seed) for seed in (1, 0))
    for _ in range(fast.warm_chunks):
        step(other, forward(other.num_actions))
    step(walk, forward(walk.num_actions))
    moment, restored = walk.branch(), fast.restore(walk.state())
    wanted = [step(walk, forward(walk.num_actions))[0] for _ in range(8)]
    for again in (moment.branch(), restored, moment.branch()):
        for frames in wanted:
            assert (step(again, forward(again.num_actions))[0] == frames).all()
            step(other, forward(other.num_actions))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("chunk", "capacity"), [(1, 8), (2, 8), (4, 12), (3, 11)])
def test_every_number_of_tokens_has_come_after_the_states(chunk: int, capacity: int, policy: str):
    memory = Memory(policy=policy, window=2, capacity=capacity, schedule=(1, 2, 1, 4, 2))
    seen = [memory.tokens(6, 10, latents, chunk) for latents in range(chunk, 400, chunk)]
    states = engine.num_states(Rollout(chunk=chunk, memory=memory))
    assert set(seen[states - 1 :]) <= set(seen[: states - 1])
