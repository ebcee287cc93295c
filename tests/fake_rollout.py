"""A Deployment in memory, with pods that come up as a test says, behind the API that a roll-out asks."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fake_api import parts_of, refusal

READY: dict[str, Any] = {"ready": True, "restartCount": 0, "state": {"running": {}}}


def ended(code: int, said: str = "", reason: str = "Error", restarts: int = 0) -> dict[str, Any]:
    """The status of a container that has ended."""
    over = {"exitCode": code, "reason": reason, "message": said}
    return {"ready": False, "restartCount": restarts, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": over}}  # fmt: skip


def waiting(reason: str, said: str) -> dict[str, Any]:
    return {"ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": said}}}


class FakeCluster:
    """`status` is asked for the container's status of a pod of an export."""

    def __init__(self, export: str = "", replicas: int = 0, wanted: int = 1) -> None:
        self.export, self.replicas, self.generation = export, replicas, 1
        self.annotations: dict[str, str] = {"relic.dev/replicas": str(wanted)}
        self.status: Callable[[str], dict[str, Any]] = lambda export: READY
        self.conditions: list[dict[str, Any]] = []  # of every pod
        self.failing: list[int] = []  # statuses of the next answers
        self.patches: list[dict[str, Any]] = []
        self.on_patch: Callable[[], object] = lambda: None  # what others do just before

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        if self.failing:
            return refusal(self.failing.pop(0), "the server is starting")
        resource, name, _ = parts_of(urlsplit(url).path)
        if resource == "pods":
            assert parse_qs(urlsplit(url).query) == {"labelSelector": ["app.kubernetes.io/name=relic-serve"]}
            return 200, {"items": self.pods()}
        if (resource, name, "/namespaces/relic/" in url) != ("deployments", "relic-serve", True):
            return refusal(404, "not found")
        if method == "PATCH":
            self.on_patch()
            if body["metadata"].get("resourceVersion", str(self.generation)) != str(self.generation):
                return refusal(409, "the object has been modified")
            self.patch(body)
        return 200, self.deployment()

    def containers(self, export: str) -> list[dict[str, Any]]:
        limits = {"limits": {"memory": "4Gi"}}
        return [{"name": "serve", "env": [{"name": "RELIC_EXPORT", "value": export}], "resources": limits}]

    def deployment(self) -> dict[str, Any]:
        up = self.replicas if self.status(self.export)["ready"] else 0
        version = {"generation": self.generation, "resourceVersion": str(self.generation)}
        return {
            "metadata": {**version, "annotations": self.annotations},
            "spec": {
                "replicas": self.replicas, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app.kubernetes.io/name": "relic-serve"}},
                "template": {"spec": {"containers": self.containers(self.export)}},
            },
            "status": {
                "observedGeneration": self.generation, "updatedReplicas": self.replicas, "availableReplicas": up,
                "replicas": self.replicas,
            },
        }  # fmt: skip

    def patch(self, body: dict[str, Any]) -> None:
        self.patches.append(body)
        self.generation += 1
        for key, value in body["metadata"]["annotations"].items():
            self.annotations = {k: v for k, v in {**self.annotations, key: value}.items() if v is not None}
        self.replicas = body["spec"].get("replicas", self.replicas)
        if "template" in body["spec"]:
            (container,) = body["spec"]["template"]["spec"]["containers"]
            assert container["name"] == "serve"
            self.export = container["env"][0]["value"]

    def pods(self) -> list[dict[str, Any]]:
        pods = [("old", "another", ended(1)), ("new", self.export, self.status(self.export))]
        return [
            {
                "metadata": {"name": f"relic-serve-{name}"},
                "spec": {"containers": self.containers(export)},
                "status": {"containerStatuses": [{"name": "serve", **status}], "conditions": self.conditions},
            }
            for name, export, status in pods
        ]
