"""`relic pipeline status`: the runs of a cluster, or the steps of one, each with what its PyTorchJob says."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from relic import kube, pod_facts, pods
from relic.cluster import Cluster
from relic.launch import state
from relic.mistakes import UserError, allowed
from relic.pipeline.ends import page
from relic.pipeline.progress import span

ARGOS = re.compile(
    r"(^|(?<=: ))(time=\S+ level=\w+ .*argo=true.*|Error: exit status \d+)$", re.MULTILINE
)  # its executor's
FEW = 4  # parts of a fan-out that have a row each


def get(api: kube.Api, name: str) -> dict:
    """A Workflow by its name."""
    if (found := api.get("workflows", name)) is None:
        names = [one["metadata"]["name"] for one in api.items("workflows", absent=())]
        raise UserError(f"there is no run {name!r} in namespace {api.namespace}; {allowed(name, names)}")
    return found


def listed(api: kube.Api) -> str:
    """All runs that are kept, the newest first."""
    found = api.items("workflows", absent=())
    found.sort(key=lambda one: one["metadata"]["creationTimestamp"], reverse=True)
    rows: list[tuple[str, ...]] = []
    for one in found:
        status = one.get("status", {})
        phase, message = status.get("phase", "Pending"), status.get("message", "")
        rows.append((one["metadata"]["name"], phase, status.get("progress", ""), lasted(status), message))
    return table(("run", "phase", "steps", "time", ""), rows)


def detailed(api: kube.Api, cluster: Cluster, name: str) -> str:
    """The steps of a run, and what the PyTorchJobs say."""
    workflow = get(api, name)
    jobs = api.items("pytorchjobs", labelSelector=f"{pods.WORKFLOW}={workflow['metadata']['uid']}")
    status = workflow.get("status", {})
    said: dict[str, list[str]] = {}
    for job in jobs:
        said.setdefault(job["metadata"].get("labels", {}).get(pods.STEP, ""), []).append(condition(job))
    head = [f"{name}  {status.get('phase', 'Pending')}  {lasted(status)}  {status.get('message', '')}".strip()]
    head += [link] if (link := page(cluster, name)) else []
    return "\n".join([*head, table(("step", "phase", "time", ""), rows_of(nodes(workflow), said))])


def nodes(workflow: dict) -> list[dict]:
    """What Argo keeps of each step, in the order of their start."""
    status = workflow.get("status", {})
    if status.get("offloadNodeStatusVersion"):
        raise UserError("the controller keeps this run's steps in a database; look at Argo's page, or use argo get")
    found = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        found = json.loads(gzip.decompress(base64.b64decode(packed)))
    return sorted(found.values(), key=lambda node: node.get("startedAt") or "9")


def tasks(found: list[dict]) -> list[tuple[dict, list[dict]]]:
    """Each step or part of one, with its tries. A step that may be tried again is a node of its own above them."""
    known = {node["id"]: node for node in found}
    tries = {node["id"]: [known[child] for child in node.get("children", []) if child in known] for node in found}
    retried = [node for node in found if node["type"] == "Retry"]
    inside = {one["id"] for node in retried for one in tries[node["id"]]}
    single = [n for n in found if n["type"] in ("Pod", "Skipped") and n["id"] not in inside]
    pairs = [(node, [one for one in tries[node["id"]] if one["type"] == "Pod"]) for node in retried]
    return sorted([*pairs, *((n, [n]) for n in single)], key=lambda pair: pair[0].get("startedAt") or "9")


def rows_of(found: list[dict], jobs: Mapping[str, list[str]]) -> list[tuple[str, ...]]:
    """A row a step; of many parts one row, and one for each that is not well."""
    groups: dict[str, list[tuple[dict, list[dict]]]] = {}
    for task, tries in tasks(found):
        groups.setdefault(step_of(task), []).append((task, tries))
    rows: list[tuple[str, ...]] = []
    for step, members in groups.items():
        shown = members
        if len(members) > FEW:
            phases = [task["phase"] for task, _ in members]
            counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
            rows.append((f"{step} x {len(members)}", counts, "", ""))
            shown = [(task, tries) for task, tries in members if task["phase"] in ("Failed", "Error")]
        for task, tries in shown:
            again = f"try {len(tries)}" if len(tries) > 1 else ""
            why = (tries[-1] if tries else task).get("message") or task.get("message", "")
            notes = [again, *jobs.get(step, []), one_line(why)]
            rows.append((task["displayName"], task["phase"], lasted(task), " · ".join(filter(None, notes))))
    return rows


def step_of(task: Mapping[str, Any]) -> str:
    """`curate` of the part `curate(3:3)`."""
    return task["displayName"].partition("(")[0]


def condition(job: dict) -> str:
    """The last thing that a PyTorchJob's controller, or Kueue by suspending it, says."""
    true = [c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"]
    if state.is_suspended(job) and not state.is_finished(job):
        return "job Queued"
    return f"job {true[-1]['type']}" if true else "job Created"


def lasted(status: Mapping[str, Any]) -> str:
    if not status.get("startedAt"):
        return ""
    until = moment(status["finishedAt"]) if status.get("finishedAt") else datetime.now(UTC)
    return span((until - moment(status["startedAt"])).total_seconds())


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def one_line(text: str, longest: int = 160) -> str:
    """Of a message that may have a log in it, the last words, without those of Argo's executor."""
    said = pod_facts.last_words(ARGOS.sub("", text)).removesuffix(":")
    return said if len(said) <= longest else f"{said[: longest - 1]}…"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    wide = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, wide, strict=True)).rstrip() for row in [head, *rows]
    )
