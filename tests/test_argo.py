import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hera.workflows import models

from relic import __main__ as command
from relic import cluster as clusters
from relic import pods, recipes, steps
from relic.mistakes import UserError
from relic.pipeline import argo, component, document, graph
from relic.pipeline.graph import FanOut, Graph, Input, Parameter, Step

ROOT = Path(__file__).parents[1]
CLUSTERS = sorted(path.stem for path in (ROOT / "workflows" / "clusters").glob("*.yaml"))
WIRED = graph.load(ROOT / "workflows" / "world_model.py")


def source(name: str, **changed: Any) -> argo.Rendering:
    given = argo.Rendering(
        workflow="world_model", graph=WIRED, cluster=clusters.load(ROOT / "workflows" / "clusters" / f"{name}.yaml"),
        table=steps.STEPS, components=component.load_all(ROOT / "components"), recipes=recipes.RECIPES,
    )  # fmt: skip
    return replace(given, **changed)


def spec(name: str, **changed: Any) -> dict[str, Any]:
    return argo.workflow(source(name, **changed)).to_dict()["spec"]


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The templates that are pods, by name."""
    return {one["name"]: one for one in spec["templates"] if "container" in one}


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in spec["templates"][0]["dag"]["tasks"]}


def words(template: dict[str, Any]) -> list[str]:
    return template["container"]["command"] + template["container"]["args"]


# What is committed


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_command_writes_what_is_committed(name: str, tmp_path: Path) -> None:
    cluster = ROOT / "workflows" / "clusters" / f"{name}.yaml"
    assert command.main(["pipeline", "render", "--cluster", str(cluster), "--out", str(tmp_path / "a.yaml")]) == 0
    rendered = ROOT / "workflows" / "rendered" / f"{name}.yaml"
    again = f"relic pipeline render --cluster {cluster.relative_to(ROOT)} --out {rendered.relative_to(ROOT)}"
    assert (tmp_path / "a.yaml").read_text() == rendered.read_text(), f"run {again}"


def test_without_out_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["pipeline", "render", "--cluster", str(ROOT / "workflows" / "clusters" / "test.yaml")]) == 0
    config, template = yaml.safe_load_all(capsys.readouterr().out)
    assert config["data"]["cluster.yaml"] == (ROOT / "workflows" / "clusters" / "test.yaml").read_text()
    assert template["metadata"]["name"] == pods.TEMPLATE


@pytest.mark.parametrize("name", CLUSTERS)
def test_hera_knows_all_that_is_written(name: str) -> None:
    _, template = yaml.safe_load_all((ROOT / "workflows" / "rendered" / f"{name}.yaml").read_text())
    model = models.WorkflowTemplate.model_validate(template)
    assert model.model_dump(exclude_none=True, by_alias=True) == template
    with pytest.raises(AssertionError, match="Hera loses something"):
        argo.typed(models.EnvVar, {"name": "A", "valeu": "b"})


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_and_config_map_are_valid_kubernetes(name: str) -> None:
    config, template = yaml.safe_load_all((ROOT / "workflows" / "rendered" / f"{name}.yaml").read_text())
    patch = yaml.safe_load(template["spec"]["podSpecPatch"])
    fields = ("nodeSelector", "tolerations", "serviceAccountName", "volumes", "activeDeadlineSeconds")
    for one in containers(template["spec"]).values():
        main = {"name": "main", **one["container"]}
        own = {key: one[key] for key in fields if key in one}
        pod = {
            **own,
            "containers": [main, *patch["containers"]],
            "securityContext": template["spec"]["securityContext"],
        }
        said = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **one["metadata"]}, "spec": pod}
        kubernetes_validate.validate(said, kubernetes_validate.latest_version(), strict=True)
    kubernetes_validate.validate(config, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_sets_what_the_template_knows(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    assert models.Workflow.model_validate(said).model_dump(exclude_none=True, by_alias=True) == said
    assert said["spec"]["workflowTemplateRef"]["name"] == WIRED.name
    given = {one["name"]: one["value"] for one in said["spec"]["arguments"]["parameters"]}
    assert given.keys() <= {one["name"] for one in spec("test")["arguments"]["parameters"]}
    assert recipes.named(given["recipe"]).name == path.stem


# The graph


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_step_is_there_after_what_it_reads_and_after_the_preflight(name: str) -> None:
    rendered = spec(name)
    done: set[str] = set()
    for step, task in tasks(rendered).items():
        assert set(task.get("dependencies", ())) <= done
        assert task.get("dependencies") or step == "preflight"
        done.add(step)
    assert done == {"preflight", *(step.name for step in WIRED.steps)}
    assert containers(rendered).keys() == {*done, "end"}


def test_nothing_but_text_travels() -> None:
    for one in containers(spec("large")).values():
        assert {*one.get("inputs", {}), *one.get("outputs", {})} <= {"parameters"}
    curate = containers(spec("large"))["curate"]
    assert curate["outputs"]["parameters"] == [{"name": "artifact", "valueFrom": {"path": "/tmp/artifact"}}]
    assert words(curate)[-2:] == ["--artifact", "/tmp/artifact"]


def test_parameters_have_the_clusters_defaults() -> None:
    found = {one["name"]: one for one in spec("large")["arguments"]["parameters"]}
    assert {name: one["value"] for name, one in found.items()} == {
        "recipe": "wan_1b", "store": "s3://relic-artifacts/store", "parts": "200", "deploy": "yes", "nodes": "4",
    }  # fmt: skip
    assert found["recipe"]["enum"] == list(recipes.RECIPES)
    assert all(one["description"] for one in found.values())


def test_deploy_can_be_left_out() -> None:
    assert tasks(spec("test"))["deploy"]["when"] == "{{workflow.parameters.deploy}} == yes"
    without = replace(WIRED, steps=tuple(step for step in WIRED.steps if step.name != "deploy"))
    assert "deploy" not in {one["name"] for one in spec("test", graph=without)["arguments"]["parameters"]}


def test_another_graph_is_rendered_with_its_own_parameter_of_parts() -> None:
    pieces = Graph(
        name="pieces", about="two steps", report="all", world="all",
        parameters=tuple(Parameter(name=name, default="3", about=name) for name in ("recipe", "store", "pieces")),
        steps=(
            Step(name="walks", component="curate", fan_out=FanOut("pieces")),
            Step(name="all", component="join", inputs={"parts": Input("walks")}),
        ),
    )  # fmt: skip
    rendered = spec("test", graph=pieces)
    assert tasks(rendered)["walks"]["withSequence"] == {"count": "{{workflow.parameters.pieces}}"}
    line = words(containers(rendered)["walks"])
    assert line[line.index("--parts") + 1] == "{{workflow.parameters.pieces}}"
    line = words(containers(rendered)["all"])
    assert line[line.index("--parts") + 1] == "{{inputs.parameters.parts}}"
    assert [one["name"] for one in rendered["arguments"]["parameters"]] == ["recipe", "store", "pieces"]
    assert "--parts" not in words(containers(rendered)["preflight"])


# Where a step runs


def launched(rendered: dict[str, Any]) -> set[str]:
    return {name for name, one in containers(rendered).items() if words(one)[1] == "launch"}


def test_what_trains_or_asks_for_gpus_is_launched() -> None:
    trained = {step.name for step in WIRED.steps if steps.STEPS[step.component].trains}
    assert launched(spec("test")) == trained
    assert launched(spec("large")) == trained | {step.name for step in WIRED.steps if step.pool == "gpu"}
    line = words(containers(spec("large"))["teacher"])
    assert " ".join(line).startswith(
        "relic launch --backend pytorchjob --pool training --nodes {{workflow.parameters.nodes}} -- relic teacher "
    )
    assert "--nodes" not in words(containers(spec("large"))["shard"])


def test_a_launcher_is_small_and_has_its_account_and_no_gpu() -> None:
    cluster, rendered = source("large").cluster, spec("large")
    for name in launched(rendered):
        one = containers(rendered)[name]
        assert one["container"]["image"] == cluster.images.control
        assert one["serviceAccountName"] == "relic-launcher"
        assert one["nodeSelector"] == {"relic.dev/pool": "cpu"}
        assert one["container"]["resources"]["limits"] == {"memory": "256Mi"}
    assert "nvidia.com/gpu" not in json.dumps(rendered)


def test_a_step_runs_on_its_pool_in_its_image_with_the_least_account() -> None:
    taint = clusters.Toleration(key="cpu-only", operator="Equal", value="yes")
    large = source("large").cluster
    pool = replace(large.pools["cpu"], node_selector={"kind": "cpu"}, tolerations=(taint,))
    cluster = replace(large, pools={**large.pools, "cpu": pool})
    rendered = spec("large", cluster=cluster)
    for name in set(containers(rendered)) - launched(rendered) - {"preflight", "end"}:
        one = containers(rendered)[name]
        assert one["nodeSelector"] == {"kind": "cpu"}
        assert one["tolerations"] == pods.tolerations(pool)
        assert one["container"]["resources"] == pods.resources(cluster, pool)
        assert one["container"]["image"] == (cluster.images.control if name == "deploy" else cluster.images.train)
        assert one.get("serviceAccountName") == ("relic-deploy" if name == "deploy" else None)
    assert rendered["serviceAccountName"] == "relic-step"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_is_restricted_and_says_its_sentence(name: str) -> None:
    rendered = spec(name)
    assert rendered["securityContext"] == pods.POD_SECURITY
    patch = yaml.safe_load(rendered["podSpecPatch"])
    theirs = {one["name"]: one for one in patch["initContainers"] + patch["containers"]}
    assert set(theirs) == {"init", "wait"}
    for one in [*theirs.values(), *(found["container"] for found in containers(rendered).values())]:
        assert one["securityContext"] == pods.CONTAINER_SECURITY
    for found in containers(rendered).values():
        assert found["container"]["terminationMessagePolicy"] == "FallbackToLogsOnError"
        known = {one["name"]: one.get("value") for one in found["container"]["env"]}
        assert known["RELIC_WORKFLOW_UID"] == "{{workflow.uid}}"
        assert known["RELIC_LAST_WORDS"] == "/dev/termination-log"


def test_steps_know_the_run_that_the_preflight_opened() -> None:
    rendered = containers(spec("test"))
    (run,) = rendered["preflight"]["outputs"]["parameters"]
    assert words(rendered["preflight"])[-2:] == ["--run", run["valueFrom"]["path"]]
    for name in set(rendered) - {"preflight", "end"}:
        known = {one["name"]: one["value"] for one in rendered[name]["container"]["env"]}
        assert known["RELIC_PARENT_RUN"] == f"{{{{workflow.outputs.parameters.{run['globalName']}}}}}"


# How it ends


@pytest.mark.parametrize(
    ("status", "code", "message", "again"),
    [
        ("Failed", "75", "main: Error (exit code 75): relic: stopped by SIGTERM", True),
        ("Failed", "70", "main: Error (exit code 70): relic: no step for 900 s", True),
        ("Failed", "137", "main: Error (exit code 137): torch says is invalid", True),
        ("Failed", "143", "main: Error (exit code 143)", True),
        ("Failed", "-1", "The node was low on resource: memory.", True),
        ("Error", "-1", "pod deleted", True),
        ("Failed", "1", "main: Error (exit code 1): relic: teacher failed", False),
        ("Failed", "2", "main: Error (exit code 2): relic: fps is 0", False),
        ("Failed", "3", "main: Error (exit code 3): relic: teacher ran out of memory", False),
        ("Failed", "137", "main: OOMKilled (exit code 137)", False),
        ("Failed", "143", "Pod was active on the node longer than the specified deadline", False),
        ("Failed", "137", 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi".', False),
        ("Error", "-1", 'pods "a" is forbidden: violates PodSecurity "restricted:latest"', False),
    ],
)
def test_only_what_was_lost_is_retried(status: str, code: str, message: str, again: bool) -> None:
    known = {"lastRetry.status": repr(status), "lastRetry.exitCode": repr(code)}
    python = argo.RETRIED
    for name, value in known.items():
        python = python.replace(name, value)
    python = re.sub(r'lastRetry\.message matches\s+("[^"]*")', r"bool(re.search(\1, message))", python)
    assert eval(f"({python})", {"re": re, "message": message}) is again


def test_a_step_has_its_time_and_one_that_is_launched_may_wait_in_a_queue() -> None:
    rendered = containers(spec("test"))
    assert rendered["curate"]["activeDeadlineSeconds"] == 3600
    assert "activeDeadlineSeconds" not in rendered["teacher"]
    assert rendered["teacher"]["retryStrategy"]["limit"] == 4


def test_the_preflight_is_short_and_retried_without_an_expression() -> None:
    preflight = containers(spec("test"))["preflight"]
    assert preflight["activeDeadlineSeconds"] < 120
    assert preflight["retryStrategy"] == {"limit": 4, "retryPolicy": "OnError"}


def test_the_exit_handler_runs_unless_the_preflight_has_failed() -> None:
    rendered = spec("test")
    handler = next(one for one in rendered["templates"] if one["name"] == rendered["onExit"])
    ((call,),) = handler["steps"]
    said = re.search("'(.*?)'", call["when"])
    assert said is not None
    for name, begun in (("preflight", False), ("preflight(0)", True), ("teacher", True)):
        failed = {"displayName": name, "message": "after the preflight", "templateName": "preflight"}
        failures = json.dumps(json.dumps([failed], separators=(",", ":")))
        assert (re.search(said[1], failures) is None) is begun


# Mistakes


def test_the_first_and_the_last_pod_know_what_a_person_has_set() -> None:
    made = spec("large")
    for name in (argo.PREFLIGHT, argo.END):
        said = words(containers(made)[name])
        for parameter in made["arguments"]["parameters"]:
            at = said.index(f"--{parameter['name']}")
            assert said[at + 1] == f"{{{{workflow.parameters.{parameter['name']}}}}}"


def test_the_preflight_starts_without_the_secrets_to_say_which_is_missing() -> None:
    found = containers(spec("one_gpu"))
    (secret,) = found[argo.PREFLIGHT]["container"]["envFrom"]
    assert secret == {"secretRef": {"name": "relic-store", "optional": True}}
    assert found["curate"]["container"]["envFrom"] == [{"secretRef": {"name": "relic-store"}}]


def test_a_pool_that_the_cluster_lacks_is_a_sentence() -> None:
    cluster = source("test").cluster
    cluster = replace(cluster, pools={name: pool for name, pool in cluster.pools.items() if name != "training"})
    with pytest.raises(UserError, match="cluster test has no pool 'training'; did you mean"):
        argo.workflow(source("test", cluster=cluster))


def test_an_image_that_the_cluster_lacks_is_a_sentence() -> None:
    components = source("test").components
    strange = {**components, "export": replace(components["export"], image="relic/exporter:0.1.0")}
    with pytest.raises(
        UserError, match=r"export wants the image relic/exporter:0\.1\.0; did you mean .*train, serve, con"
    ):
        argo.workflow(source("test", components=strange))


def test_an_input_that_nobody_gives_is_a_sentence() -> None:
    blind = replace(WIRED, parameters=tuple(one for one in WIRED.parameters if one.name != "recipe"))
    with pytest.raises(UserError, match="curate is given no 'recipe'; did you mean"):
        argo.workflow(source("test", graph=blind))


def test_a_missing_cluster_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["pipeline", "render"]) == 2
    assert "needs --cluster" in capsys.readouterr().err
    assert command.main(["pipeline", "render", "--cluster", "nowhere.yaml"]) == 2
    assert "there is no cluster file nowhere.yaml" in capsys.readouterr().err


def test_without_hera_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "hera.workflows", None)
    monkeypatch.delitem(sys.modules, "relic.pipeline.argo")
    monkeypatch.delattr("relic.pipeline.argo")
    cluster = ROOT / "workflows" / "clusters" / "test.yaml"
    assert command.main(["pipeline", "render", "--cluster", str(cluster)]) == 2
    assert "rendering needs hera.workflows; install the extra: pip install 'relic[cluster]'" in capsys.readouterr().err


# The YAML


@pytest.mark.parametrize(
    "said", ["yes", "1:4", "0x10", "{{a.b}}", "a\nb\n", "", "null", "--flag", "a: b", "2026-01-01"]
)
def test_text_stays_text(said: str) -> None:
    written = [{"name": said, "list": [said, said], "inside": {"data": said}}]
    assert list(yaml.safe_load_all(document.dump(written))) == written


def test_names_come_first_and_small_objects_stand_on_a_line() -> None:
    text = document.dump(
        [{"spec": {"templates": [], "b": 1, "name": "x"}, "kind": "K", "env": [{"value": 1, "name": "a"}]}]
    )
    assert text == "kind: K\nspec: {name: x, b: 1, templates: []}\nenv:\n  - {name: a, value: 1}\n"
