"""Whether a cluster can pull the images of a run: a small pod of each, which does nothing.

A wrong name leaves a step Pending for ever, so it is found before the first step. The pods belong to the pod that looks
and go with it, so that its account need not be able to delete any; a person's are deleted by the person."""

import os
import time
from typing import Any

from relic import pod_facts, pods, tracking
from relic.parallel.config import Finding
from relic.pipeline.site import Site, bad, good, odd

POOL = "cpu"  # whose nodes pull: asking others would wake them where an autoscaler adds nodes
DEADLINE_S = 90  # of such a pod
WATCHED_S = 30.0  # a pull that takes longer has begun
REFUSED_S = 12.0  # a registry may refuse once and not again: kubelet asks again after ten seconds
POLL_S = 1.0


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
    path, owners, started = site.api.place("pods"), owner(site), dict[str, str]()
    try:
        for name, image in wanted.items():
            made = site.api.ask("POST", path, pod(site, name, image, owners), absent=())
            started[name] = f"{path}/{made['metadata']['name']}"
        return watched(site, started, wanted)
    finally:
        if not site.inside:
            for place in started.values():
                site.api.ask("DELETE", place)


def watched(site: Site, places: dict[str, str], images: dict[str, str]) -> list[Finding]:
    """Looks at the pods until each has shown that its image came or will not, or the time is over."""
    began, found = time.monotonic(), dict[str, Finding]()
    refused, last = dict[str, float](), dict[str, tuple[str, str]]()
    while len(found) < len(places) and time.monotonic() - began < WATCHED_S:
        for name in places.keys() - found.keys():
            kind, said = last[name] = pod_facts.waits(site.api.ask("GET", places[name], absent=()))
            now = time.monotonic()
            if kind == pod_facts.IMAGE:
                refused.setdefault(name, now)
            late = kind == pod_facts.IMAGE and now - refused[name] > REFUSED_S
            if late or kind in ("", pod_facts.WRONG, pod_facts.CONTAINER):
                found[name] = finding(name, images[name], kind, said)
        time.sleep(POLL_S)
    return [found.get(name) or finding(name, images[name], *last[name]) for name in places]


def finding(name: str, image: str, kind: str, said: str) -> Finding:
    """What a pod that waits, or does not, says of its image."""
    if kind == pod_facts.NODE:
        return odd("images", f"{image} could not be tried: {said}")
    if kind in (pod_facts.IMAGE, pod_facts.WRONG):
        cure = f"correct images.{name}, or images.pull_secrets, in the cluster's file"
        why = said.rpartition(f'"{image}": ')[2]  # the kubelet wraps the registry's words in the image's name
        return bad("images", f"image {image} cannot be pulled ({why}); {cure}")
    return good("images", f"{image} {'is being' if kind == pod_facts.COMING else 'can be'} pulled")


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
    mine = site.api.items("pods", labelSelector=f"{pods.ARGOS}={os.environ[tracking.WORKFLOW]}")
    return [
        {"apiVersion": "v1", "kind": "Pod", "name": one["metadata"]["name"], "uid": one["metadata"]["uid"]}
        for one in mine if one["metadata"]["name"].startswith(os.environ["HOSTNAME"])
    ][:1]  # fmt: skip
