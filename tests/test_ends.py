"""The first and the last pod of a workflow. MLflow's real client is met in test_tracking."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_pipeline
import pytest
from fake_api import FakeApi, serving

from relic import cluster as clusters
from relic import kube, tracking, verdict
from relic.__main__ import main
from relic.parallel.config import Finding
from relic.pipeline import check, ends, plan
from relic.pipeline.site import Site

FILE = Path(__file__).parents[1] / "workflows" / "clusters" / "test.yaml"
JOBS = "/apis/kubeflow.org/v1/namespaces/relic/pytorchjobs"
UID = "uid-wm-1"


@dataclass
class Kept:
    """MLflow's runs, by id."""

    runs: dict[str, Any] = field(default_factory=dict)
    away: bool = False

    def server(self) -> type:
        kept = self

        class Server(tracking.Server):
            def __init__(self, uri: str) -> None:
                if kept.away:
                    raise ConnectionError("nobody is there")
                self.uri = uri
                self.client: Any = SimpleNamespace(
                    set_tag=lambda run, name, value: kept.runs[run].data.tags.update({name: value}),
                    update_run=lambda run, status: setattr(kept.runs[run].info, "status", status),
                )

            def start(self, name: str, tags: Mapping[str, str]) -> str:
                info = SimpleNamespace(run_id=f"run-{len(kept.runs)}", run_name=name, status="RUNNING")
                kept.runs[info.run_id] = SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(tags)), sent=[])
                return info.run_id

            def find(self, tags: Mapping[str, str], status: str = "") -> list[Any]:
                return [
                    run for run in kept.runs.values()
                    if tags.items() <= run.data.tags.items() and status in ("", run.info.status)
                ]  # fmt: skip

            def finished(self, store: str) -> set[str]:
                uris = {run.data.tags.get(tracking.ARTIFACT_TAG, "") for run in self.find({}, status="FINISHED")}
                return {uri for uri in uris if uri.startswith(f"{store}/")}

            def send(self, run_id: str, records: list[dict], folder: Path) -> None:
                kept.runs[run_id].sent += records

            def end(self, run_id: str, status: str) -> None:
                kept.runs[run_id].info.status = status

        return Server


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(tracking, "Server", kept.server())
    monkeypatch.setattr(ends, "AWAY_S", 0.01)
    monkeypatch.setattr(kube, "PAUSE_S", 0.01)
    return kept


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """The pod of a workflow, in a cluster where nothing is missing."""
    fake = FakeApi()
    fake.put("/apis/argoproj.io/v1alpha1/namespaces/relic/workflows/wm-1", spec={})
    for name, value in {
        clusters.FILE: str(FILE), tracking.WORKFLOW: "wm-1", tracking.WORKFLOW_UID: UID,
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(check, "examined", lambda site: [check.reachable(site)])
    with serving(fake) as api:
        monkeypatch.setattr(kube, "connect", lambda: api)
        yield fake


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# Begin


def test_begin_opens_one_run_however_often_it_is_tried(fake: FakeApi, kept: Kept, tmp_path: Path) -> None:
    for _ in range(2):
        assert main(["pipeline", "begin", "--parts", "2", "--run", str(tmp_path / "run")]) == 0
    (run,) = kept.runs.values()
    assert (tmp_path / "run").read_text() == run.info.run_id
    assert run.info.run_name == "world-model quick"  # the cluster's recipe
    assert {tracking.UID_TAG: UID, "relic.workflow": "wm-1", "parts": "2"}.items() <= run.data.tags.items()


def test_mlflow_that_is_away_costs_a_run_one_warning(
    fake: FakeApi, kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "BEGIN_S", 0.1)
    kept.away = True
    assert main(["pipeline", "begin", "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run").read_text() == ""
    assert capsys.readouterr().err == (
        "warning: MLflow at http://mlflow:5000 is not used (ConnectionError: nobody is there); "
        "figures stay beside the artifacts\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--recipe", "tyni", "did you mean 'tiny'?"),
        ("--parts", "many", "parts is many; it must be 1 to 10000"),
        ("--deploy", "perhaps", "deploy is 'perhaps'"),
        ("--nodes", "8:2", "nodes is '8:2'; it must be a number such as 2, or MIN:MAX such as 1:4"),
    ],
)
def test_a_persons_mistake_is_one_sentence(
    fake: FakeApi, kept: Kept, capsys: pytest.CaptureFixture[str], option: str, value: str, sentence: str
) -> None:
    assert main(["pipeline", "begin", option, value]) == 2
    assert sentence in said(capsys)
    assert not kept.runs


