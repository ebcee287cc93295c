import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

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
import json, os
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
    shipper.watch(name, lambda name=name: root / name, uri=name)
    shipper.finish(name, succeeded=name == "codec")
shipper.close()
tracking.Run(root / "teacher").log({{"loss": 0.5}}, 1)
again = tracking.Shipper(tracking.default_uri(root / "store"))
again.watch("teacher", lambda: root / "teacher", uri="teacher")
again.finish("teacher", succeeded=True)
again.close()
assert not shipper.refused and not again.refused

# a step of a workflow loses its node in the middle and goes on in another pod, which has only the records
server = tracking.Server(tracking.default_uri(root / "store"))
parent = server.go_on("workflow", {{"recipe": "tiny"}}, {{tracking.UID_TAG: "u1"}})
assert server.go_on("workflow", {{}}, {{tracking.UID_TAG: "u1"}}) == parent
os.environ[tracking.WORKFLOW_UID] = "u1"
for pod, losses in (("pod-0", [1.0, 0.5]), ("pod-1", [1.0, 0.5, 0.25])):
    folder = root / pod
    folder.mkdir()
    lines = [{{"time_ms": 7, "metrics": {{"loss": loss}}, "step": at}} for at, loss in enumerate(losses)]
    (folder / tracking.RECORDS).write_text("".join(json.dumps(line) + "\\n" for line in lines))
    tracking.ship(server, folder, name="codec of pods", uri="s3://b/codec/key", parent=parent)
assert not server.find({{tracking.ARTIFACT_TAG: "s3://b/codec/key"}}, status="FINISHED")
server.end(server.find({{tracking.ARTIFACT_TAG: "s3://b/codec/key"}})[0].info.run_id, "FINISHED")
assert server.find({{tracking.ARTIFACT_TAG: "s3://b/codec/key", tracking.OF_UID_TAG: "u1"}}, status="FINISHED")

# what finished runs have made, in however many pages
for uri, status in (("s3://b/join/key", "FINISHED"), ("s3://b/shard/key", "FAILED"), ("s3://bb/join/key", "FINISHED")):
    server.end(server.start(uri, {{tracking.ARTIFACT_TAG: uri}}), status)
for tracking.PAGE in (1000, 1):
    assert server.finished("s3://b") == {{"s3://b/codec/key", "s3://b/join/key"}}
