"""The product's distillation on a known law (tests/known_law.py): a student that is far from it reaches it.

Distances are in floors: the distance between two samples of the law itself, as large as those compared. The controls
show that the proof can fail."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from known_law import LENGTH, MODEL, Law, Samples, conditions, distances
from torch import Tensor
from torch.nn import functional

from relic.data.loader import Dataset
from relic.generate import sampler
from relic.generate.config import Rollout, Sampler
from relic.memory import masks
from relic.memory.config import Memory
from relic.model import flow
from relic.model.transformer import Transformer
from relic.tracking import Run
from relic.train import distill, optimizer, teacher
from relic.train.config import Checkpointing, Distill, Optimizer, Stage
from relic.train.draws import Draws

COUNT, CHUNK = 1024, 2
CFG = Distill(
    stages=(Stage(latents=LENGTH, steps=200, batch=256),), guidance=1.0, critic_steps=3, shift=1.0, ema=0.95,
    rollout=Rollout(chunk=CHUNK, timesteps=(1000.0, 500.0), memory=Memory(window=2, capacity=8, dtype="fp32")),
    optimizer=Optimizer(learning_rate=1.5e-3, betas=(0.0, 0.99), warmup=10, final_share=0.05, weight_decay=0),
    critic_optimizer=Optimizer(learning_rate=7e-3, betas=(0.9, 0.99), warmup=0, final_share=0.05, weight_decay=0),
    checkpoint=Checkpointing(every_s=1e9),
)  # fmt: skip
FITTING = Optimizer(learning_rate=1e-2, warmup=5, final_share=0.05, weight_decay=0)
LAW = Law()


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """The same on every processor."""
    monkeypatch.setattr("relic.model.precision.native_bfloat16", lambda device: False)


@functools.cache
def true() -> Tensor:
    return LAW.sample(COUNT, seed=1)


@functools.cache
def floor() -> dict[str, float]:
    """The mean distance of samples of the law to another one."""
    found = [distances(LAW.sample(COUNT, seed=seed), true(), CHUNK) for seed in range(10, 15)]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def floors(videos: Tensor) -> dict[str, float]:
    return {name: value / floor()[name] for name, value in distances(videos, true(), CHUNK).items()}


def mixed(made: Tensor) -> Tensor:
    """Every first chunk with the second one of another video."""
    return torch.cat([made[:, :CHUNK], made[:, CHUNK:].roll(1, 0)], 1)


def videos(student: Transformer, seed: int, *, count: int = COUNT, exit_step: int = -1) -> Tensor:
    """What a student makes of the law's images."""
    images = Samples(LAW.sample(count, seed=1000 + seed)).batch(list(range(count)), num_latents=LENGTH)
    return distill.roll_out(student, CFG, images, exit_step, Draws((seed,), range(count))).latents


def of_all_exits(student: Transformer) -> Tensor:
    """Videos that leave at either exit step, as the critic sees them: the law of these is what is matched. Those of the
    last exit step, which are served, may lie to one side of it and the others to the other."""
    half = COUNT // 2
    return torch.cat([videos(student, 0, exit_step=0)[:half], videos(student, 0, exit_step=1)[half:]])


def fit(model: Transformer, seed: int, loss_of: Callable[[Draws, int], Tensor], steps: int = 200) -> None:
    """Trains a model for a while."""
    optimizers = optimizer.Optimizers(model, FITTING)
    for step in range(steps):
        loss = loss_of(Draws((seed, step), range(256)), step)
        loss.backward()
        optimizer.update(model, optimizers, loss, FITTING, optimizer.rate(FITTING, step, steps))


