"""Recipes of Wan-2.1's sizes, with the paper's dials where it names them (arXiv 2512.04040). Loads no torch.

The paper is silent on distillation's rates, critic steps and average (here Self-Forcing's, arXiv 2506.08009), and on
batch, rates, the trajectories and steps of the student's initialisation, and the width of the control paths (here our
choice, untried)."""

from dataclasses import replace

from relic.data.config import Curate, Shard
from relic.evaluate.config import Evaluate, Revisit
from relic.generate.config import Rollout, Sampler
from relic.launch.config import Deploy
from relic.memory.config import Memory
from relic.model.config import TAEHV, PoseNet, Transformer
from relic.parallel.config import Parallel
from relic.recipe import Recipe, gate
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

VIDEO = 80  # latents of 20 s: 317 frames
UMT5 = "wan/text"  # its folder, see docs/weights.md


def wan_1b() -> Recipe:
    """RELIC on Wan-2.1's 1.3B: walks of 832x480 pixels and 20 s at 16 frames a second.
    `relic pipeline run --recipe wan_1b`; your walks lie in walks/ (docs/data.md), Wan's weights and umT5 in wan/
    (docs/weights.md).

    Meant for 32 GPUs of 80 GB; `relic plan --recipe wan_1b --gpus 32` says what they hold. Not run, and it cannot be
    yet: docs/weights.md says what is missing."""
    rollout = Rollout(chunk=4, memory=Memory(window=8, capacity=VIDEO))
    model = Transformer(
        width=1536, ffn=8960, layers=30, heads=12, control_width=256,
        text_width=4096, text_tokens=512, text_vocabulary=0, trained_frames=21, frames=21,
    )  # fmt: skip
    finetuning = Optimizer(learning_rate=1e-5, betas=(0.9, 0.999), warmup=100, final_share=1.0)
    adversarial = Optimizer(learning_rate=2e-6, betas=(0.0, 0.999), warmup=0, final_share=1.0)
    return Recipe(
        name="wan_1b",
        curate=Curate(
            source="folder",
            folder="walks",
            height=480,
            width=832,
            num_frames=317,
            fps=16.0,
            train=20000,
            known=220,
            unseen=0,
        ),
        codec=CodecTraining(pretrained="wan/vae", model=TAEHV),  # `model`: the decoder that serves, for `relic plan`
        pose_net=PoseNetTraining(
            model=PoseNet(height=128, width=224), steps=20000, batch=24, checkpoint=Checkpointing(every_s=600.0)
        ),
        shard=Shard(batch=1, shard_bytes=2**30, text_encoder=UMT5),
        teacher=Teacher(
            model=model,
            start="wan/1b",
            stages=(
                Stage(latents=21, steps=5000, batch=64),
                Stage(latents=40, steps=1000, batch=64),
                Stage(latents=VIDEO, steps=4000, batch=64),
            ),
            optimizer=finetuning,
            checkpoint=Checkpointing(every_s=1800.0),
        ),
        trajectories=Trajectories(clips=1024, batch=1, steps=48, latents=VIDEO),
        student_init=StudentInit(
            ode_steps=48,
            latents=VIDEO,
            noisy_chunks=3,
            rollout=rollout,
            steps=3000,
            batch=64,
            optimizer=replace(finetuning, learning_rate=5e-6),
            checkpoint=Checkpointing(every_s=1800.0),
        ),
        distill=Distill(
            stages=(
                Stage(latents=20, steps=250, batch=64),  # 21 are no whole chunks; the teacher of 21 supervises them
                Stage(latents=40, steps=150, batch=64),
                Stage(latents=VIDEO, steps=150, batch=64),
            ),
            rollout=rollout,
            critic_steps=5,
            guidance=3.0,
            ema=0.99,
            optimizer=adversarial,
            critic_optimizer=replace(adversarial, learning_rate=4e-7),
            checkpoint=Checkpointing(every_s=1800.0),
        ),
        evaluate=Evaluate(
            known=220,
            unseen=0,
            text_encoder=UMT5,
            num_latents=VIDEO,
            batch=2,  # walks exchange what they have pooled
            sampler=Sampler(steps=48, shift=5.0, guidance=3.0),
            rollout=rollout,
            script_latents=20,
            revisit=Revisit(min_away=48),  # no return is within the window and the chunk
        ),
        parallel=Parallel(
            zero=1, checkpointing=True, compile=True, samples=1, timeout_s=7200.0
        ),  # docs/training.md says why
        deploy=Deploy(gate=gate(gain_db=0.01, win_rate=0.8), text_encoder=UMT5),
    )


def relic_14b() -> Recipe:
    """RELIC as the paper builds it, on Wan-2.1's 14B: walks of 832x480 pixels and 20 s at 16 frames a second.
    `relic pipeline run --recipe relic_14b`; your walks lie in walks/ (docs/data.md), Wan's weights and umT5 in wan/
    (docs/weights.md).

    Meant for the paper's 32 H100 of 80 GB, and 4 of them to serve; `relic plan --recipe relic_14b --gpus 32` says what
    they hold. Not run, and it cannot be yet: docs/weights.md says what is missing."""
    base = wan_1b()
    model = replace(base.teacher.model, width=5120, ffn=13824, layers=40, heads=40)
    teacher = replace(base.teacher, model=model, start="wan/14b")
    return replace(base, name="relic_14b", teacher=teacher, parallel=replace(base.parallel, zero=3))
