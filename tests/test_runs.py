import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi, serving

from relic import kube
from relic.__main__ import main
from relic.pipeline import status

FILE = Path(__file__).parents[1] / "workflows" / "clusters" / "test.yaml"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/relic/workflows"
TEMPLATE = "/apis/argoproj.io/v1alpha1/namespaces/relic/workflowtemplates/world-model"
JOBS = "/apis/kubeflow.org/v1/namespaces/relic/pytorchjobs"
PODS = "/api/v1/namespaces/relic/pods"
BEGAN, ENDED = "2026-01-01T10:00:00Z", "2026-01-01T10:01:10Z"


@pytest.fixture
def fake() -> FakeApi:
    fake = FakeApi()
    choices = {"recipe": ["tiny", "quick"], "store": None, "parts": None, "nodes": None, "deploy": ["yes", "no"]}
    known = [{"name": name, "value": "", **({"enum": e} if e else {})} for name, e in choices.items()]
    fake.put(TEMPLATE, spec={"arguments": {"parameters": known}})
    return fake


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with serving(fake) as api:
        monkeypatch.setattr(kube, "connect", lambda: api)
        yield api


def relic(action: str, *args: str) -> int:
    return main(["pipeline", action, *args, "--cluster", str(FILE)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def node(name: str, phase: str, *, kind: str = "Pod", children: tuple[str, ...] = (), **more: str) -> dict[str, Any]:
    ended = {"finishedAt": ENDED} if phase in ("Succeeded", "Failed", "Error") else {}
    return {
        "id": f"id-{name}", "displayName": name, "type": kind, "phase": phase, "startedAt": BEGAN, **ended,
        "children": [f"id-{child}" for child in children], **more,
    }  # fmt: skip


def workflow(fake: FakeApi, *nodes: dict[str, Any], phase: str = "Running", name: str = "wm-1") -> None:
    found = {one["id"]: one for one in nodes}
    status = {"phase": phase, "startedAt": BEGAN, "finishedAt": ENDED, "progress": "1/2", "nodes": found}
    fake.put(f"{WORKFLOWS}/{name}", spec={}, status=status)


# Submit


def test_a_run_is_a_workflow_with_what_was_said_and_no_more(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relic("submit", "--recipe", "tiny", "--parts", "3") == 0
    (made,) = fake.of("workflows")
    assert capsys.readouterr().out.strip() == made["metadata"]["name"]
    assert made["spec"] == {
        "workflowTemplateRef": {"name": "world-model"},
        "arguments": {"parameters": [{"name": "recipe", "value": "tiny"}, {"name": "parts", "value": "3"}]},
    }


def test_options_come_before_a_file(api: Any, fake: FakeApi, tmp_path: Path) -> None:
    given = [{"name": "recipe", "value": "tiny"}, {"name": "parts", "value": 4}]
    spec = {"workflowTemplateRef": {"name": "world-model"}, "arguments": {"parameters": given}}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"kind": "Workflow", "metadata": {"generateName": "tiny-"}, "spec": spec}))
    assert relic("submit", "--file", str(file), "--recipe", "quick", "--name", "mine") == 0
    (made,) = fake.of("workflows")
    assert made["metadata"]["name"] == "mine"
    assert {one["name"]: one["value"] for one in made["spec"]["arguments"]["parameters"]} == {
        "recipe": "quick", "parts": "4",
    }  # fmt: skip


