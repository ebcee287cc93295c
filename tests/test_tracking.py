import json
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relic import tracking
from relic.tracking import Run


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / tracking.RECORDS).read_text().splitlines()]


# Run


def test_metrics_and_figures_become_lines(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log({"loss": 0.5}, step=3)
    run.figure(tmp_path / "plots" / "loss.png")
    first, second = records(tmp_path)
    assert (first["metrics"], first["step"], second["figure"]) == ({"loss": 0.5}, 3, "plots/loss.png")


def test_parameters_get_dotted_names(tmp_path: Path) -> None:
    @dataclass
    class Inner:
        rate: float = 0.1

    @dataclass
    class Config:
        steps: int = 2
        inner: Inner = field(default_factory=Inner)

    Run(tmp_path).parameters(Config())
    assert records(tmp_path)[0]["parameters"] == {"steps": 2, "inner.rate": 0.1}


def test_progress_is_a_line_with_share_note_and_eta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.progress(420, 1000, "loss 0.123")
    run.started = (time.monotonic() - 10, 320)  # ten seconds for a hundred
    run.printed = 0.0
    run.progress(420, 1000, "loss 0.123")
    assert capsys.readouterr().out.splitlines() == ["[ 42%] 420/1000 loss 0.123", "[ 42%] 420/1000 loss 0.123 eta 58 s"]


def test_progress_prints_at_most_two_lines_a_second_and_always_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    for done in range(1, 101):
        run.progress(done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("[100%] 100/100")


def test_silent_run_prints_and_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.silent()
    run.log({"loss": 1}, 0)
    run.progress(1, 1)
    run.figure(tmp_path / "a.png")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_full_disk_ends_the_records_and_not_the_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.records = Path("/dev/full")
    run.log({"loss": 1}, 0)
    run.log({"loss": 1}, 1)
    assert capsys.readouterr().err.count("warning: figures are not kept any more") == 1


# MLflow


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's run with two steps in sqlite; the second step's records came in two calls. In a process of its own,
    for mlflow warns as it loads."""
    folder = tmp_path_factory.mktemp("shipped")
    script = f"""
from pathlib import Path
from relic import tracking
root = Path({str(folder)!r})
shipper = tracking.Shipper(tracking.default_uri(root / "store"), name="world-model tiny", tags={{"recipe": "tiny"}})
for name in ("codec", "teacher"):
    (root / name).mkdir()
    run = tracking.Run(root / name)
    run.parameters({{"optimizer": {{"rate": 0.1}}, "long": "x" * 9000}})
    run.log({{"loss": 1.0, "grad": float("nan")}}, 0)
    (root / name / "plot.svg").write_text("<svg/>")
    run.figure(root / name / "plot.svg")
    shipper.watch(name, lambda name=name: root / name)
    shipper.finish(name, succeeded=name == "codec")
shipper.close()
tracking.Run(root / "teacher").log({{"loss": 0.5}}, 1)
again = tracking.Shipper(tracking.default_uri(root / "store"))
again.watch("teacher", lambda: root / "teacher")
again.finish("teacher", succeeded=True)
again.close()
assert not shipper.refused and not again.refused
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder, env={"PATH": "", "HOME": str(folder)})
    return folder


def rows(folder: Path, question: str) -> list[tuple]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return database.execute(question).fetchall()


def test_steps_are_nested_under_the_pipelines_run(shipped: Path) -> None:
    runs = dict(rows(shipped, "select name, run_uuid from runs"))
    parents = dict(rows(shipped, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    assert parents == {runs["codec"]: runs["world-model tiny"], runs["teacher"]: runs["world-model tiny"]}


def test_parameters_and_metrics_arrive_once(shipped: Path) -> None:
    run = dict(rows(shipped, "select name, run_uuid from runs"))["teacher"]
    assert ("optimizer.rate", "0.1") in rows(shipped, f"select key, value from params where run_uuid = '{run}'")
    found = rows(shipped, f"select step, value from metrics where key = 'loss' and run_uuid = '{run}' order by step")
    assert found == [(0, 1.0), (1, 0.5)]


def test_a_step_called_again_goes_on_in_its_run(shipped: Path) -> None:
    statuses = rows(shipped, "select name, status from runs order by name")
    assert statuses == [("codec", "FINISHED"), ("teacher", "FINISHED"), ("world-model tiny", "FINISHED")]


def test_figures_lie_beside_the_store(shipped: Path) -> None:
    assert len(list((shipped / "mlruns").rglob("plot.svg"))) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_refuses_is_one_warning_and_the_records_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shipper = tracking.Shipper(f"http://127.0.0.1:{port}", name="tiny")
    run = Run(tmp_path)
    shipper.watch("teacher", lambda: tmp_path)
    run.log({"loss": 1.0}, 0)
    shipper.finish("teacher", succeeded=True)
    shipper.close()
    assert capsys.readouterr().err.count("warning: MLflow at http://127.0.0.1") == 1
    assert len(records(tmp_path)) == 1


def test_mlflow_that_is_not_installed_is_one_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    shipper = tracking.Shipper(f"sqlite:///{tmp_path}/mlflow.db")
    shipper.close()
    assert capsys.readouterr().err.startswith("warning: MLflow at sqlite:///")


def test_the_environment_says_where_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.default_uri(tmp_path / "store") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.default_uri(tmp_path / "store") == "http://mlflow:5000"
