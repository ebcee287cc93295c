"""A causal model of many steps, and how its steps become few."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CFG, conditions, draws, latents, transformer, write_samples

from relic.data import loader
from relic.generate.config import Rollout
from relic.memory.config import Memory
from relic.model import flow, weights
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import causal, student_init
from relic.train.config import Checkpointing, Optimizer, StudentInit
from relic.train.draws import Draws
from relic.train.optimizer import Ema, Optimizers, update
from relic.train.watch import Watch

ROLLOUT = Rollout(chunk=2, memory=Memory(window=2, capacity=8))
QUICK = StudentInit(
    initialisation="causal_ode", latents=4, batch=4, rollout=ROLLOUT, ode_steps=4, causal_steps=30, steps=30,
    text_dropout=0.0, ema=0.5, optimizer=Optimizer(learning_rate=3e-3, warmup=1), checkpoint=Checkpointing(every_s=1e9),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> loader.Dataset:
    return loader.load(write_samples(tmp_path_factory.mktemp("samples")), CFG)


def videos(clean: torch.Tensor | None = None) -> causal.Videos:
    """Of three chunks, the last of them to be learned."""
    return causal.Videos(latents(6, batch=2) if clean is None else clean, conditions(6, batch=2), 4, ())


def path(model: Transformer, found: causal.Videos) -> torch.Tensor:
    return causal.trajectory(model, found, QUICK, draws(2))


def learned(
    loss_of: student_init.Loss, model: Transformer, average: Ema, rows: int, steps: int = 30
) -> tuple[float, float]:
    """The loss on the same draws before some steps down it and after them."""

    def measured() -> float:
        with torch.no_grad():
            return float(np.mean([loss_of(model, Draws((0, 2, index), range(rows))).item() for index in range(8)]))

    optimizers, before = Optimizers(model, QUICK.optimizer), measured()
    for step in range(steps):
        loss = loss_of(model, Draws((0, 1, step), range(rows)))
        loss.backward()
        update(model, optimizers, loss, QUICK.optimizer, QUICK.optimizer.learning_rate)
        average.update(model, step)
    return before, measured()


class Exact(torch.nn.Module):
    """Its velocity leads from wherever it is asked to `clean`."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.asked: list[tuple] = []

    def forward(self, noisy, timesteps, conditions, *, segments):
        self.asked.append((noisy, timesteps, conditions))
        levels = flow.level(timesteps)
        return (noisy - self.clean[:, : noisy.shape[1]]) / levels.where(levels > 0, 1), []


# The causal model of many steps


@pytest.mark.parametrize(("noisy_chunks", "first_noisy"), [(1, 4), (2, 2), (3, 1)])
def test_flow_matching_asks_of_the_noisy_chunks_only(noisy_chunks: int, first_noisy: int) -> None:
    clean = latents(6, batch=2)
    exact: Any = Exact(clean)
    loss = causal.flow_loss(
        exact, clean, conditions(6, batch=2), ROLLOUT, noisy_chunks=noisy_chunks, shift=3.0,
        draws=draws(2),
    )  # fmt: skip
    noisy, timesteps, _ = exact.asked[0]
    assert loss < 1e-9
    assert torch.equal(noisy[:, :first_noisy], clean[:, :first_noisy])
    assert (timesteps > 0).tolist() == [[i >= first_noisy for i in range(6)]] * 2


def test_flow_matching_learns_from_data(dataset: loader.Dataset, tmp_path) -> None:
    model = transformer()
    drawn = causal.drawn(QUICK, dataset, (0, 0, 4), draws(4), "cpu")

    @torch.no_grad()
    def loss(model: Transformer) -> float:
        return causal.flow_loss(
            model, drawn.latents, drawn.conditions, ROLLOUT, noisy_chunks=1, shift=3.0, draws=draws(4)
        ).item()

    before = loss(model)
    weights.save(model, tmp_path / "start")
    with Watch(Run.silent(), Mesh(), folder=None, stages=[("causal", QUICK.causal_steps)]) as watch:
        folder = causal.train(QUICK, tmp_path / "start", dataset, tmp_path, watch, Mesh())
    assert loss(weights.load_transformer(folder)) < 0.8 * before


# Its trajectories


def test_a_trajectory_is_a_function_of_the_true_chunks_before_it_and_of_no_other() -> None:
    model, own, before = transformer(), latents(6, batch=2), latents(6, batch=2)
    own[:, 4:] += 1
    before[:, 3] += 1
    found = path(model, videos())
    assert torch.equal(path(model, videos(own)), found)
    assert (path(model, videos(before))[:, 1:] - found[:, 1:]).abs().amax((2, 3, 4, 5)).min() > 1e-3


