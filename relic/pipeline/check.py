"""`relic cluster check`: what a cluster lacks for a run, one line each with its cure. A workflow's preflight makes the
same checks, in a pod, with the launcher's account."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relic import cluster as clusters
from relic import kube, pods
from relic.cluster import Cluster
from relic.launch import doctor
from relic.mistakes import UserError, allowed
from relic.options import parse
from relic.parallel.config import Doctor, Finding
from relic.pipeline.site import Site, bad, good, odd

ABOUT = "say what a cluster lacks for a run, and the cure: relic cluster check --cluster FILE"
TEMPLATE = "world-model"  # the WorkflowTemplate that `relic pipeline render` writes
STORE_S, MLFLOW_S = 15, 5  # the longest wait for an answer
SERVED = (  # what must be served: (group, version, resource, how it comes there)
    ("argoproj.io", "v1alpha1", "workflows", "install Argo Workflows 4"),
    ("argoproj.io", "v1alpha1", "workflowtemplates", "install Argo Workflows 4"),
    ("kubeflow.org", "v1", "pytorchjobs", "install the Kubeflow Training Operator 1.9"),
)
KEYS = {  # of the secrets that a cluster's file names
    "store_secret": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "mlflow_secret": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "keys_secret": ("deploy",),
}
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
    inside = clusters.FILE in os.environ
    findings = examined(Site(cluster=cluster, api=kube.connect(), inside=inside, images=options.images))
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
    """All checks, or the first alone where no server answers."""
    from relic.pipeline import node_pools, pulls

    first = reachable(site)
    if first.verdict == "fail":
        return [first]
    checks: tuple[tuple[str, Callable[[Site], list[Finding]]], ...] = (
        ("apis", apis), ("namespace", namespace), ("rights", rights), ("queue", queue), ("pools", node_pools.examined),
        ("storage", storage), ("secrets", secrets), ("accounts", accounts), ("template", template), ("store", around),
        ("images", pulls.examined),
    )  # fmt: skip
    found = [first]
    for name, check in checks:
        found += seen(name, site, check)
    return found


def seen(name: str, site: Site, check: Callable[[Site], list[Finding]]) -> list[Finding]:
    """A check's findings. What may not be looked at is no reason to refuse a run; `rights` says what is."""
    from kubernetes.client.exceptions import ApiException

    try:
        return check(site)
    except ApiException as error:
        said = f"cannot be looked at: {kube.said(error)}"
        return [odd(name, said) if error.status == 403 else bad(name, said)]


def reachable(site: Site) -> Finding:
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    place = site.api.configuration.host
    try:
        return good("api", f"{place} answers, Kubernetes {kube.ask(site.api, 'GET', '/version')['gitVersion']}")
    except ApiException as error:
        return bad("api", f"{place} refuses: {kube.said(error)}; look at the credentials of KUBECONFIG")
    except HTTPError as error:
        return bad("api", f"{place} does not answer ({type(error).__name__}); look at KUBECONFIG and the network")


def apis(site: Site) -> list[Finding]:
    """By discovery, which every account may read."""
    served = {group["name"]: group for group in kube.ask(site.api, "GET", "/apis")["groups"]}
    found = []
    for group, version, resource, cure in SERVED:
        there = kube.look(site.api, f"/apis/{group}/{version}") if group in served else None
        if there is not None and resource in {item["name"] for item in there["resources"]}:
            found.append(good("apis", f"{resource} of {group}/{version} are served"))
            continue
        versions = ", ".join(item["version"] for item in served[group]["versions"]) if group in served else "nothing"
        found.append(bad("apis", f"{resource} of {group}/{version} are not served ({group} has {versions}); {cure}"))
    if site.cluster.queue and "kueue.x-k8s.io" not in served:
        cure = "install Kueue, or leave queue out of the cluster's file"
        found.append(bad("apis", f"kueue.x-k8s.io is not served and queue is {site.cluster.queue!r}; {cure}"))
    return found


def namespace(site: Site) -> list[Finding]:
    name = site.cluster.namespace
    if site.inside:
        return []  # this pod is in it, or the cluster's file would not be
    if kube.look(site.api, f"/api/v1/namespaces/{name}") is None:
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
    return kube.ask(site.api, "POST", path, review)["status"]["allowed"]


