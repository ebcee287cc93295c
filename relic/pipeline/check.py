"""`relic cluster check`: what a cluster lacks for a run, one line each with its cure. A workflow's preflight makes the
same checks, in a pod, with the launcher's account."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relic import cluster as clusters
from relic import kube, pods, tracking
from relic.cluster import Cluster
from relic.launch import doctor
from relic.mistakes import UserError, allowed
from relic.options import parse
from relic.parallel.config import Doctor, Finding
from relic.pipeline.site import Site, bad, good, odd
from relic.verdict import Unreachable

ABOUT = "say what a cluster lacks for a run, and the cure: relic cluster check --cluster FILE"
STORE_S, MLFLOW_S = 15, 5  # the longest wait for an answer
SERVED = (  # what must be served: (group, version, resource, how it comes there)
    ("argoproj.io", "v1alpha1", "workflows", "install Argo Workflows 4"),
    ("argoproj.io", "v1alpha1", "workflowtemplates", "install Argo Workflows 4"),
    ("kubeflow.org", "v1", "pytorchjobs", "install the Kubeflow Training Operator 1.9"),
)
KUEUE = tuple(  # the same, where a queue is named
    ("kueue.x-k8s.io", "v1beta2", resource, "install Kueue 0.16, or leave queue out of the cluster's file")
    for resource in ("localqueues", "workloads")
)
Rights = tuple[tuple[str, str, str], ...]  # (verbs, group, resource)
PERSON: Rights = (
    ("get list create patch", "argoproj.io", "workflows"),
    ("get", "argoproj.io", "workflowtemplates"),
    ("list", "kubeflow.org", "pytorchjobs"),
    ("get list create delete", "", "pods"),
    ("get", "", "pods/log"),
)
LAUNCHER: Rights = (
    ("get", "argoproj.io", "workflows"),
    ("create patch", "argoproj.io", "workflowtaskresults"),
    ("get list create delete", "kubeflow.org", "pytorchjobs"),
    ("get list create", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
)
QUEUED: Rights = (("get", "kueue.x-k8s.io", "localqueues"), ("list", "kueue.x-k8s.io", "workloads"))


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is checked, and how it is said."""

    cluster: str = ""  # a file of workflows/clusters/; empty: the one of this pod
    images: bool = True  # start a small pod of each image, to see that it can be pulled
    json: bool = False  # print JSON


def main(args: list[str]) -> int:
    """`relic cluster check [OPTIONS]`; ends with one sentence where a run would not go."""
    if not args or args[0] != "check":
        said = args[0] if args else "nothing"
        raise UserError(f"'cluster' is followed by {said!r}; {allowed(said, ['check'])}")
    options = parse(Check, args[1:], "relic cluster check", ABOUT)
    cluster = clusters.load(Path(options.cluster)) if options.cluster else clusters.of_pod()
    if cluster is None:
        raise UserError("relic cluster check needs --cluster FILE; workflows/clusters/ has examples")
    inside, api = bool(os.environ.get(tracking.WORKFLOW_UID)), kube.Api(cluster.namespace)
    findings = examined(Site(cluster=cluster, api=api, inside=inside, images=options.images))
    print(doctor.report(findings, as_json=options.json), flush=True)
    refuse(findings)
    return 0


def refuse(findings: list[Finding]) -> None:
    """One sentence of what must be mended first: what Argo shows of a failed preflight."""
    failed = [found for found in findings if found.verdict == "fail"]
    if failed:
        more = f" (and {len(failed) - 1} more: relic cluster check)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0].said}{more}")


def examined(site: Site) -> list[Finding]:
    """All checks, or the first alone where a person's server does not answer; a run's is waited for."""
    from relic.pipeline import named, node_pools, pulls

    first = reachable(site)
    if first.verdict == "fail":
        return [first]
    checks: tuple[tuple[str, Callable[[Site], list[Finding]]], ...] = (
        ("apis", apis), ("namespace", namespace), ("rights", rights), ("queue", named.queue),
        ("pools", node_pools.examined), ("storage", named.storage), ("secrets", named.secrets),
        ("accounts", named.accounts), ("template", template), ("store", around), ("server", named.server),
        ("images", pulls.examined),
    )  # fmt: skip
    found = [first]
    for name, check in checks:
        found += seen(name, site, check)
    return found


def seen(name: str, site: Site, check: Callable[[Site], list[Finding]]) -> list[Finding]:
    """A check's findings. What may not be looked at is no reason to refuse a run; `rights` says what is."""
    try:
        return check(site)
    except kube.Refused as error:
        said = f"cannot be looked at: {error.why}"
        return [odd(name, said) if error.status in kube.DENIED else bad(name, said)]


