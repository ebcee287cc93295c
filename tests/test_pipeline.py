import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import fake_pipeline
import pytest
from fake_pipeline import TABLE, named
from moto.server import ThreadedMotoServer

from relic import artifacts, steps, stores, tracking
from relic import call as calls
from relic.mistakes import UserError
from relic.pipeline import component, graph, local, plan, progress
from relic.pipeline.graph import FanOut, Graph, Input, Parameter, Step

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    stores.fetch.cache_clear()


def values(out: Path, recipe: str = "even") -> dict[str, str]:
    return {"recipe": recipe, "store": str(out / "store"), "parts": "2"}


def plan_of(out: Path, recipe: str = "even") -> list[plan.Node]:
    given = values(out, recipe)
    return plan.make(fake_pipeline.GRAPH, fake_pipeline.named(recipe), table=fake_pipeline.TABLE, values=given)


def start(out: Path, recipe: str = "even", sleep_s: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, fake_pipeline.__file__, "pipeline", str(out), recipe]
    environment = {**os.environ, "FAKE_SLEEP_S": str(sleep_s)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def run(out: Path, recipe: str = "even", store: str = "", **options: Any) -> int:
    given = values(out, recipe) | ({"store": store} if store else {})
    return local.run(
        fake_pipeline.GRAPH, fake_pipeline.named(recipe), table=fake_pipeline.TABLE,
        components=fake_pipeline.COMPONENTS, values=given, out=out, **options,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and what it printed."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tracking.PARENT, tracking.RUNNER)
        process = start(out)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return out, said


# The graph


def test_a_step_comes_after_what_it_reads() -> None:
    shuffled = Graph(**{**vars(fake_pipeline.GRAPH), "steps": fake_pipeline.GRAPH.steps[::-1]})
    assert [step.name for step in shuffled.ordered()] == ["count", "join", "grow", "report"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((Step(name="a", component="x", inputs={"in": Input("b")}),), "a reads in from 'b'; the steps are a"),
        ((Step(name="a", component="x"), Step(name="a", component="x")), "a twice"),
        ((Step(name="a", component="x", fan_out=FanOut("halves")),), "fanned out by 'halves'; parameters are parts"),
        (
            (
                Step(name="a", component="x", inputs={"in": Input("b")}),
                Step(name="b", component="x", inputs={"in": Input("a")}),
            ),
            "a, b wait for each other",
        ),
    ],
)
def test_a_wrong_graph_is_a_sentence(steps: tuple[Step, ...], said: str) -> None:
    parts = Parameter(name="parts", default="2", about="")
    with pytest.raises(ValueError, match=said):
        Graph(name="wrong", about="", parameters=(parts,), steps=steps, report="a", world="a")


def test_world_model_leads_from_recording_to_deployment() -> None:
    found = graph.load(ROOT / "workflows" / "world_model.py")
    made = ["curate", "join-clips", "codec", "pose-net", "shard", "join-samples", "teacher"]
    made += ["trajectories", "student-init", "distill", "evaluate", "export", "deploy"]
    assert [step.name for step in found.ordered()] == made
    assert [step.name for step in found.steps if step.fan_out] == ["curate", "shard", "trajectories"]


def test_a_workflow_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no workflow .*none\.py"):
        graph.load(tmp_path / "none.py")


# The plan


def test_keys_are_known_before_anything_runs(finished: tuple[Path, str]) -> None:
    out, _ = finished
    nodes = plan_of(out)
    assert [node.name for node in nodes] == ["count-0", "count-1", "join", "grow", "report"]
    assert set(plan.finished(nodes, str(out / "store"))) == {node.name for node in nodes}


def test_a_changed_dial_changes_the_keys_from_there_on(tmp_path: Path) -> None:
    even, odd = plan_of(tmp_path, "even"), plan_of(tmp_path, "odd")
    assert [node.key == other.key for node, other in zip(even, odd, strict=True)] == [True, True, True, False, False]


def test_a_fan_out_is_read_as_a_json_list_and_a_single_artifact_plainly(tmp_path: Path) -> None:
    nodes = {node.name: node for node in plan_of(tmp_path)}
    parts = {name: fake_pipeline.COMPONENTS[name] for name in ("join", "grow")}
    given = values(tmp_path)
    join = plan.command_line(nodes["join"], parts["join"], values=given, artifact="uri")
    grow = plan.command_line(nodes["grow"], parts["grow"], values=given, artifact="uri")
    assert f'["{nodes["count-0"].uri}","{nodes["count-1"].uri}"]' in join
    assert grow[-4:] == ["--joined", nodes["join"].uri, "--artifact", "uri"]


def test_parts_that_do_not_fit_into_a_command_are_refused_with_how_many_do(tmp_path: Path) -> None:
    def parts(number: int) -> list[plan.Node]:
        given = {**values(tmp_path), "store": "s3://walks/tiny", "parts": str(number)}
        return plan.make(fake_pipeline.GRAPH, fake_pipeline.named("even"), table=fake_pipeline.TABLE, values=given)

    with pytest.raises(UserError, match="parts is 9000, and join is given the URI of each") as said:
        parts(9000)
    most = int(str(said.value).rpartition(" ")[2])
    with pytest.raises(UserError):
        parts(most + 1)
    longest = max(map(len, plan.command_line(parts(most)[most], fake_pipeline.COMPONENTS["join"],
                                             values=values(tmp_path), artifact="uri")))  # fmt: skip
    assert 2**17 - 2**13 - 100 < longest <= 2**17 - 2**13
    subprocess.run(["bash", "-c", f"exec true '{'x' * longest}'"], check=True)


def test_from_and_until_choose_what_lies_between(tmp_path: Path) -> None:
    def names(**limits: str) -> list[str]:
        return [node.name for node in plan.chosen(fake_pipeline.GRAPH, plan_of(tmp_path), **limits)]

    assert names(first="grow") == ["grow", "report"]
    assert names(until="join") == ["count-0", "count-1", "join"]
    assert names(first="join", until="grow") == ["join", "grow"]


def test_an_unknown_step_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--until is 'gorw'; did you mean 'grow'"):
        run(tmp_path, until="gorw")


def test_dry_run_shows_what_is_finished_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, dry_run=True) == 0
    said = capsys.readouterr().out
    assert said.count("to do") == 5
    assert not list(tmp_path.iterdir())


