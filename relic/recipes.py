"""Named full configurations: every dial of every step. Loads no torch.

A recipe's docstring gives its command, hardware, time and measured result, or "not run"."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from relic.data.config import Curate, Shard
from relic.evaluate.config import Evaluate
from relic.generate.config import Rollout, Sampler
from relic.memory.config import Memory
from relic.mistakes import UserError, allowed
from relic.train.config import CodecTraining, Stage, StudentInit, Teacher


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    curate: Curate = field(default_factory=Curate)
    codec: CodecTraining = field(default_factory=CodecTraining)
    shard: Shard = field(default_factory=Shard)
    teacher: Teacher = field(default_factory=Teacher)
    student_init: StudentInit = field(default_factory=StudentInit)
    evaluate: Evaluate = field(default_factory=Evaluate)
    expected_s: Mapping[str, float] = field(default_factory=dict)  # step of the graph -> seconds, for the estimate


def tiny() -> Recipe:
    """The demo: Doom walks of 96x64 pixels on 2 cores. `make demo`. Not run."""
    return Recipe(name="tiny")


def tiny_scratch() -> Recipe:
    """The demo from nothing, without the start weights. `make demo FROM_SCRATCH=1`. Not run."""
    base = tiny()
    return replace(
        base,
        name="tiny_scratch",
        codec=replace(base.codec, start=""),
        teacher=replace(base.teacher, start=""),
        evaluate=replace(base.evaluate, base=""),
    )


def tiny_base() -> Recipe:
    """How the start weights that ship with relic are trained. Not run."""
    scratch = tiny_scratch()
    decoder = replace(scratch.codec.optimizer, learning_rate=1.5e-3, warmup=50, final_share=0.02)
    muon = replace(scratch.teacher.optimizer, muon=True, learning_rate=1.5e-3, warmup=100, final_share=0.02)
    return replace(
        scratch,
        name="tiny_base",
        curate=replace(scratch.curate, train=3200, known=40, unseen=0, seed=1000),
        codec=replace(scratch.codec, steps=2500, batch=4, piece_frames=9, optimizer=decoder),
        teacher=replace(
            scratch.teacher,
            stages=(Stage(latents=8, steps=2700, batch=16), Stage(latents=16, steps=900, batch=8)),
            optimizer=muon,
            ema=0.998,
        ),
    )


def small() -> Recipe:
    """One GPU, an hour. Not run."""
    return replace(tiny(), name="small")


def quick() -> Recipe:
    """For tests: the whole pipeline in about a minute; it learns nothing. Not run."""
    base = tiny_scratch()
    rollout = Rollout(chunk=2, memory=Memory(window=2, capacity=8))
    model = replace(base.teacher.model, width=64, ffn=128, layers=2, heads=2, trained_frames=4, frames=8)
    stages = (Stage(latents=4, steps=10, batch=4), Stage(latents=8, steps=10, batch=4))
    return replace(
        base,
        name="quick",
        curate=replace(base.curate, train=6, known=3, unseen=2, num_frames=29),
        codec=replace(base.codec, steps=20, batch=2, piece_frames=5, piece_size=32),
        teacher=replace(base.teacher, model=model, stages=stages, ema=0.8),
        student_init=replace(
            base.student_init,
            trajectories=4,
            trajectory_batch=4,
            ode_steps=12,
            latents=8,
            steps=10,
            batch=4,
            rollout=rollout,
        ),
        evaluate=replace(
            base.evaluate, known=2, unseen=1, num_latents=8, sampler=Sampler(steps=4), rollout=rollout, strips=2
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (tiny, tiny_scratch, tiny_base, small, quick)
}


def named(name: str, recipes: dict[str, Callable[[], Any]] = RECIPES) -> Any:
    """The recipe of this name; `tiny-scratch` is `tiny_scratch`."""
    if (plain := name.replace("-", "_")) in recipes:
        return recipes[plain]()
    raise UserError(f"there is no recipe {name!r}; {allowed(plain, recipes)}")
