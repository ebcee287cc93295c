"""The student's initialisation from stored trajectories: hybrid forcing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CFG, conditions, latents, transformer, whole_and_resumed, write_samples

from relic.data import loader
from relic.generate.config import Rollout
from relic.memory import masks
from relic.memory.config import Memory
from relic.model import flow, weights
from relic.tracking import Run
from relic.train import student_init, teacher, trajectories
from relic.train.config import Checkpointing, Stage, StudentInit, Teacher, Trajectories
from relic.train.draws import Draws

ODE = Trajectories(clips=4, batch=2, steps=4, latents=4, verified=0)
QUICK = StudentInit(
    latents=4, noisy_chunks=1, steps=3, batch=2, rollout=Rollout(chunk=2, memory=Memory(window=2, capacity=8)),
    causal_steps=2, ode_steps=4, checkpoint=Checkpointing(every_s=-1),
)  # fmt: skip


def solved(folder: Path) -> dict[str, list[Path]]:
    """The inputs of a student whose teacher lies in `folder`."""
    teachers, samples, out = [folder / "teacher"], write_samples(folder / "samples"), folder / "trajectories"
    out.mkdir()
    trajectories.main(ODE, teacher=teachers, samples=samples, out=out, run=Run.silent())
    return {"teacher": teachers, "samples": samples, "trajectories": [out]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    weights.save(transformer(), folder / "teacher")
    return solved(folder)


@pytest.mark.parametrize(
    ("initialisation", "killed_at"), [("ode", 1), ("causal_ode", 1), ("causal_ode", 3), ("consistency", 4)]
)
def test_resumed_equals_uninterrupted(inputs, tmp_path, initialisation, killed_at):
    cfg = replace(QUICK, initialisation=initialisation)
    whole, resumed = whole_and_resumed(student_init.main, cfg, tmp_path, killed_at=killed_at, **inputs)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_model_of_embeddings_is_taught_and_started_with_the_empty_prompt(tmp_path):
    embedded, taught = replace(CFG, text_vocabulary=0), Stage(latents=2, steps=1, batch=2)
    cfg = Teacher(model=embedded, stages=(taught,), text_dropout=0.5)
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    teacher.main(cfg, samples=write_samples(tmp_path / "samples"), out=tmp_path / "teacher", run=Run.silent())
    given = solved(tmp_path)
    student_init.main(QUICK, **given, out=tmp_path / "student", run=Run.silent())
    found = trajectories.load(given["trajectories"], ODE.timesteps, 4).conditions(range(4))
    batch = loader.load(given["samples"], embedded).batch([0], num_latents=4)
    assert torch.equal(found.empty, batch.conditions.empty)
    assert found.text.shape == (4, 4, 8)


class Truth(torch.nn.Module):
    """Knows where every trajectory ends, and notes what it is asked."""

    def __init__(self, found: trajectories.Solved):
        super().__init__()
        self.ends = torch.stack([found.state(n, len(found.timesteps)).float() for n in range(len(found))])
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked: list[tuple] = []

    def forward(self, noisy, timesteps, conditions, *, segments):
        self.asked.append((noisy, timesteps, segments))
        ends = self.ends[:, : noisy.shape[1]]
        nearest = (noisy[:, None, :1] - ends[None, :, :1]).abs().flatten(2).sum(-1).argmin(1)  # by the image latent
        levels = flow.level(timesteps)
        return (noisy - ends[nearest]) / levels.where(levels > 0, 1), []


@pytest.mark.parametrize("forcing", ["hybrid", "teacher", "diffusion"])
def test_who_knows_the_ends_has_no_loss_and_is_asked_of_stored_states(inputs, forcing):
    found = trajectories.load(inputs["trajectories"], ODE.timesteps, 4)
    cfg, truth = replace(QUICK, forcing=forcing, rollout=replace(QUICK.rollout, chunk=1), noisy_chunks=2), Truth(found)
    levels = dict(zip(torch.tensor([*ODE.timesteps, 0.0]).tolist(), range(5), strict=True))
    for step in range(8):
        assert student_init.jump_loss(truth, Draws((0, 1, step), range(cfg.batch)), solved=found, cfg=cfg) < 1e-9
        noisy, timesteps, _ = truth.asked[-1]
        noisy_from = max(1, noisy.shape[1] - cfg.num_noisy)
        assert (timesteps[:, :noisy_from] == 0).all()
        assert (timesteps[:, noisy_from:] > 0).all()
        for at, t in enumerate(timesteps[0].tolist()):
            stored = [found.state(n, levels[t], at, at + 1)[0].float() for n in range(4)]
            assert any(torch.equal(noisy[0, at], state) for state in stored)


def test_landmarks_are_clean_latents_drawn_anew_and_shown_whole(inputs):
    memory = Memory(policy="relic_landmarks", window=2, capacity=8, landmarks=2, retrieved=1, schedule=(1, 2, 4))
    cfg = replace(QUICK, rollout=Rollout(chunk=1, memory=memory))
    found = trajectories.load(inputs["trajectories"], ODE.timesteps, 4)
    truth, seen = Truth(found), set()
    for step in range(20):
        student_init.jump_loss(truth, Draws((0, 1, step), range(cfg.batch)), solved=found, cfg=cfg)
        noisy, _, segments = truth.asked[-1]
        plain = masks.hybrid(noisy.shape[1], 1, 1, memory)
        more = set(segments[-1].seen) - set(plain[-1].seen)
        assert len(more) == min(1, noisy.shape[1] - 2)
        seen |= more
    assert seen == {(1, 1), (2, 1)}


def test_the_jumps_of_stored_trajectories_are_learned(inputs, tmp_path):
    cfg = replace(QUICK, steps=40, batch=4, optimizer=replace(QUICK.optimizer, learning_rate=3e-3), ema=0.9)
    said = student_init.main(cfg, **inputs, out=tmp_path, run=Run.silent())
    assert said["loss"] < 0.8 * said["loss_before"]


def test_an_exact_jump_has_no_loss():
    clean, noise = latents(4, seed=1), latents(4, seed=2)
    timesteps = torch.tensor([[0.0, 937.5, 833.3, 625.0]])
    guess = flow.clean_of(flow.add_noise(clean, noise, timesteps), noise - clean, timesteps)
    torch.testing.assert_close(guess, clean, atol=1e-4, rtol=0)


def test_conditions_follow_the_rows_and_the_length():
    every = conditions(4, batch=3)
    picked = every.rows(torch.tensor([2, 0])).latents(0, 2)
    assert torch.equal(picked.actions, every.actions[[2, 0], :5])


def test_steps_that_miss_a_timestep_are_refused():
    with pytest.raises(ValueError, match=r"7 steps with shift 5\.0 do not pass"):
        StudentInit(ode_steps=7)


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(ValueError, match="initialisation is 'odd'; allowed are ode, causal_ode, consistency"):
        StudentInit(initialisation="odd")


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_length_is_whole_chunks_with_a_latent_to_learn(chunk):
    cfg, generator = replace(QUICK, latents=8, rollout=replace(QUICK.rollout, chunk=chunk)), np.random.default_rng(0)
    found = {student_init.causal.random_length(cfg, generator) for _ in range(100)}
    assert found == set(range(max(2, chunk), 9, chunk))