# Running


def test_run_writes_the_report_and_where_every_artifact_is(finished: tuple[Path, str]) -> None:
    out, said = finished
    nodes = artifacts.read_json(out / "run.json")["nodes"]
    assert sorted(nodes) == ["count", "grow", "join", "report"]
    assert [len(nodes["count"]), Path(nodes["grow"]).is_dir()] == [2, True]
    figures = artifacts.read_json(out / "report" / "report.json")
    assert (figures["grown"], sorted(figures["seconds_per_step"])) == (6, ["count", "grow", "join", "report"])
    assert f"report: {out}/report/report.html" in said
    assert f"serve --run {out}/run.json" in said


def test_every_node_has_a_log_with_its_command(finished: tuple[Path, str]) -> None:
    logs = finished[0] / "logs"
    assert sorted(path.stem for path in logs.glob("*.log")) == ["count-0", "count-1", "grow", "join", "report"]
    assert "fake_pipeline.py grow --recipe even" in (logs / "grow.log").read_text()


def test_parts_run_side_by_side(finished: tuple[Path, str]) -> None:
    lines = [line for line in finished[1].splitlines() if line.startswith("count")]
    if local.num_cores() > 1:
        assert [line.split(":")[0] for line in lines[:2]] == ["count-0", "count-1"]
        assert all("started" in line for line in lines[:2])


def test_a_second_run_starts_nothing(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "start", lambda *_: pytest.fail("a finished node was started"))
    began = time.monotonic()
    assert run(finished[0]) == 0
    assert time.monotonic() - began < 2


def test_only_what_has_changed_runs_again(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    original = local.start

    def noted(node: plan.Node, *rest: Any) -> local.Child:
        started.append(node.name)
        return original(node, *rest)

    monkeypatch.setattr(local, "start", noted)
    assert run(finished[0], "odd") == 0
    assert started == ["grow", "report"]


def test_from_needs_what_comes_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="grow needs join, which is not finished; run without --from"):
        run(tmp_path, first="grow")


def test_a_failed_step_shows_its_log_and_gives_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fake_pipeline.COMPONENTS, "join", failing("print('the reason'); raise SystemExit(3)"))
    assert run(tmp_path) == 3
    said = capsys.readouterr().err
    assert "the reason" in said
    assert f"relic: join failed with exit code 3; see {tmp_path}/logs/join.log" in said
    assert sorted(artifacts.read_json(tmp_path / "run.json")["nodes"]) == ["count"]


def test_a_traceback_stays_in_the_log(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished[0], "broken") == 1
    said = capsys.readouterr().err
    assert "  relic: grow failed: RuntimeError: the counting broke\n" in said
    assert "Traceback" not in said
    assert "Traceback" in (finished[0] / "logs" / "grow.log").read_text()


