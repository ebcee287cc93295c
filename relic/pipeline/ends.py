"""`relic pipeline begin` and `end`: the first and the last pod of a workflow.

`begin` looks at what a person has set and at the cluster, and opens the run in MLflow under which the steps' runs are
nested. `end`, however the workflow ended, deletes the PyTorchJobs that are left, sends MLflow what it has missed, and
closes that run. While MLflow is away both say so once, and a workflow ends as it would have."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from relic import artifacts, kube, pods, stores, tracking
from relic import cluster as clusters
from relic.cluster import Cluster
from relic.launch import doctor, state
from relic.mistakes import UserError, allowed
from relic.pipeline import check, plan
from relic.pipeline.site import Site

BEGIN_S, END_S = 20.0, 60.0  # the longest that MLflow is waited for
AWAY_S = 2.0  # between two tries of a server that is away
PATIENCE_S = 120.0  # with an API server that does not answer
LATE_S = 40.0  # the longest for what MLflow has missed
STATUS = {"Succeeded": "FINISHED", "Failed": "FAILED", "Error": "FAILED"}  # Argo's, and MLflow's


def here() -> tuple[Cluster, str, str]:
    """The cluster of this pod, and the name and uid of its workflow."""
    cluster, (name, uid) = clusters.of_pod(), map(os.environ.get, (tracking.WORKFLOW, tracking.WORKFLOW_UID))
    if cluster is None or not name or not uid:
        raise UserError("this is a pod's command: it needs RELIC_CLUSTER, RELIC_WORKFLOW and RELIC_WORKFLOW_UID")
    return cluster, name, uid


def checked(cluster: Cluster, named: Any, values: Mapping[str, str]) -> None:
    """A mistake in what a person has set, in one sentence; an empty value is the cluster's default."""
    named(values["recipe"] or cluster.recipe)
    plan.number_of_parts(values["parts"] or str(cluster.parts))
    replace(cluster, store=values["store"] or cluster.store)
    if values["nodes"]:
        replace(cluster.pool("training"), nodes=values["nodes"])
    if values["deploy"] not in ("", "yes", "no"):
        raise UserError(f"deploy is {values['deploy']!r}; {allowed(values['deploy'], ['yes', 'no'])}")


# The first pod


def begin(title: str, values: Mapping[str, str], run: Path) -> None:
    """Ends with one sentence where the run would not go; else writes the id of MLflow's run into the file `run`, or
    nothing where MLflow is away."""
    cluster, name, uid = here()
    run.parent.mkdir(parents=True, exist_ok=True)
    site = Site(
        cluster=cluster, api=kube.Api(cluster.namespace), inside=True, store=values["store"], nodes=values["nodes"],
        deploys=values["deploy"] != "no",
    )  # fmt: skip
    findings = check.examined(site)
    print(doctor.report(findings, as_json=False), flush=True)
    check.refuse(findings)
    tags = tags_of(cluster, name, values)
    found = asked(lambda server: server.go_on(title, tags, {tracking.UID_TAG: uid}), BEGIN_S)
    run.write_text(found or "")