def test_begin_looks_at_the_cluster_as_this_run_needs_it(
    fake: FakeApi, kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites: list[Site] = []

    def examined(site: Site) -> list[Finding]:
        sites.append(site)
        return [Finding(verdict="fail", name="secrets", said="secret a does not exist")]

    monkeypatch.setattr(check, "examined", examined)
    assert main(["pipeline", "begin", "--store", "s3://b/p", "--nodes", "1:2", "--deploy", "no"]) == 2
    assert said(capsys) == "relic: secret a does not exist"
    assert (sites[0].inside, sites[0].store, sites[0].nodes, sites[0].deploys) == (True, "s3://b/p", "1:2", False)


def test_a_cluster_that_does_not_answer_is_tried_again(
    fake: FakeApi, kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "PATIENCE_S", 0.05)
    fake.failing = 1000 * [503]
    assert main(["pipeline", "begin"]) == verdict.STOPPED
    assert said(capsys).endswith("does not answer (the server is starting); the same command goes on")


def test_outside_a_pod_there_is_nothing_to_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(clusters.FILE, raising=False)
    assert main(["pipeline", "begin"]) == 2
    assert "this is a pod's command" in said(capsys)


# End


def ended(status: str = "Succeeded") -> int:
    """The last pod, whose parameters `begin` had refused: there are no nodes."""
    return main(["pipeline", "end", "--status", status, "--recipe", "tyni"])


def test_jobs_that_have_not_ended_are_deleted(fake: FakeApi, kept: Kept) -> None:
    mine = {"relic.dev/workflow": UID}
    fake.put(f"{JOBS}/runs", labels=mine, status={"conditions": [{"type": "Running", "status": "True"}]})
    fake.put(f"{JOBS}/new", labels=mine)
    fake.put(f"{JOBS}/done", labels=mine, status={"conditions": [{"type": "Succeeded", "status": "True"}]})
    fake.put(f"{JOBS}/anothers", labels={"relic.dev/workflow": "uid-wm-2"})
    assert ended() == 0
    assert {job["metadata"]["name"] for job in fake.of("pytorchjobs")} == {"done", "anothers"}


def test_jobs_are_deleted_while_mlflow_is_away(
    fake: FakeApi, kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "END_S", 0.1)
    kept.away = True
    fake.put(f"{JOBS}/runs", labels={"relic.dev/workflow": UID})
    assert ended() == 0
    assert not fake.of("pytorchjobs")
    assert "warning: MLflow at http://mlflow:5000 is not used" in said(capsys)


@pytest.mark.parametrize(
    ("argo", "spec", "mlflow"),
    [("Succeeded", {}, "FINISHED"), ("Error", {}, "FAILED"), ("Failed", {"shutdown": "Stop"}, "KILLED")],
)
def test_mlflows_run_ends_as_the_workflow_did(
    fake: FakeApi, kept: Kept, argo: str, spec: dict[str, str], mlflow: str
) -> None:
    fake.put("/apis/argoproj.io/v1alpha1/namespaces/relic/workflows/wm-1", spec=spec)
    server = tracking.Server("")
    server.start("world-model quick", {tracking.UID_TAG: UID})
    ended(argo)
    assert [run.info.status for run in kept.runs.values()] == [mlflow]


def test_a_server_that_starts_again_is_waited_for(fake: FakeApi, kept: Kept) -> None:
    fake.put(f"{JOBS}/runs", labels={"relic.dev/workflow": UID})
    fake.failing = [503, 0, 429]
    assert ended() == 0
    assert not fake.of("pytorchjobs")


def test_a_refusal_that_passes_leaves_no_job(fake: FakeApi, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put(f"{JOBS}/runs", labels={"relic.dev/workflow": UID})
    listed = ends.left

    def then_refused(api: kube.Api, uid: str) -> list[dict]:
        found = listed(api, uid)
        fake.failing = [403, 401]
        return found

    monkeypatch.setattr(ends, "left", then_refused)
    assert ended() == 0
    assert not fake.of("pytorchjobs")


@pytest.mark.parametrize("away", [True, False])
def test_what_cannot_be_deleted_is_said_and_a_good_workflow_stays_good(
    fake: FakeApi, kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    monkeypatch.setattr(ends, "PATIENCE_S", 0.1)
    fake.failing = 1000 * [503] if away else []
    fake.forbidden = {("list", "pytorchjobs")}
    tracking.Server("").start("world-model quick", {tracking.UID_TAG: UID})
    assert ended() == 0
    why = "the API server does not answer (the server is starting)" if away else "pytorchjobs is forbidden: cannot list"
    last = said(capsys)
    assert last.startswith("warning: PyTorchJobs of wm-1 may be left: ")
    assert why in last
    assert [run.info.status for run in kept.runs.values()] == ["FINISHED"]


def test_a_workflow_that_never_began_leaves_no_run(fake: FakeApi, kept: Kept) -> None:
    assert ended("Failed") == 0
    assert not kept.runs


def counted(store: Path) -> list[plan.Node]:
    """A finished step, its records beside it, and one that is not."""
    values = {"recipe": "even", "store": store.as_posix(), "parts": "1"}
    nodes = plan.make(fake_pipeline.GRAPH, fake_pipeline.named("even"), table=fake_pipeline.TABLE, values=values)
    count, join, *_ = nodes
    for node in (count, join):
        command = [node.step.component, "--recipe", "even", "--store", values["store"]]
        inputs = [word for name, uris in node.inputs.items() for word in (f"--{name}", *uris)]
        assert fake_pipeline.main([*command, *inputs]) == 0
    return nodes[:3]


def test_what_mlflow_has_missed_is_sent_at_the_end(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)  # nobody sends anything while the steps run
    nodes = counted(tmp_path)
    monkeypatch.setenv(tracking.WORKFLOW_UID, UID)
    server = tracking.Server("")
    parent = server.start("counting even", {tracking.UID_TAG: UID})
    known = server.start("count", {tracking.ARTIFACT_TAG: nodes[0].uri})  # of an earlier workflow
    server.end(known, "FINISHED")
    assert ends.closed(server, "counting even", {tracking.UID_TAG: UID}, nodes, "FINISHED")
    *_, late = kept.runs.values()
    assert (late.info.run_name, late.info.status, late.data.tags[tracking.NESTED_TAG]) == ("join", "FINISHED", parent)
    assert [record["metrics"]["loss"] for record in late.sent if "loss" in record.get("metrics", {})][:2] == [1, 0.5]
    assert len(kept.runs) == 3


def test_of_what_mlflow_has_missed_the_trainings_come_first(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    first, last = counted(tmp_path)[:2]
    last = replace(last, step=replace(last.step, pool="training"))
    assert ends.closed(tracking.Server(""), "counting even", {tracking.UID_TAG: UID}, [first, last], "FINISHED")
    assert [run.info.run_name for run in kept.runs.values()] == ["counting even", last.name, first.name]


def test_mlflows_run_ends_even_where_too_much_is_missing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tracking.PARENT, tracking.RUNNER)
    monkeypatch.setattr(ends, "LATE_S", -1.0)
    nodes = counted(tmp_path)
    assert ends.closed(tracking.Server(""), "counting even", {tracking.UID_TAG: UID}, nodes, "FINISHED")
    assert [run.info.status for run in kept.runs.values()] == ["FINISHED"]
    assert f"MLflow may lack figures; they are in tracking.jsonl of {nodes[0].uri}" in capsys.readouterr().out


def test_runs_that_began_while_mlflow_was_away_are_nested_at_the_end(kept: Kept) -> None:
    server = tracking.Server("")
    lost = server.start("teacher", {tracking.OF_UID_TAG: UID})
    assert ends.closed(server, "world-model tiny", {tracking.UID_TAG: UID, "parts": "2"}, [], "FINISHED")
    (parent,) = server.find({tracking.UID_TAG: UID, "parts": "2"})
    assert kept.runs[lost].data.tags[tracking.NESTED_TAG] == parent.info.run_id
    assert (kept.runs[lost].info.status, parent.info.status) == ("FAILED", "FINISHED")
