"""Runs on a cluster: `relic pipeline submit`, `logs` and `stop` (`status` in status.py). Everything is asked of the API
server, as kubectl and argo ask it; there is no server of our own."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from relic import kube, pod_facts, pods
from relic.launch import state
from relic.mistakes import UserError, allowed
from relic.pipeline.status import ARGOS, get, nodes, one_line, step_of, tasks

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")  # pods are named by it and by the step
MAIN = "main"  # Argo's name of a step's own container
NODE_ID = "workflows.argoproj.io/node-id"  # Argo's annotation on them
POLL_S = 2.0


def submit(api: kube.Api, values: Mapping[str, str], *, name: str = "", file: str = "") -> str:
    """Creates a Workflow of the template with the values that are given, or of a file; returns its name."""
    if name and not NAME.fullmatch(name):
        raise UserError(f"name is {name!r}; allowed are at most 40 small letters, digits and hyphens")
    body = read(Path(file)) if file else blank()
    spec = body["spec"]
    said = set_in(body) | {parameter: value for parameter, value in values.items() if value}
    spec["arguments"] = {"parameters": [{"name": parameter, "value": value} for parameter, value in said.items()]}
    if name:
        body["metadata"] = {**body["metadata"], "name": name}
        body["metadata"].pop("generateName", None)
    body["metadata"]["namespace"] = api.namespace
    template = spec["workflowTemplateRef"]["name"]
    fitting(api.get("workflowtemplates", template), api.namespace, template, said)
    # tried once: an answer that is lost would otherwise start two runs
    made = api.ask("POST", api.place("workflows"), body, absent=(), patience_s=0)
    return made["metadata"]["name"]


def blank() -> dict[str, Any]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{pods.TEMPLATE}-"},
        "spec": {"workflowTemplateRef": {"name": pods.TEMPLATE}},
    }


def read(path: Path) -> dict[str, Any]:
    """The Workflow of a file such as workflows/runs/tiny.yaml."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; workflows/runs/ has examples")
    body = yaml.safe_load(path.read_text())
    if (
        not isinstance(body, dict)
        or body.get("kind") != "Workflow"
        or "workflowTemplateRef" not in body.get("spec", {})
    ):
        raise UserError(f"{path} is no Workflow with a workflowTemplateRef; workflows/runs/ has examples")
    return body


def parameters(path: str) -> dict[str, str]:
    """What a file of workflows/runs/ sets; nothing without a file."""
    return set_in(read(Path(path))) if path else {}


def set_in(workflow: dict[str, Any]) -> dict[str, str]:
    """The parameters of a Workflow."""
    found = workflow["spec"].get("arguments", {}).get("parameters", [])
    return {one["name"]: str(one.get("value", "")) for one in found}


def fitting(template: dict | None, namespace: str, name: str, said: Mapping[str, str]) -> None:
    """Argo takes parameters that nothing reads, and values that its form does not offer."""
    if template is None:
        raise UserError(
            f"there is no WorkflowTemplate {name} in namespace {namespace}; install it: "
            f"relic pipeline render --cluster FILE | kubectl -n {namespace} apply -f -"
        )
    known = {one["name"]: one for one in template["spec"].get("arguments", {}).get("parameters", [])}
    for parameter, value in said.items():
        if parameter not in known:
            raise UserError(f"{name} has no parameter {parameter!r}; {allowed(parameter, list(known))}")
        if (choices := known[parameter].get("enum")) and value not in choices:
            raise UserError(f"{parameter} is {value!r}; {allowed(value, choices)}")


# Logs


def logs(api: kube.Api, name: str, step: str) -> Iterator[str]:
    """The lines of a step's newest try, as they come; of a fan-out's part when `step` is such as curate(3:3)."""
    found = tasks(nodes(get(api, name)))
    wanted = [pair for pair in found if step in (pair[0]["displayName"], step_of(pair[0]))]
    if not wanted:
        names = list(dict.fromkeys(step_of(task) for task, _ in found))
        raise UserError(f"{name} has not come to a step {step!r}; {allowed(step, names)}")
    if len(wanted) > 1:
        names = [task["displayName"] for task, _ in wanted]
        raise UserError(f"{step} has {len(wanted)} parts; say which, such as {names[0]!r}")
    task, tries = wanted[0]
    if not tries or task["phase"] in ("Skipped", "Omitted"):
        raise UserError(f"{step} of {name} has no pod: it is {task['phase']}")
    yield from lines(api, name, step, tries[-1])


def lines(api: kube.Api, name: str, step: str, attempt: Mapping[str, Any]) -> Iterator[str]:
    waits = 0
    while True:
        there = api.items("pods", labelSelector=f"{pods.ARGOS}={name}")
        mine = [pod for pod in there if pod["metadata"].get("annotations", {}).get(NODE_ID) == attempt["id"]]
        if not mine:
            raise UserError(
                f"the pod of {step} is gone, for it is {attempt['phase']}; its figures are in the artifact's "
                f"tracking.jsonl, and its last words: {one_line(attempt.get('message') or 'none')}"
            )
        kind, why = pod_facts.waits(mine[0], MAIN)
        if not kind:
            break
        if waits == 0:
            yield f"(waiting for the pod: {why})"
        waits += 1
        time.sleep(POLL_S)
    place = api.place("pods", mine[0]["metadata"]["name"], "log")
    yield from filter(is_steps, api.lines(place, container=MAIN, follow="true"))


def is_steps(line: str) -> bool:
    """Whether a line is the step's and not of Argo's executor, which writes into the same log."""
    return not ARGOS.fullmatch(line)


# Stop


def stop(api: kube.Api, name: str) -> str:
    """Asks Argo to stop a run; says what comes of it."""
    phase = get(api, name).get("status", {}).get("phase", "Pending")
    if phase in state.OVER:
        return f"{name} had ended: {phase}"
    api.ask("PATCH", api.place("workflows", name), {"spec": {"shutdown": "Stop"}})
    return (
        f"{name} is stopping: its steps save and end, its PyTorchJobs are deleted; what is finished stays in the "
        "store, and the same run submitted again goes on from there"
    )