def tags_of(cluster: Cluster, name: str, values: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's run of a workflow says of it, and the way back to Argo's page."""
    link = page(cluster, name)
    linked = {"relic.argo": link, "mlflow.note.content": f"[{name}]({link})"} if link else {}
    return {**values, "relic.workflow": name, **linked}


def page(cluster: Cluster, name: str) -> str:
    """Argo's page of a workflow."""
    return f"{cluster.argo.rstrip('/')}/workflows/{cluster.namespace}/{name}" if cluster.argo else ""


def asked(work: Callable[[tracking.Server], Any], seconds: float) -> Any:
    """What `work` makes of MLflow, tried until it answers or the time is over; then one warning, and None."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return None
    until, why = time.monotonic() + seconds, ["it has not answered"]

    def tried() -> Any:
        while time.monotonic() < until:
            try:
                return work(tracking.Server(uri))
            except Exception as error:  # whatever a tracking server does, the workflow goes on
                why[0] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            time.sleep(AWAY_S)
        return None

    found = check.within(seconds, tried, None)
    if found is None:
        print(f"warning: MLflow at {uri} is not used ({why[0]}); figures stay beside the artifacts", file=sys.stderr)
    return found


# The last pod


def end(title: str, values: Mapping[str, str], nodes: list[plan.Node], status: str) -> None:
    """`status` is Argo's. What fails is said and the rest is done: a last pod that fails would make a good workflow
    Failed."""
    cluster, name, uid = here()
    ended = STATUS.get(status, "FAILED")
    try:
        if swept(kube.Api(cluster.namespace, in_run=True, patience=lambda: PATIENCE_S), name, uid):
            ended = "KILLED"
    except Exception as error:  # whatever it is, it is no step's failure
        print(f"warning: PyTorchJobs of {name} may be left: {error}", file=sys.stderr, flush=True)
    tags = {**tags_of(cluster, name, values), tracking.UID_TAG: uid}
    if asked(lambda server: closed(server, title, tags, nodes, ended), END_S):
        print(f"MLflow's run is {ended}", flush=True)


def swept(api: kube.Api, name: str, uid: str) -> bool:
    """Deletes the workflow's jobs that have not ended, which hold their GPUs; says whether a person has stopped the
    workflow."""
    for meta in left(api, uid):
        print(f"deleting PyTorchJob {meta['name']}, which has not ended", flush=True)
        body = {"preconditions": {"uid": meta["uid"]}}
        api.ask("DELETE", api.place("pytorchjobs", meta["name"]), body, absent=(kube.ABSENT, kube.EXISTS))
    workflow = api.get("workflows", name)
    return workflow is None or "shutdown" in workflow["spec"]


def left(api: kube.Api, uid: str) -> list[dict]:
    """Names and uids of the workflow's jobs that have not ended. A launcher that was killed leaves its job for the
    retry."""
    return [
        job["metadata"] for job in api.items("pytorchjobs", labelSelector=f"{pods.WORKFLOW}={uid}")
        if not state.is_finished(job)
    ]  # fmt: skip


def closed(server: tracking.Server, title: str, tags: Mapping[str, str], nodes: list[plan.Node], ended: str) -> bool:
    """Nest what began while MLflow was away, send what it has missed, end the run."""
    uid = tags[tracking.UID_TAG]
    runs, steps = server.find({tracking.UID_TAG: uid}), server.find({tracking.OF_UID_TAG: uid})
    if not runs and not steps and ended != "FINISHED":
        return True  # nothing has run
    parent = runs[0].info.run_id if runs else server.start(title, tags)
    for run in steps:
        if tracking.NESTED_TAG not in run.data.tags:
            server.client.set_tag(run.info.run_id, tracking.NESTED_TAG, parent)
    complete(server, nodes, parent)
    for run in server.find({tracking.NESTED_TAG: parent}, status="RUNNING"):
        server.end(run.info.run_id, "FAILED" if ended == "FINISHED" else ended)  # a try whose pod was lost
    server.end(parent, ended)
    return True


def complete(server: tracking.Server, nodes: list[plan.Node], parent: str) -> None:
    """Send the records of finished artifacts that MLflow has no finished run of, those of trainings first."""
    until = time.monotonic() + LATE_S
    known = server.finished(artifacts.split(nodes[0].uri)[0]) if nodes else set()
    missing = [node for node in nodes if node.uri not in known]
    for node in sorted(missing, key=lambda node: node.step.pool != "training"):
        if time.monotonic() > until:
            print(
                f"warning: MLflow may lack figures; they are in {tracking.RECORDS} of {node.uri} and others", flush=True
            )
            return
        manifest = stores.open_store(artifacts.split(node.uri)[0]).manifest(node.step.component, node.key)
        if manifest is None or tracking.RECORDS not in manifest["files"]:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / node.key
            for name in [tracking.RECORDS, *figures(node.uri, manifest)]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(stores.read(node.uri, name))
            tracking.ship(server, folder, name=node.name, uri=node.uri, parent=parent)
            sent = tracking.read_sent(folder)
            assert sent is not None, folder
            server.end(sent["run_id"], "FINISHED")


def figures(uri: str, manifest: dict) -> list[str]:
    """The files that an artifact's records name."""
    lines = stores.read(uri, tracking.RECORDS).splitlines()
    named = [json.loads(line).get("figure", "") for line in lines]
    return [name for name in dict.fromkeys(named) if name in manifest["files"]]
