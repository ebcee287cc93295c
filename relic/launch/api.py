"""What a launcher asks of the Kubernetes API server, of one namespace. Objects are as JSON has them."""

from collections.abc import Sequence
from typing import Any

from relic import kube
from relic.launch import job
from relic.mistakes import UserError

PATIENCE_S = 300.0  # with a server that does not answer
HURRY_S = 8.0  # the same, when the launcher has to end
NO_LOG_YET = 400  # of a container that has not started
JOB_UID = "kueue.x-k8s.io/job-uid"  # Kueue's label on the Workload of a job


class Api:
    def __init__(self, namespace: str, signals: Sequence[int]) -> None:
        """`signals` are those that ask this launcher to end."""
        self.server = kube.Api(namespace, in_run=True, patience=lambda: HURRY_S if signals else PATIENCE_S)

    # PyTorchJobs

    def create(self, body: dict) -> dict | None:
        """The job that was made; None where one of its name is there."""
        place = self.server.place("pytorchjobs")
        try:
            return self.server.ask("POST", place, body, absent=(kube.EXISTS,), fieldValidation="Strict")
        except kube.Refused as error:
            if error.status != kube.ABSENT:
                raise
            raise UserError(
                f"namespace {self.server.namespace} takes no PyTorchJob ({error.why}); it must exist, and the "
                "Training Operator 1.9 be installed"
            ) from error

    def job(self, name: str) -> dict | None:
        return self.server.get("pytorchjobs", name)

    def delete(self, found: dict) -> None:
        """Delete this very job, which is gone when all its pods are."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": found["metadata"]["uid"]}}
        place = self.server.place("pytorchjobs", found["metadata"]["name"])
        self.server.ask("DELETE", place, body, absent=(kube.ABSENT, kube.EXISTS))

    # What is around them

    def pods(self, name: str) -> list[dict]:
        """A job's pods, the first worker first."""
        items = self.server.items("pods", labelSelector=f"{job.JOB_LABEL}={name}")
        return sorted(items, key=lambda pod: int(pod["metadata"]["name"].rpartition("-")[2]))

    def log(
        self, pod: str, *, previous: bool = False, tail_lines: int | None = None, since_seconds: int | None = None
    ) -> str | None:
        """What a pod's container has written, each line after its time; None where it has not started."""
        limits = {"tailLines": tail_lines, "sinceSeconds": since_seconds}
        options: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        return self.server.ask(
            "GET", self.server.place("pods", pod, "log"), absent=(kube.ABSENT, NO_LOG_YET), text=True,
            container=job.CONTAINER, timestamps="true", previous=str(previous).lower(), **options,
        )  # fmt: skip

    def warnings(self, name: str) -> list[str]:
        """What the cluster has said against a job, the newest last."""
        selector = f"involvedObject.kind=PyTorchJob,involvedObject.name={name},type=Warning"
        items = self.server.items("events", fieldSelector=selector)
        return [item["message"] for item in sorted(items, key=lambda item: item.get("lastTimestamp") or "")]

    def workflow(self, name: str) -> dict | None:
        return self.server.get("workflows", name)

    def workload(self, found: dict) -> dict | None:
        """What Kueue makes of a job."""
        items = self.server.items("workloads", labelSelector=f"{JOB_UID}={found['metadata']['uid']}")
        return items[0] if items else None