def jump_loss(student: Transformer, states: Tensor, random: Draws) -> Tensor:
    """Of the jumps from states [level, video, F, C, H, W], a level for every chunk, to the last ones."""
    rows = random.integers(states.shape[1], 1)
    picked = random.integers(len(states) - 1, LENGTH // CHUNK).repeat_interleave(CHUNK, 1)
    noisy, clean = states[picked, rows, torch.arange(LENGTH)], states[-1, rows[:, 0]]
    timesteps = torch.tensor(CFG.rollout.timesteps)[picked]
    timesteps[:, 0] = 0
    segments = masks.hybrid(LENGTH, CHUNK, LENGTH // CHUNK, CFG.rollout.memory)
    velocity, _ = student(noisy, timesteps, conditions(256), segments=segments)
    return functional.mse_loss(flow.clean_of(noisy, velocity, timesteps)[:, 1:], clean[:, 1:])


@functools.cache
def begun(seed: int) -> tuple[Transformer, Transformer]:
    """A student of another law, by ODE initialisation; and a critic that knows its videos. The other law's sides are
    nearer to each other and lie elsewhere, and its latents follow less."""
    other = cast(Transformer, Law(side=0.4, centre=0.4, following=0.4))
    path = sampler.trajectory(
        other, Sampler(steps=24, shift=1.0), image_latent=LAW.sample(4096, seed=3000 + seed)[:, 0],
        conditions=conditions(4096), num_latents=LENGTH, seed=(seed,),
    )  # fmt: skip
    kept = {round(time, 1): state for time, state in path}
    states = torch.stack([kept[time] for time in (*CFG.rollout.timesteps, 0.0)])
    torch.manual_seed(seed)
    student, critic = Transformer(MODEL), Transformer(MODEL)
    fit(student, seed, lambda random, _: jump_loss(student, states, random))

    def of_student(random: Draws, step: int) -> Tensor:
        made = videos(student, 1000 * seed + step, count=256, exit_step=step % 2)
        return teacher.flow_loss(critic, made, conditions(256), CFG.shift, random)

    fit(critic, seed, of_student)
    return student, critic


def distilled(cfg: Distill, seed: int, out: Path) -> Transformer:
    student, critic = copy.deepcopy(begun(seed))
    dataset = cast(Dataset, Samples(LAW.sample(COUNT, seed=2000 + seed)))
    return distill.train(
        replace(cfg, seed=seed), student, critic, teacher_of=lambda _: cast(Transformer, LAW),
        dataset=dataset, out=out, run=Run.silent(),
    )[0]  # fmt: skip


def test_what_the_teachers_flow_leads_to_is_of_the_law():
    *_, (_, made) = sampler.trajectory(
        cast(Transformer, LAW), Sampler(steps=100, shift=1.0), image_latent=LAW.sample(COUNT, seed=2)[:, 0],
        conditions=conditions(COUNT), num_latents=LENGTH, seed=(0,),
    )  # fmt: skip
    assert max(floors(made).values()) < 1.3


def test_chunks_of_different_videos_are_far_as_a_whole_and_at_the_floor_each():
    found = floors(mixed(LAW.sample(COUNT, seed=2)))
    assert found["joint"] > 2
    assert max(found["chunk 0"], found["chunk 1"]) < 1.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_student_far_from_the_law_reaches_it(seed: int, tmp_path: Path):
    before, student = floors(videos(begun(seed)[0], 0)), distilled(CFG, seed, tmp_path)
    served, made = floors(videos(student, 0)), of_all_exits(student)
    after = floors(made)
    assert min(before.values()) > 5
    assert max(after.values()) < 2.5
    assert served["joint"] < 5  # 2 to 3.7, as rounding has it; with a critic that stands still 28
    assert max(served.values()) < 6
    assert floors(mixed(made))["joint"] > after["joint"] + 0.4  # its chunks belong together


@pytest.mark.slow
def test_with_a_critic_that_stands_still_it_does_not(tmp_path: Path):
    student = distilled(replace(CFG, critic_steps=0), 0, tmp_path)
    assert min(floors(of_all_exits(student))["joint"], floors(videos(student, 0))["joint"]) > 3


@pytest.mark.slow
def test_with_the_score_differences_of_other_videos_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = distill.score_difference
    monkeypatch.setattr(distill, "score_difference", lambda *given: own(*given).roll(1, 0))
    student = distilled(CFG, 0, tmp_path)
    assert min(floors(of_all_exits(student))["joint"], floors(videos(student, 0))["joint"]) > 3
