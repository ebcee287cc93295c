"""The passes through a model that a training step makes: what is computed, and how often weights and tokens travel.

Counted as relic/train/{teacher,student_init,distill}.py make them, for one group of processes. Pooled latents, which
`Memory.pooled` may ask to be encoded again, are small and left out. No torch."""

from collections.abc import Iterator
from typing import NamedTuple

from relic.model.config import Transformer
from relic.train import flops
from relic.train.config import Distill
from relic.train.footprint import Pass


class Passes(NamedTuple):
    """Passes of one kind."""

    given: Pass
    times: float = 1  # a step
    graph: bool = False  # each is followed by its backward


def distill(cfg: Distill, video: Pass, *, exits: float) -> Iterator[Passes]:
    """Those for one piece of a batch. `video` is a whole video; `exits`: passes of a chunk until it is clean, which a
    step draws from 1 to the number of timesteps, so its mean is a fraction."""
    walk = list(chunks(cfg, video, exits))
    for _ in range(cfg.critic_steps):
        yield from walk
        yield Passes(video, graph=True)
    yield from walk
    yield Passes(video, 1 if cfg.guidance == 1 else 2)  # the teacher's score
    yield Passes(video)  # the critic's
    for chunk in chunks(cfg, video, 0):
        yield chunk._replace(times=1, graph=True)
        yield chunk._replace(times=1)  # its clean latents are remembered, or its noisy ones once more


def chunks(cfg: Distill, video: Pass, exits: float) -> Iterator[Passes]:
    """A rollout's, a chunk's denoising and the pass that is remembered."""
    rollout = cfg.rollout
    for start in range(0, video.latents, rollout.chunk):
        past = rollout.memory.tokens(video.rows, video.columns, start, rollout.chunk)
        given = Pass(
            latents=rollout.chunk, rows=video.rows, columns=video.columns, batch=video.batch, low=video.low, past=past
        )
        denoised = 0 if rollout.chunk == 1 and not start else exits  # the image is not
        yield Passes(given, denoised + (rollout.context == "clean" or not denoised))


def computed(model: Transformer, passes: list[Passes]) -> float:
    """Floating-point operations of passes and backwards, each of which takes twice a pass; what checkpointing computes
    again is not counted, as is usual for MFU."""
    return sum(one.times * (3 if one.graph else 1) * flops.forward(model, one.given).total for one in passes)
