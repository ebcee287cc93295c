"""ODE initialisation with hybrid forcing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CFG, conditions, latents, transformer, whole_and_resumed, write_samples

from relic.data import loader
from relic.generate.config import Rollout, Sampler
from relic.generate.sampler import trajectory
from relic.memory.config import Memory
from relic.model import flow, weights
from relic.tracking import Run
from relic.train import student_init, teacher
from relic.train.config import Stage, StudentInit, Teacher

QUICK = StudentInit(
    trajectories=4, trajectory_batch=2, ode_steps=4, latents=4, noisy_chunks=1, steps=3, batch=2,
    rollout=Rollout(chunk=2, memory=Memory(window=2, capacity=8)), checkpoint_every_s=-1,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    weights.save(transformer(), folder / "teacher")
    return {"teacher": [folder / "teacher"], "samples": write_samples(folder / "samples")}


def test_resumed_equals_uninterrupted(inputs, tmp_path):
    whole, resumed = whole_and_resumed(student_init.main, QUICK, tmp_path, killed_at=1, **inputs)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_trajectories_that_are_there_are_not_solved_again(inputs, tmp_path, monkeypatch):
    teacher, dataset = weights.load_transformer(inputs["teacher"][0]), loader.load(inputs["samples"], CFG)
    first = list(student_init.solve(QUICK, teacher, dataset, tmp_path, Run.silent()))
    monkeypatch.setattr(student_init.sampler, "trajectory", None)
    assert list(student_init.solve(QUICK, teacher, dataset, tmp_path, Run.silent())) == first


def test_the_kept_states_are_those_of_the_teachers_flow(inputs, tmp_path):
    teacher, dataset = weights.load_transformer(inputs["teacher"][0]), loader.load(inputs["samples"], CFG)
    states, _ = student_init.read(list(student_init.solve(QUICK, teacher, dataset, tmp_path, Run.silent())))
    batch = dataset.batch(dataset.indices(1, 0, 2), num_latents=4)
    path = trajectory(
        teacher, Sampler(steps=4, shift=5.0), image_latent=batch.latents[:, 0], conditions=batch.conditions,
        num_latents=4, seed=(0, 0),
    )  # fmt: skip
    again = torch.stack([x for _, x in path], 1)
    torch.testing.assert_close(states[:2].float(), again, atol=1e-2, rtol=1e-2)


def test_a_model_of_embeddings_is_taught_and_started_with_the_empty_prompt(inputs, tmp_path):
    embedded, taught = replace(CFG, text_vocabulary=0), Stage(latents=2, steps=1, batch=2)
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    cfg = Teacher(model=embedded, stages=(taught,), text_dropout=0.5)
    teacher.main(cfg, samples=inputs["samples"], out=tmp_path / "teacher", run=Run.silent())
    given = {"teacher": [tmp_path / "teacher"], "samples": inputs["samples"]}
    student_init.main(QUICK, **given, out=tmp_path / "student", run=Run.silent())
    _, conditions = student_init.read(sorted((tmp_path / "student").glob(".trajectories-*.safetensors")))
    batch = loader.load(inputs["samples"], embedded).batch([0], num_latents=4)
    assert torch.equal(conditions.empty, batch.conditions.empty)
    assert conditions.text.shape == (4, 4, 8)


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