def test_a_parameter_that_the_template_lacks_is_a_mistake(
    api: Any, fake: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {
        "workflowTemplateRef": {"name": "world-model"},
        "arguments": {"parameters": [{"name": "part", "value": "4"}]},
    }
    (tmp_path / "run.yaml").write_text(json.dumps({"kind": "Workflow", "metadata": {}, "spec": spec}))
    assert relic("submit", "--file", str(tmp_path / "run.yaml")) == 2
    assert "world-model has no parameter 'part'; did you mean 'parts'?" in said(capsys)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--recipe", "tyni", "did you mean 'tiny'?"),
        ("--recipe", "small", "recipe is 'small'"),  # relic has it, this cluster's template does not
        ("--parts", "0", "parts is 0; it must be 1 to 10000"),
        ("--store", "out/demo", "store is 'out/demo'; it must be s3://BUCKET/PREFIX"),
        ("--nodes", "2-4", "nodes is '2-4'; it must be a number such as 2, or MIN:MAX"),
        ("--deploy", "maybe", "deploy is 'maybe'; did you mean"),
        ("--name", "Mine", "name is 'Mine'; allowed are at most 40 small letters"),
        ("--file", "none.yaml", "there is no file none.yaml; workflows/runs/ has examples"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_made(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str], option: str, value: str, sentence: str
) -> None:
    assert relic("submit", option, value) == 2
    assert sentence in said(capsys)
    assert not fake.of("workflows")


def test_a_cluster_without_the_template_says_how_it_comes_there(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake.objects[TEMPLATE]
    assert relic("submit") == 2
    assert "relic pipeline render --cluster FILE | kubectl -n relic apply -f -" in said(capsys)


def test_a_refusal_is_one_sentence(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    fake.forbidden = {("create", "workflows")}
    assert relic("submit") == 2
    assert said(capsys) == "relic: the cluster refuses this: workflows is forbidden: cannot create"


# Status


def test_runs_are_listed_with_their_phase_and_time(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    workflow(fake, phase="Succeeded")
    assert relic("status") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["wm-1", "Succeeded", "1/2", "1", "min", "10", "s"]


def test_a_step_shows_its_tries_its_last_words_and_its_job(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    log = "main: Error (exit code 1): step 3\nrelic: teacher failed: it broke\n"
    workflow(
        fake,
        node("teacher", "Failed", kind="Retry", children=("teacher(0)", "teacher(1)"), message="evaluated to false"),
        node("teacher(0)", "Error"), node("teacher(1)", "Failed", message=log),
    )  # fmt: skip
    labels = {"relic.dev/workflow": "uid-wm-1", "relic.dev/step": "teacher"}
    fake.put(f"{JOBS}/t", labels=labels, spec={}, status={"conditions": [{"type": "Running", "status": "True"}]})
    assert relic("status", "wm-1") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split("  ")[0] == "teacher"
    assert last.endswith("try 2 · job Running · teacher failed: it broke")


def test_of_a_message_with_a_log_one_line_is_shown() -> None:
    argos = 'time=2026-01-01T10:00:00.1Z level=INFO msg="sub-process exited" argo=true error=x'
    assert status.one_line(f"main: Error (exit code 143): {argos}\n{argos}\n") == "main: Error (exit code 143)"
    assert status.one_line(f"main: Error (exit code 2): ok\nrelic: no\n{argos}\nError: exit status 2") == "no"
    assert status.one_line("x" * 500).endswith("x…")


def test_many_parts_are_one_row_and_those_that_failed() -> None:
    parts = [node(f"curate({at}:{at})", "Failed" if at == 7 else "Succeeded") for at in range(200)]
    rows = status.rows_of(parts, {})
    assert [(row[0], row[1]) for row in rows] == [
        ("curate x 200", "199 Succeeded, 1 Failed"), ("curate(7:7)", "Failed"),
    ]  # fmt: skip


def test_steps_that_argo_has_packed_are_read() -> None:
    packed = base64.b64encode(gzip.compress(json.dumps({"a": node("codec", "Running")}).encode())).decode()
    assert status.nodes({"status": {"compressedNodes": packed}})[0]["displayName"] == "codec"


def test_a_job_that_kueue_holds_back_is_queued() -> None:
    created = [{"type": "Created", "status": "True"}]
    job: dict[str, Any] = {"spec": {"runPolicy": {"suspend": True}}, "status": {"conditions": created}}
    assert status.condition(job) == "job Queued"
    job["spec"]["runPolicy"]["suspend"] = False
    assert status.condition(job) == "job Created"


def test_a_run_that_is_not_there_names_those_that_are(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow(fake, name="wm-7")
    assert relic("status", "wm-1") == 2
    assert "there is no run 'wm-1' in namespace relic; did you mean 'wm-7'?" in said(capsys)


# Logs


def test_the_log_of_a_steps_newest_try_is_printed(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    tries = ("teacher(0)", "teacher(1)")
    workflow(
        fake,
        node("teacher", "Running", kind="Retry", children=tries),
        node(tries[0], "Error"),
        node(tries[1], "Running"),
    )
    for name in tries:
        pod = fake.put(f"{PODS}/{name[-2]}", labels={"workflows.argoproj.io/workflow": "wm-1"})
        pod["metadata"]["annotations"] = {"workflows.argoproj.io/node-id": f"id-{name}"}
        pod["status"] = {"containerStatuses": [{"name": "main", "state": {"running": {}}}]}
        argos = 'time=2026-01-01T10:00:00.1Z level=INFO msg="waiting for signals" argo=true path=/var'
        fake.logs[name[-2]] = f"{argos}\nlog of {name}\n[ 50%] 1/2\nError: exit status 1"
    assert relic("logs", "wm-1", "teacher") == 0
    assert capsys.readouterr().out.splitlines() == ["log of teacher(1)", "[ 50%] 1/2"]


def test_a_pod_that_is_gone_leaves_its_last_words(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    workflow(fake, node("codec", "Failed", message="relic: the bucket is gone"))
    assert relic("logs", "wm-1", "codec") == 2
    assert said(capsys).endswith("its last words: the bucket is gone")


def test_of_a_fan_out_one_part_is_asked_for(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    workflow(fake, node("curate(0:0)", "Running"), node("curate(1:1)", "Running"))
    assert relic("logs", "wm-1", "curate") == 2
    assert said(capsys) == "relic: curate has 2 parts; say which, such as 'curate(0:0)'"
    assert relic("logs", "wm-1", "curat") == 2
    assert "wm-1 has not come to a step 'curat'; did you mean 'curate'?" in said(capsys)


# Stop


def test_stopping_asks_argo_and_says_what_comes_of_it(
    api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow(fake)
    assert relic("stop", "wm-1") == 0
    assert fake.objects[f"{WORKFLOWS}/wm-1"]["spec"] == {"shutdown": "Stop"}
    assert capsys.readouterr().out.startswith("wm-1 is stopping: its steps save and end")


def test_what_has_ended_is_not_stopped(api: Any, fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    workflow(fake, phase="Failed")
    assert relic("stop", "wm-1") == 0
    assert capsys.readouterr().out == "wm-1 had ended: Failed\n"
    assert fake.objects[f"{WORKFLOWS}/wm-1"]["spec"] == {}


def test_an_action_without_its_name_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert relic("logs", "wm-1") == 2
    assert said(capsys) == "relic: relic pipeline logs is given 'wm-1'; it takes NAME STEP before its options"
    assert main(["pipeline", "stop", "wm-1"]) == 2
    assert "needs --cluster FILE" in said(capsys)
