"""Sequence parallelism: shared by two and by four processes a model computes what it computes alone."""

from dataclasses import replace
from typing import Any

import pytest
import ranks
import torch
from tiny_models import CFG, conditions, latents, transformer

from relic.generate.config import Rollout as Walking
from relic.generate.rollout import Rollout, play
from relic.memory import masks
from relic.memory.config import POLICIES, Memory
from relic.model import precision
from relic.model.transformer import Transformer
from relic.parallel import mesh as meshes
from relic.parallel import sequence
from relic.parallel.config import Parallel

MODEL = replace(CFG, heads=4)
PLAIN = Memory(window=2, capacity=8, schedule=(1, 2, 4))
MEMORIES = {policy: replace(PLAIN, policy=policy) for policy in POLICIES[:-1]}
MEMORIES[POLICIES[-1]] = replace(PLAIN, policy=POLICIES[-1], landmarks=2, retrieved=1)


def shared(world: int) -> Transformer:
    precision.native_bfloat16 = lambda device: False  # type: ignore[assignment]
    model = transformer(MODEL)
    sequence.share(model, meshes.joined(Parallel(sequence=world)).sequence)
    return model


def everything(world: int) -> dict[str, Any]:
    """What a model gives: of all latents, of 3 x 3 tokens, under a mask; its gradients; walks, and their memory."""
    model, given, times = shared(world), conditions(4, batch=2), torch.full((2, 4), 500.0)
    narrow = latents(4, batch=2)[..., :6, :6].contiguous()  # 9 tokens, which neither 2 nor 4 share equally
    segments = masks.hybrid(4, 2, 1, MEMORIES["relic"])
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["9 tokens"] = model(narrow, times, given)[0]
        found["masked"] = model(latents(4, batch=2), times, given, segments=segments)[0]
    whole = model(latents(4, batch=2), times, given)[0]
    whole.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    meshes.joined(Parallel(sequence=world)).average(gradients)
    found |= {"whole": whole.detach(), "gradients": torch.cat([gradient.flatten() for gradient in gradients])}
    for policy, memory in MEMORIES.items():
        walk = Rollout(
            model, Walking(chunk=2, memory=memory), image_latent=latents(1)[:, 0], text=conditions(1).text, seed=0
        )
        found[policy], _ = play(walk, conditions(8).actions, num_latents=8)
        found[f"{policy}, heads"] = walk.memory.heads
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return ranks.run(everything, 1, 1)[0]


@pytest.mark.parametrize("world", [2, 4])
def test_shared_it_computes_what_it_computes_alone(world: int, alone: dict[str, Any]) -> None:
    for found in ranks.run(everything, world, world):
        for name, value in found.items():
            if name.endswith("heads"):
                assert value == MODEL.heads // world
            else:
                assert (value - alone[name]).norm() < 1e-5 * alone[name].norm(), name


def test_every_process_has_a_token_more_or_less() -> None:
    shared_by = sequence.Ulysses.__new__(sequence.Ulysses)
    for shared_by.size in (1, 2, 3, 4):
        sizes = shared_by.sizes(10)
        assert sum(sizes) == 10
        assert max(sizes) - min(sizes) <= 1
        assert sizes[0] == max(sizes)