"""
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return folder


def rows(folder: Path, question: str) -> list[tuple]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return database.execute(question).fetchall()


def test_steps_are_nested_under_the_pipelines_run(shipped: Path) -> None:
    runs = dict(rows(shipped, "select name, run_uuid from runs"))
    parents = dict(rows(shipped, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    assert parents == {
        runs["codec"]: runs["world-model tiny"],
        runs["teacher"]: runs["world-model tiny"],
        runs["codec of pods"]: runs["workflow"],
    }


def test_parameters_and_metrics_arrive_once(shipped: Path) -> None:
    run = dict(rows(shipped, "select name, run_uuid from runs"))["teacher"]
    assert ("optimizer.rate", "0.1") in rows(shipped, f"select key, value from params where run_uuid = '{run}'")
    found = rows(shipped, f"select step, value from metrics where key = 'loss' and run_uuid = '{run}' order by step")
    assert found == [(0, 1.0), (1, 0.5)]


def test_a_step_called_again_goes_on_in_its_run(shipped: Path) -> None:
    statuses = dict(rows(shipped, "select name, status from runs"))
    assert {statuses[name] for name in ("codec", "teacher", "world-model tiny")} == {"FINISHED"}


def test_a_step_that_lost_its_node_goes_on_in_its_run(shipped: Path) -> None:
    assert rows(shipped, "select count(*) from runs where name in ('codec of pods', 'workflow')") == [(2,)]
    run = dict(rows(shipped, "select name, run_uuid from runs"))["codec of pods"]
    found = rows(shipped, f"select step, value from metrics where key = 'loss' and run_uuid = '{run}' order by step")
    assert found == [(0, 1.0), (1, 0.5), (2, 0.25)]  # what came twice is there once


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
    shipper.watch("teacher", lambda: tmp_path, uri="")
    run.log({"loss": 1.0}, 0)
    shipper.finish("teacher", succeeded=True)
    shipper.close(away_s=0.1)
    assert capsys.readouterr().err.count("warning: MLflow at http://127.0.0.1") == 1
    assert len(records(tmp_path)) == 1


class Flaky:
    """MLflow that is away until told otherwise, and then takes everything but a run that somebody has deleted."""

    away = True
    sent: ClassVar[list[tuple[str, list[dict]]]] = []
    ended: ClassVar[dict[str, str]] = {}
    started: ClassVar[list[dict[str, str]]] = []

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.ask()

    def ask(self) -> None:
        if Flaky.away:
            raise ConnectionError("nobody is there")

    def start(self, name: str, tags: dict[str, str]) -> str:
        self.ask()
        Flaky.started.append(tags)
        return name

    def go_on(self, name: str, tags: dict[str, str], known: dict[str, str]) -> str:
        return self.start(name, tags | known)

    def send(self, run_id: str, lines: list[dict], folder: Path) -> None:
        self.ask()
        if run_id == "deleted":
            raise ValueError("the run must be active")
        Flaky.sent.append((run_id, lines))

    def end(self, run_id: str, status: str) -> None:
        self.ask()
        Flaky.ended[run_id] = status


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    monkeypatch.setattr(tracking, "Server", Flaky)
    monkeypatch.setattr(tracking, "EVERY_S", 0.01)
    monkeypatch.setattr(tracking, "AWAY_S", 0.05)
    monkeypatch.setattr(tracking, "CLOSING_S", 0.02)
    Flaky.away, Flaky.sent, Flaky.ended, Flaky.started = True, [], {}, []
    return Flaky


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.01)


def logged(folder: Path, *losses: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step, loss in enumerate(losses):
        Run(folder).log({"loss": loss}, step)
    return folder


def test_a_server_that_comes_back_gets_everything_once(
    tmp_path: Path, flaky: type[Flaky], capsys: pytest.CaptureFixture[str]
) -> None:
    shipper = tracking.Shipper("http://mlflow")
    shipper.watch("teacher", lambda: logged(tmp_path / "a"), uri="")
    logged(tmp_path / "a", 1.0, 0.5)
    time.sleep(0.1)
    flaky.away = False  # between the start and the end of the step
    wait_for(lambda: bool(flaky.sent))
    flaky.away = True
    logged(tmp_path / "a", 0.25)
    shipper.finish("teacher", succeeded=True)
    time.sleep(0.1)
    flaky.away = False
    shipper.close()
    losses = [line["metrics"]["loss"] for _, lines in flaky.sent for line in lines]
    assert (losses, flaky.ended) == ([1.0, 0.5, 0.25], {"teacher": "FINISHED"})
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["warning:", "MLflow"] * 2


def test_a_refusal_between_a_runs_start_and_its_figures_makes_no_second_run(
    tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky.away = False
    tries = iter([ConnectionError("gone"), ConnectionError("gone"), None])

    def send(self: Flaky, run_id: str, lines: list[dict], folder: Path) -> None:
        if error := next(tries, None):
            raise error
        flaky.sent.append((run_id, lines))

    monkeypatch.setattr(flaky, "send", send)
    logged(tmp_path / "a", 1.0)
    shipper = tracking.Shipper("http://mlflow")
    shipper.watch("teacher", lambda: tmp_path / "a", uri="s3://b/teacher/key")
    shipper.finish("teacher", succeeded=True)
    shipper.close()
    assert (len(flaky.started), flaky.ended) == (1, {"teacher": "FINISHED"})


def test_a_server_that_stays_away_costs_an_end_little(tmp_path: Path, flaky: type[Flaky]) -> None:
    shipper = tracking.Shipper("http://mlflow")
    shipper.watch("teacher", lambda: logged(tmp_path / "a", 1.0), uri="")
    shipper.finish("teacher", succeeded=True)
    began = time.monotonic()
    shipper.close(away_s=0.2)
    assert 0.1 < time.monotonic() - began < 2.0
    assert not shipper.thread.is_alive()


def test_a_run_that_takes_no_more_does_not_hold_up_the_others(tmp_path: Path, flaky: type[Flaky]) -> None:
    flaky.away = False
    shipper = tracking.Shipper("http://mlflow", name="tiny")
    for name in ("deleted", "teacher"):
        logged(tmp_path / name, 1.0)
        shipper.watch(name, partial(logged, tmp_path / name), uri=name)
        shipper.finish(name, succeeded=True)
    shipper.close(away_s=0.1)
    assert flaky.ended == {"teacher": "FINISHED", "tiny": "FINISHED"}


def test_an_empty_parent_is_none(tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch) -> None:
    flaky.away = False
    monkeypatch.delenv(tracking.WORKFLOW_UID, raising=False)
    shipper = tracking.Shipper("http://mlflow", parent="")
    shipper.watch("teacher", lambda: logged(tmp_path, 1.0), uri="s3://b/teacher/key")
    shipper.close()
    assert flaky.started == [{tracking.ARTIFACT_TAG: "s3://b/teacher/key"}]


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