def failing(script: str) -> component.Component:
    inputs = fake_pipeline.COMPONENTS["join"].inputs
    return component.Component(
        name="join", about="", inputs=inputs, outputs={"artifact": "String"}, image="fake",
        command=(sys.executable, "-c", script),
    )  # fmt: skip


def test_a_killed_step_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fake_pipeline.COMPONENTS, "join", failing("import os; os.kill(os.getpid(), 9)"))
    assert run(tmp_path) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_ended_leaves_no_child_and_goes_on_where_it_was(tmp_path: Path, number: int) -> None:
    part = plan_of(tmp_path)[0]
    partial = artifacts.LocalStore(tmp_path / "store").partial("count", part.key)
    process = start(tmp_path, sleep_s=0.3)
    wait_for(partial / "file-1", process)
    child = int((partial / "file-1").read_text())
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert is_gone(child)
    kept = (partial / "file-0").stat().st_mtime_ns

    again = start(tmp_path)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert Path(part.uri, "file-0").stat().st_mtime_ns == kept
    assert stores.read_manifest(part.uri)["summary"]["pids"] == 2


def test_a_step_that_is_asked_to_end_does_so_at_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, fake_pipeline.__file__, "count", "--recipe", "even", "--store", str(tmp_path)]
    slow = {**os.environ, "FAKE_SLEEP_S": "0.3", steps.PARENT_PROCESS: ""}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=slow)
    partial = artifacts.LocalStore(tmp_path).partial("count", calls.read(TABLE["count"], command[3:], named).key)
    wait_for(partial / "file-1", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (75, "relic: stopped by SIGTERM; the same command goes on\n")
    assert not (partial / "file-5").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**slow, "FAKE_SLEEP_S": "0"})
    assert len(list(partial.with_suffix("").glob("file-*"))) == 6


def is_gone(pid: int, timeout_s: float = 5.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_pipeline_runs_against_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1", "RELIC_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    stores._s3_store.cache_clear()
    try:
        boto3.client("s3").create_bucket(Bucket="walks")
        assert run(tmp_path, store="s3://walks/tiny") == 0
        assert artifacts.read_json(tmp_path / "run.json")["nodes"]["grow"].startswith("s3://walks/tiny/grow/")
        shutil.rmtree(tmp_path / "cache")
        monkeypatch.setattr(local, "start", lambda *_: pytest.fail("a finished node was started"))
        stores.fetch.cache_clear()
        assert run(tmp_path, store="s3://walks/tiny") == 0
        assert artifacts.read_json(tmp_path / "report" / "report.json")["grown"] == 6
    finally:
        stores._s3_store.cache_clear()
        server.stop()


# What is left


def test_progress_lines_are_understood() -> None:
    assert progress.parse("[ 42%] 420/1000 loss 0.123 eta 31 s") == (0.42, "loss 0.123")
    assert progress.parse("[100%] 8/8") == (1.0, "")
    assert progress.parse("loading the maps") is None


def test_what_is_left_is_the_longest_way_and_not_the_sum(tmp_path: Path) -> None:
    nodes = plan_of(tmp_path)
    expected = {"count-0": 40.0, "count-1": 30.0, "join": 1.0, "grow": 100.0, "report": 5.0}
    bars = progress.Progress(nodes, expected, done={})
    assert bars.left_s() == 146.0
    bars.share["count-0"] = bars.share["count-1"] = 1.0
    assert bars.left_s() == 106.0


def test_a_nodes_own_speed_counts_once_it_is_known(tmp_path: Path) -> None:
    bars = progress.Progress(plan_of(tmp_path), {"grow": 100.0}, done={})
    bars.share["grow"], bars.started["grow"] = 0.5, (time.monotonic() - 30, 0.0)
    assert bars.node_left_s("grow") == pytest.approx(30, abs=1)


def test_an_earlier_artifact_says_how_long_a_step_takes(finished: tuple[Path, str]) -> None:
    out, _ = finished
    place = stores.open_store(str(out / "store"))
    known = progress.expected_s(plan_of(out), place, {"grow": 77.0})
    assert known["grow"] == 77.0
    assert known["join"] == stores.read_manifest(plan_of(out)[2].uri)["seconds"]


def test_spans_are_words() -> None:
    assert [progress.span(s) for s in (12, 200, 3900)] == ["12 s", "3 min 20 s", "1 h 5 min"]
