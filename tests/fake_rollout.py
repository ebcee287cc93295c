"""A Deployment in memory, with pods that come up as a test says, behind the two clients that a roll-out uses."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

READY: dict[str, Any] = {"ready": True, "restartCount": 0, "state": {"running": {}}}


def ended(code: int, said: str = "", reason: str = "Error", restarts: int = 0) -> dict[str, Any]:
    """The status of a container that has ended."""
    over = {"exitCode": code, "reason": reason, "message": said}
    return {"ready": False, "restartCount": restarts, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": over}}  # fmt: skip


def waiting(reason: str, said: str) -> dict[str, Any]:
    return {"ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": said}}}


class FakeCluster:
    """`status` is asked for the container's status of a pod of an export; every reading lets the cluster go on."""

    def __init__(self, export: str = "", replicas: int = 0, wanted: int = 1) -> None:
        self.export, self.replicas, self.generation = export, replicas, 1
        self.annotations: dict[str, str] = {"relic.dev/replicas": str(wanted)}
        self.status: Callable[[str], dict[str, Any]] = lambda export: READY
        self.conditions: list[dict[str, Any]] = []  # of every pod
        self.failures: list[Exception] = []  # of the next calls
        self.patches: list[dict[str, Any]] = []

    def answer(self, kind: str, value: dict[str, Any]) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return client.ApiClient().deserialize(SimpleNamespace(data=json.dumps(value)), kind)

    def containers(self, export: str) -> list[dict[str, Any]]:
        limits = {"limits": {"memory": "4Gi"}}
        return [{"name": "serve", "env": [{"name": "RELIC_EXPORT", "value": export}], "resources": limits}]

    def read_namespaced_deployment(self, name: str, namespace: str) -> Any:
        if (name, namespace) != ("relic-serve", "relic"):
            raise ApiException(404, "Not Found")
        up = self.replicas if self.status(self.export)["ready"] else 0
        return self.answer("V1Deployment", {
            "metadata": {"generation": self.generation, "annotations": self.annotations},
            "spec": {
                "replicas": self.replicas, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app.kubernetes.io/name": "relic-serve"}},
                "template": {"spec": {"containers": self.containers(self.export)}},
            },
            "status": {
                "observedGeneration": self.generation, "updatedReplicas": self.replicas, "availableReplicas": up,
                "replicas": self.replicas,
            },
        })  # fmt: skip

    def patch_namespaced_deployment(self, name: str, namespace: str, body: dict[str, Any]) -> None:
        assert json.loads(json.dumps(body)) == body
        self.patches.append(body)
        self.generation += 1
        for key, value in body["metadata"]["annotations"].items():
            self.annotations = {k: v for k, v in {**self.annotations, key: value}.items() if v is not None}
        self.replicas = body["spec"].get("replicas", self.replicas)
        if "template" in body["spec"]:
            (container,) = body["spec"]["template"]["spec"]["containers"]
            assert container["name"] == "serve"
            self.export = container["env"][0]["value"]

    def list_namespaced_pod(self, namespace: str, label_selector: str) -> Any:
        assert label_selector == "app.kubernetes.io/name=relic-serve"
        pods = [("old", "another", ended(1)), ("new", self.export, self.status(self.export))]
        return self.answer("V1PodList", {"items": [
            {
                "metadata": {"name": f"relic-serve-{name}"},
                "spec": {"containers": self.containers(export)},
                "status": {
                    "containerStatuses": [{"name": "serve", "image": "i", "imageID": "i", "lastState": {}, **status}],
                    "conditions": self.conditions,
                },
            }
            for name, export, status in pods
        ]})  # fmt: skip
