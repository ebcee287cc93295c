import subprocess
import sys
import time
from pathlib import Path

import fake_pipeline
import pytest

from relic import __main__ as command
from relic import artifacts, options, recipes, steps, stores, tracking
from relic.train.config import Checkpointing, Teacher


@pytest.fixture(autouse=True)
def _without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    stores.fetch.cache_clear()
    steps.content.cache_clear()


def fake(*args: object) -> int:
    return fake_pipeline.main([str(arg) for arg in args])


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line without a traceback."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said.strip()


# Help


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in (*steps.STEPS, "pipeline", "doctor", "plan", "serve", "router", "play", "generate", "weights"):
        assert f"\n  {name} " in said


@pytest.mark.parametrize("name", [*steps.STEPS, "doctor", "plan", "serve", "router", "play", "generate"])
def test_help_of_a_command_lists_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name, "--help"]) == 0
    assert f"usage: relic {name}" in capsys.readouterr().out


def test_help_shows_the_recipes_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["teacher", "--recipe", "quick", "--help"]) == 0
    rate = recipes.quick().teacher.optimizer.learning_rate
    assert f"--config.optimizer.learning-rate FLOAT (default: {rate})" in " ".join(capsys.readouterr().out.split())


# A step


def test_a_step_makes_its_artifact_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path / "s", "--artifact", tmp_path / "deep" / "uri") == 0
    uri = capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "deep" / "uri").read_text() == uri
    assert stores.read_manifest(uri)["summary"] == {"files": 6, "pids": 1}


def test_an_option_overrides_the_recipe_and_changes_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate in ("1.0", "2.5"):
        assert fake("count", "--recipe=even", "--store", tmp_path, "--config.pace.rate", rate) == 0
    uris = [line for line in capsys.readouterr().out.splitlines() if line.startswith("/")]
    found = [stores.read_manifest(uri)["parameters"]["pace"]["rate"] for uri in uris]
    assert (found, len(set(uris))) == ([1.0, 2.5], 2)


def test_inputs_come_one_by_one_or_as_a_json_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uris = [f"{tmp_path}/count/{digit * 20}" for digit in "ab"]
    assert options.uris("parts", uris) == uris
    assert options.uris("parts", [f'["{uris[0]}", "{uris[1]}"]']) == uris


def test_a_file_that_changes_changes_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights.bin"
    for text in ("old", "new"):
        weights.write_text(text)
        steps.content.cache_clear()
        assert fake("count", "--store", tmp_path / "s", "--config.start", weights, "--recipe", "even") == 0
    assert len({line for line in capsys.readouterr().out.splitlines() if line.startswith("/")}) == 2


def test_a_finished_artifact_is_found_in_no_time_and_without_torch_or_mlflow(tmp_path: Path) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path) == 0
    script = (
        "import sys, fake_pipeline\n"
        f"assert fake_pipeline.main(['count', '--recipe', 'even', '--store', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'mlflow', 'boto3', 'numpy'} & set(sys.modules)"
    )
    began = time.process_time(), time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
    assert time.monotonic() - began[1] < 3  # 0.15 s of work; a busy machine may take its time


def test_seconds_of_a_killed_call_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = steps.STEPS["curate"]
    out = artifacts.LocalStore(tmp_path).partial("count", key := fake_key())
    out.mkdir(parents=True)
    (out / ".seconds").write_text("100.0")
    assert fake("count", "--recipe", "even", "--store", tmp_path) == 0
    assert stores.read_manifest(f"{tmp_path}/count/{key}")["seconds"] >= 100
    assert found.fan_out


def fake_key() -> str:
    step, config = fake_pipeline.TABLE["count"], fake_pipeline.named("even").count
    return steps.key(step, steps.parameters(step, config, part=0, parts=1), {})


def test_how_often_a_training_is_saved_changes_no_key() -> None:
    step, often = steps.STEPS["teacher"], Teacher(checkpoint=Checkpointing(every_s=1.0))
    assert steps.parameters(step, often) == steps.parameters(step, Teacher())
    assert steps.parameters(step, often) != steps.parameters(step, Teacher(seed=1))


# Mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["teechr"], "relic: there is no command 'teechr'; did you mean 'teacher'? near are teacher, router"),
        (["teacher", "--recipe", "tinny"], "relic: there is no recipe 'tinny'; did you mean 'tiny'? allowed are"),
        (
            ["teacher", "--config.sift", "2"],
            "relic teacher has no option --config.sift; did you mean '--config.shift'?",
        ),
        (["teacher", "--config.shift", "wide"], "--config.shift: 'wide' is not a number"),
        (["teacher", "--recipe", "tiny"], "relic: --samples is not given; it must be the URI of an artifact"),
        (["join", "--parts", '["a'], "it must be artifact URIs or a JSON list of them"),
        (["teacher", "--samples", "/tmp/samples"], "'/tmp/samples' is not an artifact; it must be STORE/STEP/KEY"),
        (["curate", "--part", "2", "--parts", "2"], "relic: part is 2 of 2; it must be 0 to 1"),
        (["curate", "--store", "gs://walks"], "store 'gs://walks' is not allowed; give a local folder or s3://"),
        (["serve"], "relic: give --run (run.json of a finished pipeline) or --export (URI or folder); neither is"),
        (["deploy", "--config.gate.0.at-least", "2", "--config.gate.0.at-most", "1"], "at_least 2 and at_most 1"),
        (["pipeline", "walk"], "there is no command 'pipeline walk'; did you mean"),
        (["pipeline", "run", "--form", "teacher"], "has no option --form; did you mean '--from'? allowed are"),
        (["pipeline", "run", "--parts", "-1"], "parts is -1; it must be 1 to 10000"),
        (["pipeline", "run", "--from", "techer"], "--from is 'techer'; did you mean 'teacher'? allowed are curate"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(args) == 2
    assert said in sentence(capsys)


def test_an_invariant_of_a_config_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path, "--config.seed", "-1") == 2
    assert sentence(capsys).endswith("seed is -1; it must be at least 0")


def test_a_damaged_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path) == 0
    uri = capsys.readouterr().out.splitlines()[-1]
    Path(uri, "file-3").write_text("changed!")
    assert fake("join", "--recipe", "even", "--store", tmp_path, "--parts", uri) == 2
    assert f"{uri}/file-3 has " in sentence(capsys)


def test_start_weights_that_are_not_there_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path, "--config.start", "tiny/none") == 2
    assert "'tiny/none' does not exist" in sentence(capsys)


# Failures


def test_a_failure_is_one_sentence_and_what_is_done_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path, "--config.fail-at", 2) == 1
    assert sentence(capsys) == "relic: count failed: RuntimeError: the counting broke"
    assert len(list(tmp_path.glob("count/*.partial/file-*"))) == 2


def test_a_full_disk_is_one_sentence_with_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake("count", "--recipe", "even", "--store", tmp_path, "--config.full-disk") == 1
    assert "the disk is full at " in (said := sentence(capsys))
    assert said.endswith(".partial/file; free some space and run the same command again to go on")


def test_a_full_disk_under_safetensors_names_the_working_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--recipe", "even", "--store", tmp_path, "--config.full-disk", "--config.seed", "1"]
    assert fake("count", *args) == 1
    assert sentence(capsys).startswith(f"relic: the disk is full at {tmp_path}/count/")


def test_a_debugging_person_sees_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELIC_DEBUG", "1")
    assert fake("count", "--recipe", "even", "--store", tmp_path, "--config.fail-at", 2) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "perform", interrupt)
    assert command.main(["curate"]) == 130
    assert sentence(capsys) == "relic: stopped; run the same command again to go on"


def test_weights_has_help_and_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["weights", "--help"]) == 0
    assert "usage: relic weights import|export|merge" in capsys.readouterr().out
    assert command.main(["weights", "import"]) == 2
    assert sentence(capsys) == "relic: relic weights import needs weights: relic weights import DIR --out DIR"


def test_several_missing_options_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["router"]) == 2
    said = sentence(capsys)
    assert said.startswith("relic: relic router needs --replicas: NAME:PORT")
    assert "; --token-secret: the file whose content signs tokens" in said
