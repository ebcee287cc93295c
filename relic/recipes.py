"""Named full configurations: every dial of every step. Loads no torch.

A recipe's docstring gives its command, hardware, time and measured result, or "not run"."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from relic.data.config import Curate, Shard
from relic.evaluate.config import Evaluate, Revisit
from relic.generate.config import Rollout, Sampler
from relic.launch.config import Deploy
from relic.memory.config import Memory
from relic.mistakes import UserError, allowed
from relic.model.config import Codec, PoseNet, Transformer
from relic.recipe import Recipe, gate
from relic.recipes_wan import relic_14b, wan_1b
from relic.train.config import (
    Checkpointing,
    CodecTraining,
    Distill,
    Optimizer,
    PoseNetTraining,
    Stage,
    StudentInit,
    Teacher,
    Trajectories,
)
from relic.worlds.config import Doom


def tiny() -> Recipe:
    """The demo: Doom walks of 96x64 pixels and 3.8 s, on 2 cores in 10 minutes. `make demo`.

    Distilled student on held-out walks: +0.43 dB over the still frame, win rate 0.958 (docs/results.md)."""
    schedule = (1,) + (2,) * 17  # a latent has 4x6 tokens: the paper's factor 4, for 30x52, would leave 1x2
    # 11 of a clip's 16 latents end up compressed
    memory = Memory(window=4, capacity=16, schedule=schedule, weigh_pooled=True)
    rollout = Rollout(chunk=2, memory=memory)
    gentle = Optimizer(muon=True, learning_rate=3e-4, warmup=10)
    adversarial = Optimizer(muon=True, betas=(0.0, 0.999), warmup=2)
    return Recipe(
        name="tiny",
        curate=Curate(train=160, known=36, unseen=16),
        codec=CodecTraining(
            start="tiny/codec",
            steps=120,
            piece_frames=9,
            optimizer=Optimizer(learning_rate=7e-4, warmup=10, final_share=0.02),
        ),
        teacher=Teacher(
            start="tiny/base",
            stages=(Stage(latents=8, steps=80, batch=16), Stage(latents=16, steps=60, batch=8)),
            optimizer=gentle,
            ema=0.98,
        ),
        trajectories=Trajectories(clips=96),
        student_init=StudentInit(
            steps=250, noisy_chunks=3, rollout=rollout, optimizer=replace(gentle, learning_rate=5e-4)
        ),
        distill=Distill(
            stages=(Stage(latents=8, steps=8, batch=8), Stage(latents=16, steps=6, batch=4)),
            rollout=rollout,
            critic_steps=2,
            guidance=1.0,  # the captions of the maps hardly differ
            ema=0.9,
            optimizer=replace(adversarial, learning_rate=1e-4),
            critic_optimizer=replace(adversarial, learning_rate=2e-4),
        ),
        evaluate=Evaluate(
            base="tiny/base",
            sampler=Sampler(steps=16),
            rollout=rollout,
            revisit=Revisit(min_away=24),  # no return is within the window and the chunk
        ),
        expected_s={
            "curate": 33,
            "join-clips": 2,
            "codec": 85,
            "pose-net": 55,
            "shard": 8,
            "join-samples": 1,
            "teacher": 100,
            "trajectories": 85,
            "student-init": 125,
            "distill": 60,
            "evaluate": 240,
            "export": 2,
            "deploy": 11,
        },
    )


def tiny_scratch() -> Recipe:
    """The demo from nothing, without the start weights, half an hour on 2 shared cores. `make demo FROM_SCRATCH=1`.

    Distilled student on held-out walks: -1.11 dB against the still frame, win rate 0.833 (docs/results.md)."""
    base = tiny()
    return replace(
        base,
        name="tiny_scratch",
        codec=replace(base.codec, start="", steps=400, batch=4, optimizer=Optimizer(learning_rate=1.5e-3)),
        teacher=replace(
            base.teacher,
            start="",
            stages=(Stage(latents=8, steps=300, batch=16), Stage(latents=16, steps=60, batch=8)),
            optimizer=Optimizer(muon=True, learning_rate=1.5e-3),
        ),
        evaluate=replace(base.evaluate, base=""),
        deploy=Deploy(gate=gate(gain_db=-20.0, win_rate=0.0)),  # minutes from nothing reach no bar worth the name
    )


def tiny_base() -> Recipe:
    """How the start weights that ship with relic are trained: two and a half hours on 2 shared cores, of which one core
    for the last 80 minutes (weights/tiny/weights.json).

    Base on held-out walks: +0.47 dB over the still frame, win rate 0.958 (docs/results.md)."""
    scratch = tiny_scratch()
    return replace(
        scratch,
        name="tiny_base",
        curate=replace(scratch.curate, train=3200, known=40, unseen=0, seed=1000),
        codec=replace(
            scratch.codec, steps=2500, optimizer=Optimizer(learning_rate=1.5e-3, warmup=50, final_share=0.02)
        ),
        shard=Shard(palindromes=1.0),
        teacher=replace(
            scratch.teacher,
            stages=(Stage(latents=8, steps=1800, batch=16), Stage(latents=16, steps=4200, batch=8)),
            optimizer=Optimizer(muon=True, learning_rate=1.5e-3, warmup=100, final_share=0.02),
            ema=0.998,
        ),
    )


def small() -> Recipe:
    """One GPU, an hour: Doom walks of 224x128 pixels and 4.8 s. `relic pipeline run --recipe small --parts 8`.

    Not run."""
    rollout = Rollout(chunk=2, memory=Memory(window=4, capacity=20))
    pretraining = Optimizer(muon=True, learning_rate=1e-3, warmup=200, final_share=0.02)
    return Recipe(
        name="small",
        curate=Curate(train=3000, known=80, unseen=40, num_frames=77, doom=Doom(height=128, width=224)),
        codec=CodecTraining(
            model=Codec(decoder_widths=(128, 96, 64, 64)),
            steps=6000,
            batch=16,
            piece_frames=9,
            piece_size=96,
            optimizer=Optimizer(learning_rate=1e-3, warmup=100, final_share=0.02),
        ),
        pose_net=PoseNetTraining(model=PoseNet(width=112), steps=8000, batch=24),
        teacher=Teacher(
            model=Transformer(width=512, ffn=2048, layers=12, heads=8),
            stages=(Stage(latents=8, steps=10000, batch=32), Stage(latents=20, steps=3000, batch=16)),
            optimizer=pretraining,
            ema=0.999,
        ),
        trajectories=Trajectories(clips=1024, batch=32, steps=48, latents=20),
        student_init=StudentInit(
            ode_steps=48,
            latents=20,
            steps=2000,
            batch=16,
            noisy_chunks=3,
            rollout=rollout,
            optimizer=replace(pretraining, learning_rate=3e-4),
        ),
        distill=Distill(
            stages=(Stage(latents=8, steps=250, batch=32), Stage(latents=20, steps=150, batch=16)),
            rollout=rollout,
            guidance=1.0,
            optimizer=Optimizer(learning_rate=2e-5, betas=(0.0, 0.999), warmup=0, final_share=1.0),
            critic_optimizer=Optimizer(learning_rate=4e-5, betas=(0.0, 0.999), warmup=0, final_share=1.0),
        ),
        evaluate=Evaluate(
            known=64,
            unseen=32,
            num_latents=20,
            batch=16,
            sampler=Sampler(steps=32),
            rollout=rollout,
            revisit=Revisit(min_away=24),
        ),
    )


def quick() -> Recipe:
    """For tests: the whole pipeline, start weights included, in about a minute; it learns nothing. Not run."""
    base = tiny()
    maps = Doom(train_maps=("freedoom2/MAP01", "freedoom2/MAP04"), unseen_maps=("freedoom2/MAP05",))
    rollout = replace(base.evaluate.rollout, memory=Memory(window=2, capacity=8))
    stages = (Stage(latents=4, steps=10, batch=4), Stage(latents=8, steps=10, batch=2))
    return replace(
        base,
        name="quick",
        curate=replace(base.curate, doom=maps, train=6, known=4, unseen=4, num_frames=29),
        codec=replace(base.codec, steps=10, batch=2, piece_frames=5, piece_size=32),
        pose_net=replace(base.pose_net, steps=10, batch=2),
        teacher=replace(base.teacher, stages=stages, checkpoint=Checkpointing(every_s=0.5)),
        trajectories=replace(base.trajectories, clips=4, batch=2, steps=12, latents=8),
        student_init=replace(base.student_init, latents=8, steps=10, batch=2, rollout=rollout),
        distill=replace(
            base.distill,
            stages=(Stage(latents=4, steps=2, batch=2), Stage(latents=8, steps=2, batch=2)),
            rollout=rollout,
            critic_steps=1,
        ),
        evaluate=replace(
            base.evaluate,
            known=2,
            unseen=2,
            num_latents=8,
            sampler=Sampler(steps=4),
            rollout=rollout,
            strips=2,
            script_starts=1,
            script_latents=4,
            revisit=Revisit(min_away=8),
        ),
        deploy=Deploy(gate=gate(gain_db=-2.0, win_rate=0.0)),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (tiny, tiny_scratch, tiny_base, small, quick, wan_1b, relic_14b)
}


def named(name: str, recipes: dict[str, Callable[[], Any]] = RECIPES) -> Any:
    """The recipe of this name; `tiny-scratch` is `tiny_scratch`."""
    if (plain := name.replace("-", "_")) in recipes:
        return recipes[plain]()
    raise UserError(f"there is no recipe {name!r}; {allowed(plain, recipes)}")