def test_a_trajectory_begins_in_noise_and_follows_the_model() -> None:
    model, found = transformer(), videos()
    states = path(model, found)
    timesteps = causal.spread(torch.tensor([1000.0, 1000.0]), found)
    noisy = torch.cat([found.latents[:, :4], states[:, 0]], 1)
    with torch.no_grad():
        moved = noisy + causal.velocity(model, noisy, timesteps, found, QUICK) * (937.5 - 1000) / 1000
    assert 0.8 < states[:, 0].std() < 1.2
    torch.testing.assert_close(states[:, 1], moved[:, 4:], atol=1e-4, rtol=0)


def test_causal_jumps_regress_the_ends_at_every_timestep(dataset: loader.Dataset) -> None:
    student: Any = Exact(torch.zeros(8, 4, 4, 8, 12))
    student.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    cfg = replace(QUICK, batch=8)
    loss = causal.jump_loss(student, draws(2), teacher=transformer(), dataset=dataset, cfg=cfg)
    again = draws(2)
    given = causal.drawn(cfg, dataset, (cfg.seed, 0, 2), again, "cpu")
    states, (noisy, timesteps, asked) = causal.trajectory(transformer(), given, cfg, again), student.asked[0]
    torch.testing.assert_close(timesteps[:, -1], torch.tensor([*ROLLOUT.timesteps] * 2))
    for clip, level in ((0, 0), (0, 3), (1, 2)):
        assert torch.equal(noisy[4 * clip + level, given.first_noisy :], states[clip, level])
        assert torch.equal(asked.actions[4 * clip + level], given.conditions.actions[clip])
    torch.testing.assert_close(loss, states[:, -1].square().mean())


# The jumps


def test_a_jump_from_the_end_stays_there() -> None:
    found, end = videos(), torch.zeros(2)
    noisy = latents(6, batch=2, seed=5)
    assert torch.equal(causal.jump(transformer(), noisy, end, found, QUICK), noisy[:, 4:])


def test_the_consistency_target_at_the_last_timestep_is_the_clean_end() -> None:
    found, noise = videos(), latents(6, batch=2, seed=7)
    last, end = torch.full((2,), 625.0), torch.zeros(2)
    noisy = flow.add_noise(found.latents, noise, causal.spread(last, found))
    exact: Any = Exact(found.latents)
    target = causal.consistency_target(transformer(), exact, noisy, last, end, found, QUICK)
    torch.testing.assert_close(target, found.latents[:, 4:], atol=1e-5, rtol=0)


def test_the_consistency_target_is_the_averages_jump_from_where_the_teacher_steps_to() -> None:
    found, teacher, average = videos(), transformer(), transformer(seed=1)
    now, following = torch.tensor([1000.0, 937.5]), torch.tensor([937.5, 625.0])
    noisy = torch.cat([found.latents[:, :4], latents(2, batch=2, seed=7)], 1)
    velocity = causal.velocity(teacher, noisy, causal.spread(now, found), found, QUICK)
    moved = torch.stack([noisy[0] - 0.0625 * velocity[0], noisy[1] - 0.3125 * velocity[1]])
    moved[:, :4] = found.latents[:, :4]
    wanted = causal.jump(average, moved, following, found, QUICK)
    target = causal.consistency_target(average, teacher, noisy, now, following, found, QUICK)
    torch.testing.assert_close(target, wanted, atol=1e-3, rtol=0)
    assert not target.requires_grad


def test_causal_jumps_are_learned(dataset: loader.Dataset) -> None:
    student = transformer(seed=1)
    loss_of = partial(causal.jump_loss, teacher=transformer(), dataset=dataset, cfg=QUICK)
    before, after = learned(loss_of, student, Ema(student, QUICK.ema), causal.clips(QUICK))
    assert after < 0.8 * before


def test_consistency_is_learned_and_with_it_the_jumps_to_the_end(dataset: loader.Dataset) -> None:
    teacher, student, cfg = transformer(), transformer(seed=1), replace(QUICK, ode_steps=8)
    ema = Ema(student, cfg.ema)
    loss_of = partial(causal.consistency_loss, teacher=teacher, average=ema.module, dataset=dataset, cfg=cfg)

    @torch.no_grad()
    def jumps() -> float:
        drawn = [Draws((0, 2, index), range(causal.clips(cfg))) for index in range(8)]
        found = [causal.jump_loss(student, each, teacher=teacher, dataset=dataset, cfg=cfg) for each in drawn]
        return torch.stack(found).mean().item()

    from_noise = jumps()
    before, after = learned(loss_of, student, ema, cfg.batch, steps=40)
    assert after < 0.5 * before
    assert jumps() < 0.5 * from_noise
