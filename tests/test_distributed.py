"""A training on several processes is the same training: gradients in float32, weights after five steps in float64."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import in_double
import pytest
import ranks
import torch
from tiny_models import CFG, transformer, write_samples

from relic import place
from relic.generate.config import Rollout
from relic.memory.config import Memory
from relic.model import precision, weights
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.tracking import Run
from relic.train import distill, saved, student_init, teacher, trajectories
from relic.train.config import Checkpointing, Distill, Optimizer, Stage, StudentInit, Teacher, Trajectories

MODEL = replace(CFG, heads=4)
ADAMW = Optimizer(learning_rate=1e-3, warmup=0, clip_norm=1e9)
ROLLOUT = Rollout(chunk=2, memory=Memory(window=2, capacity=8))
LONG = pytest.mark.distributed
ODE = Trajectories(clips=8, batch=4, steps=4, latents=4, verified=0)
CASES = {
    "2": (2, Parallel()),
    "4": (4, Parallel()),
    "2, sequence 2": (2, Parallel(sequence=2)),
    "4, sequence 2, pieces": (4, Parallel(sequence=2, samples=1, checkpointing=True)),
    "4, sequence 4": (4, Parallel(sequence=4)),
    "2, ZeRO 1": (2, Parallel(zero=1)),
    "2, ZeRO 2, pieces": (2, Parallel(zero=2, samples=1)),
    "2, ZeRO 3": (2, Parallel(zero=3)),
    "2, ZeRO 3, offload": (2, Parallel(zero=3, offload="all")),
    "4, ZeRO 3, sequence 2, checkpointing": (4, Parallel(zero=3, sequence=2, checkpointing=True)),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    weights.save(transformer(MODEL), folder / "teacher" / "stage-4")
    weights.save(transformer(MODEL), folder / "teacher")
    weights.save(transformer(MODEL, seed=1), folder / "student")
    found = {"teacher": [folder / "teacher"], "samples": write_samples(folder / "samples", count=16)}
    (folder / "ode").mkdir()
    trajectories.main(
        ODE, teacher=found["teacher"], samples=found["samples"], out=folder / "ode", run=Run.silent()
    )  # fmt: skip
    return {**found, "student": [folder / "student"], "trajectories": [folder / "ode"]}


def every(inputs: dict[str, list[Path]], out: Path, parallel: Parallel, *, also: bool = True) -> None:
    """Teacher, student-init and distill: one step in float32, then five in float64; their checkpoints stay in `out`."""
    precision.native_bfloat16 = lambda device: False  # type: ignore[assignment]
    for double in (False, True):
        if double:
            in_double.turn_on()
            if parallel.zero:
                in_double.turn_on_deepspeed()
        steps, kind = (5, "double") if double else (1, "single")
        for name, train in trainings(inputs, steps).items():
            mesh = meshes.joined(parallel)
            folder = out / kind / name
            if mesh.is_first:
                folder.mkdir(parents=True)
            mesh.wait()
            train(folder, mesh)


def trainings(inputs: dict[str, list[Path]], steps: int) -> dict[str, Callable[[Path, meshes.Mesh], object]]:
    kept, run = Checkpointing(every_s=0), Run.silent()
    given = {name: inputs[name] for name in ("teacher", "samples")}
    stages = (Stage(latents=4, steps=steps, batch=4),)
    fit = Teacher(model=MODEL, start=str(inputs["teacher"][0]), stages=stages, optimizer=ADAMW, checkpoint=kept)
    jumps = StudentInit(
        latents=4, steps=steps, batch=4, rollout=ROLLOUT, ode_steps=4, optimizer=ADAMW, checkpoint=kept
    )  # fmt: skip
    match = Distill(
        stages=stages, rollout=ROLLOUT, critic_steps=1, optimizer=ADAMW, critic_optimizer=ADAMW, checkpoint=kept
    )  # fmt: skip
    return {
        "teacher": lambda out, mesh: teacher.main(fit, samples=inputs["samples"], out=out, run=run, mesh=mesh),
        "student": lambda out, mesh: student_init.main(
            jumps, **given, trajectories=inputs["trajectories"], out=out, run=run, mesh=mesh
        ),
        "critic": lambda out, mesh: distill.main(
            match, **given, student=inputs["student"], out=out, run=run, mesh=mesh
        ),
    }


@pytest.fixture(scope="module")
def alone(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    ranks.run(every, 1, inputs, out, Parallel())
    return out


def left(out: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a training's newest checkpoint."""
    training = "jumps" if name == "student" else ""
    found, damaged = saved.newest(place.opened(Checkpointing().place(out / name, training)), meshes.Mesh())
    assert found is not None
    assert not damaged
    return {tensor: found.whole(tensor) for tensor in found.tensors}


def gradient(found: dict[str, torch.Tensor], model: str) -> torch.Tensor:
    return torch.cat([value.flatten() for name, value in sorted(found.items()) if name.startswith(f"{model}/exp_avg/")])


SHORT = ("4, sequence 2, pieces", "2, ZeRO 2, pieces", "4, ZeRO 3, sequence 2, checkpointing")


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in SHORT else LONG) for case in CASES])
def test_it_is_the_same_training(case: str, alone: Path, inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    world, parallel = CASES[case]
    ranks.run(every, world, inputs, tmp_path, parallel)
    for name in ("teacher", "student", "critic"):
        before, after = (left(folder / "single", name) for folder in (alone, tmp_path))
        for model in {tensor.split("/")[0] for tensor in before}:
            # the first moment after the first step is the gradient, times a number
            one, other = (gradient(found, model) for found in (before, after))
            assert (other - one).norm() < 1e-5 * one.norm(), (name, model)
        before, after = (left(folder / "double", name) for folder in (alone, tmp_path))
        assert before.keys() == after.keys()
        for tensor, value in before.items():
            torch.testing.assert_close(after[tensor], value, atol=1e-9, rtol=0, msg=f"{name} {tensor}".format)