def queue(site: Site) -> list[Finding]:
    name, space = site.cluster.queue, site.cluster.namespace
    group = kube.look(site.api, kube.KUEUE) if name else None
    if group is None:
        return []  # `apis` has said so where it is wanted
    version = group["preferredVersion"]["groupVersion"]
    there = kube.look(site.api, f"/apis/{version}/namespaces/{space}/localqueues/{name}")
    if there is None:
        return [bad("queue", f"LocalQueue {name} does not exist in namespace {space}; install charts/relic-platform "
                    "with kueue.enabled, or correct queue in the cluster's file")]  # fmt: skip
    state = {item["type"]: item for item in there.get("status", {}).get("conditions", [])}.get("Active", {})
    if state.get("status") != "True":
        said = state.get("message", "Kueue has not looked at it yet")
        return [bad("queue", f"LocalQueue {name} is not active ({said}); mend the ClusterQueue that it names")]
    return [good("queue", f"LocalQueue {name} is active")]


def storage(site: Site) -> list[Finding]:
    name = site.cluster.storage_class
    if not name:
        return []
    if kube.look(site.api, f"/apis/storage.k8s.io/v1/storageclasses/{name}") is None:
        return [bad("storage", f"storage class {name} does not exist; correct storage_class in the cluster's file "
                    "(kubectl get storageclass)")]  # fmt: skip
    return [good("storage", f"storage class {name} exists")]


def secrets(site: Site) -> list[Finding]:
    """Those that the cluster's file names, and their keys."""
    cluster, space = site.cluster, site.cluster.namespace
    wanted = {cluster.store_secret: KEYS["store_secret"], cluster.mlflow_secret: KEYS["mlflow_secret"]}
    if cluster.serving:
        wanted[cluster.serving.keys_secret] = KEYS["keys_secret"]
    wanted |= dict.fromkeys(cluster.images.pull_secrets, ())
    found = []
    for name, keys in wanted.items():
        if not name:
            continue
        there = kube.look(site.api, f"/api/v1/namespaces/{space}/secrets/{name}")
        given = " ".join(f"--from-literal={key}=…" for key in keys)
        make = f"kubectl -n {space} create secret generic {name} {given}"
        if not keys:
            make = f"kubectl -n {space} create secret docker-registry {name} --docker-server=…"
        if there is None:
            found.append(bad("secrets", f"secret {name} does not exist in namespace {space}; make it: {make}"))
        elif missing := [key for key in keys if key not in there.get("data", {})]:
            found.append(bad("secrets", f"secret {name} has no {', '.join(missing)}; make it again: {make}"))
        else:
            found.append(good("secrets", f"{name} is there"))
    return found


def accounts(site: Site) -> list[Finding]:
    names, space = site.cluster.accounts, site.cluster.namespace
    wanted = [names.step, names.launcher, *([names.deploy] if site.deploys else [])]
    gone = [n for n in wanted if kube.look(site.api, f"/api/v1/namespaces/{space}/serviceaccounts/{n}") is None]
    if gone:
        cure = "install charts/relic-platform, or correct accounts in the cluster's file"
        return [bad("accounts", f"service accounts do not exist in namespace {space}: {', '.join(gone)}; {cure}")]
    return [good("accounts", f"{', '.join(wanted)} are there")]


def template(site: Site) -> list[Finding]:
    """Whether the rendered workflow is there, and is of this cluster's file. In a pod it is, for it has started it."""
    if site.inside:
        return []
    space = site.cluster.namespace
    cure = f"install it: relic pipeline render --cluster FILE | kubectl -n {space} apply -f -"
    if kube.look(site.api, f"{kube.TEMPLATES.format(space)}/{TEMPLATE}") is None:
        return [bad("template", f"WorkflowTemplate {TEMPLATE} does not exist in namespace {space}; {cure}")]
    there = kube.look(site.api, f"/api/v1/namespaces/{space}/configmaps/{pods.CONFIG_MAP}")
    if there is None:
        return [bad("template", f"ConfigMap {pods.CONFIG_MAP} does not exist in namespace {space}; {cure}")]
    if parsed(there) != site.cluster:
        return [odd("template", f"{TEMPLATE} is rendered from another cluster file than this one; {cure}")]
    return [good("template", f"{TEMPLATE} is of this file")]


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
    """What `work` returns, or `late` when it takes longer: its thread is left alone, and ends with the process."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else late
