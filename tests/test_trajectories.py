"""The step that solves the teacher's ODE."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CFG, transformer, write_samples

from relic.data import loader
from relic.generate.config import Sampler
from relic.generate.sampler import trajectory
from relic.model import weights
from relic.tracking import Run
from relic.train import trajectories
from relic.train.config import Trajectories

QUICK = Trajectories(clips=5, batch=2, steps=4, latents=4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    weights.save(transformer(), folder / "teacher")
    return {"teacher": [folder / "teacher"], "samples": write_samples(folder / "samples", count=6)}


def solved(
    inputs: dict[str, list[Path]], out: Path, *, parts: int = 1, cfg: Trajectories = QUICK
) -> tuple[list[Path], list[dict[str, float]]]:
    """The folders of all parts, and what they say."""
    folders = [out / f"{part}-of-{parts}" for part in range(parts)]
    said = []
    for part, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        said.append(trajectories.main(cfg, **inputs, out=folder, run=Run.silent(), part=part, parts=parts))
    return folders, said


def files_of(folders: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in folders for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def one(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    ((folder,), _) = solved(inputs, tmp_path_factory.mktemp("one"))
    return folder


@pytest.mark.parametrize("parts", [3, 4])
def test_the_parts_together_are_the_whole_bit_by_bit(
    inputs: dict[str, list[Path]], one: Path, tmp_path: Path, parts: int
) -> None:
    folders, said = solved(inputs, tmp_path, parts=parts)
    assert files_of(folders) == files_of([one])
    assert sum(len(list(folder.glob("*.safetensors"))) for folder in folders) == 3
    assert [found["trajectories"] for found in said] == [2, 2, 1, 0][:parts]


def test_no_sample_is_solved_again_before_the_others_had_their_turn(inputs: dict[str, list[Path]]) -> None:
    dataset = loader.load(inputs["samples"], CFG)
    dataset.sets = [replace(dataset.sets[0], weights=(2.0, 2.0, 0.5, 0.5, 0.5, 0.5))]
    assert sorted(trajectories.chosen(replace(QUICK, clips=6), dataset)) == list(range(6))
    assert len(set(trajectories.chosen(QUICK, dataset))) == QUICK.clips
    order = trajectories.chosen(replace(QUICK, clips=9), dataset)
    balanced = list(dict.fromkeys(dataset.indices(QUICK.seed + 1, 0, 6)))
    assert order[: len(balanced)] == balanced
    assert order[6:] == order[:3]


def test_no_clips_are_no_work(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    folders, (said,) = solved(inputs, tmp_path, cfg=replace(QUICK, clips=0))
    assert said == {"trajectories": 0, "verified": 0, "largest_error": 0.0}
    assert files_of(folders) == {}


def test_what_is_there_is_not_solved_again(inputs: dict[str, list[Path]], one: Path, tmp_path: Path) -> None:
    found = files_of([one])
    (tmp_path / "0-of-1").mkdir()
    for name in list(found)[:2]:
        (tmp_path / "0-of-1" / name).write_bytes(found[name])
    with pytest.MonkeyPatch.context() as patch:
        solve = Mock(side_effect=trajectories.solve)
        patch.setattr(trajectories, "solve", solve)
        folders, _ = solved(inputs, tmp_path)
    assert solve.call_count == 1
    assert files_of(folders) == found


def test_the_kept_states_are_those_of_the_teachers_flow(inputs: dict[str, list[Path]], one: Path) -> None:
    teacher, dataset = weights.load_transformer(inputs["teacher"][0]), loader.load(inputs["samples"], CFG)
    batch = dataset.batch(trajectories.chosen(QUICK, dataset)[2:4], num_latents=4)
    path = trajectory(
        teacher, Sampler(steps=4, shift=5.0), image_latent=batch.latents[:, 0], conditions=batch.conditions,
        num_latents=4, seed=(0, 1),
    )  # fmt: skip
    states = load_file(one / "trajectories-00001.safetensors")["states"]
    assert torch.equal(states, torch.stack([x for _, x in path], 1).half())


def test_a_slice_is_what_a_whole_file_holds(one: Path) -> None:
    found = trajectories.load([one], QUICK.timesteps, 4)
    whole = load_file(one / "trajectories-00001.safetensors")
    assert len(found) == 5
    assert torch.equal(found.state(3, 2, 1, 3), whole["states"][1, 2, 1:3])
    assert torch.equal(found.conditions([0, 3]).poses[1], whole["poses"][1])
    assert torch.equal(found.conditions([3]).empty, whole["empty"])


def test_integrated_again_the_states_are_the_same(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    _, (said,) = solved(inputs, tmp_path, cfg=replace(QUICK, verified=5))
    assert said["verified"] == 5
    assert 0 < said["largest_error"] < 1e-2


@pytest.mark.parametrize("name", ["states", "actions"])
def test_a_damaged_file_is_found(inputs: dict[str, list[Path]], one: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "0-of-1").mkdir()
    for file, data in files_of([one]).items():
        (tmp_path / "0-of-1" / file).write_bytes(data)
    path = tmp_path / "0-of-1" / "trajectories-00001.safetensors"
    tensors = load_file(path)
    tensors[name].flatten()[tensors[name].numel() // 3] += 40
    save_file(tensors, path, metadata={"timesteps": str(list(QUICK.timesteps))})
    with pytest.raises(ValueError, match=r"trajectories-00001\.safetensors, integrated again .* allowed is 0\.05"):
        solved(inputs, tmp_path, cfg=replace(QUICK, verified=5))


def test_a_student_of_other_timesteps_or_more_latents_is_refused(one: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"have 4 latents at .* the student needs 8 at"):
        trajectories.load([one], QUICK.timesteps, 8)
    with pytest.raises(ValueError, match=r"the student needs 4 at \(1000\.0, 625\.0\)"):
        trajectories.load([one], (1000.0, 625.0), 4)
    with pytest.raises(ValueError, match="there are no trajectories"):
        trajectories.load([tmp_path], QUICK.timesteps, 4)


def test_steps_that_miss_a_timestep_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 steps with shift 5\.0 do not pass"):
        Trajectories(steps=7)