def reachable(site: Site) -> Finding:
    place = site.api.host
    try:
        return good("api", f"{place} answers, Kubernetes {site.api.ask('GET', '/version')['gitVersion']}")
    except kube.Refused as error:
        return bad("api", f"{place} refuses: {error.why}; look at the credentials of KUBECONFIG")
    except Unreachable as error:
        if site.inside:
            raise
        return bad("api", f"{place}: {error}; look at KUBECONFIG and the network")


def apis(site: Site) -> list[Finding]:
    """By discovery, which every account may read."""
    served = {group["name"]: group for group in site.api.ask("GET", "/apis")["groups"]}
    found = []
    for group, version, resource, cure in SERVED + (KUEUE if site.cluster.queue else ()):
        there = site.api.ask("GET", f"/apis/{group}/{version}") if group in served else None
        if there is not None and resource in {item["name"] for item in there["resources"]}:
            found.append(good("apis", f"{resource} of {group}/{version} are served"))
            continue
        versions = ", ".join(item["version"] for item in served[group]["versions"]) if group in served else "nothing"
        found.append(bad("apis", f"{resource} of {group}/{version} are not served ({group} has {versions}); {cure}"))
    return found


def namespace(site: Site) -> list[Finding]:
    name = site.cluster.namespace
    if site.inside:
        return []  # this pod is in it, or the cluster's file would not be
    if site.api.ask("GET", f"/api/v1/namespaces/{name}") is None:
        return [bad("namespace", f"namespace {name} does not exist; make it: kubectl create namespace {name}")]
    return [good("namespace", f"{name} exists")]


def rights(site: Site) -> list[Finding]:
    """What this identity needs, asked of the server by SelfSubjectAccessReview."""
    table = (LAUNCHER if site.inside else PERSON) + (QUEUED if site.inside and site.cluster.queue else ())
    missing = []
    for verbs, group, resource in table:
        if refused := [verb for verb in verbs.split() if not may(site, verb, group, resource)]:
            missing.append(f"{' '.join(refused)} {resource}{f'.{group}' if group else ''}")
    if missing:
        who = f"the account {site.cluster.accounts.launcher}" if site.inside else "your account"
        cure = "install charts/relic-platform" if site.inside else "ask for a role with these verbs"
        return [bad("rights", f"{who} may not {', '.join(missing)} in namespace {site.cluster.namespace}; {cure}")]
    return [good("rights", f"all {sum(len(verbs.split()) for verbs, _, _ in table)} that are needed")]


def may(site: Site, verb: str, group: str, resource: str) -> bool:
    resource, _, part = resource.partition("/")
    asked = {"verb": verb, "group": group, "resource": resource, "namespace": site.cluster.namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {**asked, **({"subresource": part} if part else {})}},
    }  # fmt: skip
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    return site.api.ask("POST", path, review)["status"]["allowed"]


def template(site: Site) -> list[Finding]:
    """Whether the rendered workflow is there, and is of this cluster's file. In a pod it is, for it has started it."""
    if site.inside:
        return []
    space = site.cluster.namespace
    cure = f"install it: relic pipeline render --cluster FILE | kubectl -n {space} apply -f -"
    if site.api.get("workflowtemplates", pods.TEMPLATE) is None:
        return [bad("template", f"WorkflowTemplate {pods.TEMPLATE} does not exist in namespace {space}; {cure}")]
    there = site.api.get("configmaps", pods.CONFIG_MAP)
    if there is None:
        return [bad("template", f"ConfigMap {pods.CONFIG_MAP} does not exist in namespace {space}; {cure}")]
    if parsed(there) != site.cluster:
        return [odd("template", f"{pods.TEMPLATE} is rendered from another cluster file than this one; {cure}")]
    return [good("template", f"{pods.TEMPLATE} is of this file")]


def parsed(config_map: dict) -> Cluster | None:
    """The cluster of the installed file; None where this version of relic does not read it."""
    import yaml

    try:
        return clusters.made(Cluster, yaml.safe_load(config_map["data"]["cluster.yaml"]), pods.CONFIG_MAP)
    except (UserError, KeyError, yaml.YAMLError):
        return None


def around(site: Site) -> list[Finding]:
    """The store and MLflow, as a pod sees them."""
    if not site.inside:
        return []
    cfg = Doctor(store=site.store or site.cluster.store, timeout_s=MLFLOW_S)
    cure = "look at AWS_ENDPOINT_URL, the bucket and the network policy"
    late = bad("store", f"{cfg.store} has not answered in {STORE_S} s; {cure}")
    return [within(STORE_S, lambda: doctor.store(cfg), late), doctor.mlflow(cfg)]


def within(seconds: float, work: Callable[[], Any], late: Any) -> Any:
    """What `work` returns or raises, or `late` when it takes longer: its thread is left alone, and ends with the
    process."""
    found: list[Any] = []
    failed: list[Exception] = []

    def tried() -> None:
        try:
            found.append(work())
        except Exception as error:  # carried over to who waits
            failed.append(error)

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    return found[0] if found else late
