"""The export step, and opening what it has written: from a run, by its URI, as a folder that was copied."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import IMAGE, ROLLOUT, codec, export, inputs, untracked
from safetensors.torch import load_file
from tiny_models import transformer

from relic import artifacts, stores, tracking
from relic.mistakes import UserError
from relic.serve import engine
from relic.serve.config import Serve

ONE_OF_TWO = "give --run .* or --export .*; "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an export."""
    return untracked(tmp_path_factory.mktemp("store"))


@pytest.fixture
def copied(made: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def load(*, run: str = "", export: str = "") -> engine.Student:
    return engine.load(Serve(run=run, export=export), torch.device("cpu"))


def test_an_export_holds_all_that_a_server_needs(made: str) -> None:
    files = set(stores.read_manifest(made)["files"])
    networks = {f"{name}/{file}" for name in ("student", "codec") for file in ("model.safetensors", "config.json")}
    assert networks | {f"examples/{name}" for name in ("a.png", "examples.json", "world.json")} <= files
    assert artifacts.read_json(Path(made) / "export.json") == {
        "name": "tiny",
        "rollout": json.loads(json.dumps(vars(ROLLOUT), default=vars)),
        "actions": {"degrees_per_unit": 2.0},
    }


def test_the_students_file_is_in_fp8_and_smaller(made: str) -> None:
    summary = stores.read_manifest(made)["summary"]
    read = load_file(Path(made) / "student" / "model.safetensors")
    assert read["blocks.0.ffn.0.weight"].dtype == torch.float8_e4m3fn
    assert read["head.weight"].dtype == torch.float32
    assert summary["export_bytes"] < summary["student_bytes"]


def test_an_export_is_served_with_the_rollout_that_was_measured(made: str) -> None:
    loaded = load(export=made)
    assert loaded.cfg.timesteps == ROLLOUT.timesteps
    assert vars(loaded.cfg.memory) == {**vars(ROLLOUT.memory), "dtype": "fp8"}
    assert loaded.unit.degrees_per_unit == 2.0
    world = loaded.world
    assert (world.recipe, world.height, world.width, world.fps) == ("tiny", 16, 32, 16.0)
    assert world.about["linears"] in ("FP8 weights in bfloat16", "FP8 weights in float32")
    assert world.about["parameters"] == sum(p.numel() for p in transformer().parameters())


def test_what_an_export_shows_is_near_what_the_student_shows(made: str) -> None:
    loaded = load(export=made)
    plain = engine.Student(
        transformer(),
        codec(),
        loaded.cfg,
        words=loaded.words,
        unit=loaded.unit,
        world=loaded.world,
        device=loaded.device,
    )
    actions = np.eye(13)[[0] * 4]
    walks = (one.open(IMAGE, "a hall", 0) for one in (loaded, plain))
    shown, wanted = (np.concatenate([made for made, _ in walk.step(actions)]).astype(float) for walk in walks)
    assert np.abs(shown - wanted).mean() < 0.1 * np.abs(wanted[1:] - wanted[:-1]).mean()


def test_a_run_is_served_by_its_export(made: str, tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "run.json", {"recipe": "tiny", "nodes": {"export": made}})
    assert load(run=str(tmp_path / "run.json")).world.recipe == "tiny"


def test_a_copied_folder_is_served_too(copied: Path) -> None:
    assert load(export=str(copied)).world.recipe == "tiny"


@pytest.mark.parametrize("name", ["student/model.safetensors", "codec/config.json", "examples/a.png"])
def test_a_flipped_byte_is_named(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(UserError, match=f"copied/{name} has sha256 .*; the manifest says"):
        load(export=str(copied))


def test_what_is_no_export_is_said(made: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not an export: it has no manifest.json; `relic export` makes one"):
        load(export=str(tmp_path))
    student = stores.read_manifest(made)["inputs"]["student"][0]
    with pytest.raises(UserError, match=r"distill/.* is not an export: it has no export.json"):
        load(export=student)


def test_an_evaluation_of_another_student_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    given = inputs(tmp_path)
    undistilled = artifacts.read_json(Path(given["evaluation"][0]) / "manifest.json")["inputs"]["student"]
    other = inputs(tmp_path, transformer(seed=1), name="other")["student"]
    for student in (undistilled, other):
        with pytest.raises(UserError, match=r"the evaluation .* has not measured .* as distilled; give one that has"):
            export(tmp_path, {**given, "student": student})


def test_a_student_without_words_of_its_own_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    cfg = type(transformer().cfg)(**{**vars(transformer().cfg), "text_vocabulary": 0})
    uri = export(tmp_path, inputs(tmp_path, transformer(cfg)))
    with pytest.raises(ValueError, match="takes umT5's embeddings; give umT5's folder as text_encoder"):
        load(export=uri)


def test_a_text_encoder_is_refused_where_the_model_has_words_of_its_own(made: str) -> None:
    with pytest.raises(ValueError, match="text_encoder is '/nope'; the model has words of its own and takes none"):
        engine.load(Serve(export=made, text_encoder="/nope"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a run.json"),
        ("[]", "is not a run.json"),
        (json.dumps({"recipe": "tiny", "nodes": {"codec": "x"}}), "has no node 'export'; it has codec"),
    ],
)
def test_a_run_that_is_not_one_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load(run=str(tmp_path / "run.json"))


def test_a_missing_run_says_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run.json is not there; `make demo`"):
        load(run=str(tmp_path / "run.json"))
    with pytest.raises(ValueError, match=r"is a folder; `make demo`"):
        load(run=str(tmp_path))


def test_a_server_is_given_a_run_or_an_export() -> None:
    with pytest.raises(ValueError, match=f"{ONE_OF_TWO}neither is given"):
        Serve()
    with pytest.raises(ValueError, match=f"{ONE_OF_TWO}both are given"):
        Serve(run="run.json", export="export")
