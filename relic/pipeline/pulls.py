"""Whether a cluster can pull the images of a run: a small pod of each, which does nothing.

A wrong name leaves a step Pending for ever, so it is found before the first step. The pods belong to the pod that looks
and go with it, so that its account need not be able to delete any; a person's are deleted by the person."""

import os
import time
from typing import Any

from relic import kube, pods, tracking
from relic.parallel.config import Finding
from relic.pipeline.site import Site, bad, good, odd

POOL = "cpu"  # whose nodes pull: asking others would wake them where an autoscaler adds nodes
DEADLINE_S = 90  # of such a pod
WATCHED_S = 30.0  # a pull that takes longer has begun
REFUSED_S = 12.0  # a registry may refuse once and not again: kubelet asks again after ten seconds
POLL_S = 1.0
HERE, COMING, REFUSED, WRONG, NOWHERE = "here", "coming", "refused", "wrong", "nowhere"
STATES = {
    "InvalidImageName": WRONG, "ErrImageNeverPull": WRONG, "ErrImagePull": REFUSED, "ImagePullBackOff": REFUSED,
    "RegistryUnavailable": REFUSED, "ImageInspectError": REFUSED, "ContainerCreating": COMING,
}  # fmt: skip


def examined(site: Site) -> list[Finding]:
    """One finding an image."""
    if not site.images:
        return []
    images = site.cluster.images
    wanted = {"train": images.train, "control": images.control, "serve": images.serve}
    if site.inside:
        del wanted["control"]  # this pod's own
    if not (site.deploys and site.cluster.serving):
        del wanted["serve"]
    path, owners, started = kube.PODS.format(site.cluster.namespace), owner(site), dict[str, str]()
    try:
        for name, image in wanted.items():
            made = kube.ask(site.api, "POST", path, pod(site, name, image, owners))
            started[name] = f"{path}/{made['metadata']['name']}"
        return watched(site, started, wanted)
    finally:
        if not site.inside:
            for place in started.values():
                kube.ask(site.api, "DELETE", place)


def watched(site: Site, places: dict[str, str], images: dict[str, str]) -> list[Finding]:
    """Looks at the pods until each has shown that its image came or will not, or the time is over."""
    began, found = time.monotonic(), dict[str, Finding]()
    refused, last = dict[str, float](), dict[str, tuple[str, str]]()
    while len(found) < len(places) and time.monotonic() - began < WATCHED_S:
        for name in places.keys() - found.keys():
            state, said = last[name] = state_of(kube.ask(site.api, "GET", places[name]))
            now = time.monotonic()
            if state == REFUSED:
                refused.setdefault(name, now)
            if state in (HERE, WRONG) or (state == REFUSED and now - refused[name] > REFUSED_S):
                found[name] = finding(name, images[name], state, said)
        time.sleep(POLL_S)
    return [found.get(name) or finding(name, images[name], *last[name]) for name in places]


def finding(name: str, image: str, state: str, said: str) -> Finding:
    if state == NOWHERE:
        return odd("images", f"{image} could not be tried: {said}")
    if state in (REFUSED, WRONG):
        cure = f"correct images.{name}, or images.pull_secrets, in the cluster's file"
        why = said.rpartition(f'"{image}": ')[2]  # the kubelet wraps the registry's words in the image's name
        return bad("images", f"image {image} cannot be pulled ({why}); {cure}")
    return good("images", f"{image} {'can be' if state == HERE else 'is being'} pulled")


def state_of(there: dict) -> tuple[str, str]:
    """How far a pod's image is, and what the kubelet or the scheduler says."""
    status = there.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container["state"].get("waiting")
        if waiting is None:
            return HERE, ""
        return STATES.get(waiting["reason"], HERE), waiting.get("message", waiting["reason"])
    for item in status.get("conditions", []):
        if item["type"] == "PodScheduled" and item["status"] == "False":
            return NOWHERE, item.get("message", "no node takes the pod")
    return COMING if there.get("spec", {}).get("nodeName") else NOWHERE, "no node has taken the pod yet"


def pod(site: Site, name: str, image: str, owners: list[dict[str, Any]]) -> dict[str, Any]:
    cluster, pool = site.cluster, site.cluster.pool(POOL)
    container = {
        "name": "image", "image": image, "imagePullPolicy": cluster.images.pull_policy, "command": ["true"],
        "securityContext": pods.CONTAINER_SECURITY, "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"},
        },
    }  # fmt: skip
    spec = {
        "containers": [container], "restartPolicy": "Never", "activeDeadlineSeconds": DEADLINE_S,
        "serviceAccountName": cluster.accounts.step, "automountServiceAccountToken": False,
        "securityContext": pods.POD_SECURITY, "nodeSelector": dict(pool.node_selector),
        "tolerations": pods.tolerations(pool),
        "imagePullSecrets": [{"name": secret} for secret in cluster.images.pull_secrets],
    }  # fmt: skip
    meta = {"generateName": f"relic-check-{name}-", "labels": {"relic.dev/check": name}, "ownerReferences": owners}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def owner(site: Site) -> list[dict[str, Any]]:
    """This pod, of whose name HOSTNAME has the first 63 letters; a person's computer is none."""
    if not site.inside:
        return []
    label = f"workflows.argoproj.io/workflow={os.environ[tracking.WORKFLOW]}"
    mine = kube.ask(site.api, "GET", kube.PODS.format(site.cluster.namespace), labelSelector=label)["items"]
    return [
        {"apiVersion": "v1", "kind": "Pod", "name": one["metadata"]["name"], "uid": one["metadata"]["uid"]}
        for one in mine if one["metadata"]["name"].startswith(os.environ["HOSTNAME"])
    ][:1]  # fmt: skip
