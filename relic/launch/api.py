"""What a launcher asks of the Kubernetes API server, of one namespace. Objects are as JSON has them.

A server that is away for a while costs patience and nothing else; what it refuses is one sentence."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from relic import kube
from relic.launch import job
from relic.mistakes import UserError

PATIENCE_S = 300.0  # with a server that does not answer
HURRY_S = 8.0  # the same, when the launcher has to end
PAUSE_S = 1.0  # between two tries
REQUEST_S = 10.0  # for one answer
ABSENT, EXISTS, FORBIDDEN = 404, 409, 403
NO_LOG_YET = 400  # of a container that has not started
BUSY = 429
KUEUE, KUEUE_VERSION = "kueue.x-k8s.io", "v1beta2"
JOB_UID = "kueue.x-k8s.io/job-uid"  # Kueue's label on the Workload of a job


class Api:
    def __init__(self, namespace: str, signals: Sequence[int]) -> None:
        self.namespace, self.signals = namespace, signals  # those that ask this launcher to end
        connected = kube.connect()
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self.core, self.custom = CoreV1Api(connected), CustomObjectsApi(connected)

    def ask(self, call: Callable[..., Any], *given: Any, absent: Sequence[int] = (ABSENT,), **named: Any) -> Any:
        """The answer to a request, None for a status of `absent`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        began = time.monotonic()
        while True:
            try:
                return call(*given, _request_timeout=REQUEST_S, **named)
            except ApiException as error:
                if error.status in absent:
                    return None
                if error.status == FORBIDDEN:
                    raise UserError(
                        f"{kube.said(error)}; charts/relic-platform gives the launcher its rights"
                    ) from error
                if error.status == ABSENT:
                    raise UserError(
                        f"namespace {self.namespace} takes no PyTorchJob ({kube.said(error)}); it must exist, and the "
                        "Training Operator 1.9 be installed"
                    ) from error
                if error.status != BUSY and error.status < 500:
                    raise RuntimeError(kube.said(error)) from error
                why = kube.said(error)
                failed: Exception = error
            except HTTPError as error:
                why, failed = f"{type(error).__name__}: {error}", error
            if time.monotonic() - began > (HURRY_S if self.signals else PATIENCE_S):
                raise ConnectionError(f"the API server does not answer ({why})") from failed
            time.sleep(PAUSE_S)

    def custom_object(self, group: str, version: str, plural: str, name: str) -> dict | None:
        return self.ask(self.custom.get_namespaced_custom_object, group, version, self.namespace, plural, name)

    # PyTorchJobs

    def create(self, body: dict) -> dict | None:
        """The job that was made; None where one of its name is there."""
        make = self.custom.create_namespaced_custom_object
        named = (job.GROUP, job.VERSION, self.namespace, job.PLURAL)
        return self.ask(make, *named, body, absent=(EXISTS,), field_validation="Strict")

    def job(self, name: str) -> dict | None:
        return self.custom_object(job.GROUP, job.VERSION, job.PLURAL, name)

    def delete(self, found: dict) -> None:
        """Delete this very job, which is gone when all its pods are."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": found["metadata"]["uid"]}}
        remove = self.custom.delete_namespaced_custom_object
        named = (job.GROUP, job.VERSION, self.namespace, job.PLURAL, found["metadata"]["name"])
        self.ask(remove, *named, body=body, absent=(ABSENT, EXISTS))

    # What is around them

    def items(self, call: Callable[..., Any], **selected: Any) -> list[dict]:
        """A list of objects, as it was sent: the client's own models refuse what a newer server may leave out."""
        found = self.ask(call, self.namespace, _preload_content=False, **selected)
        return json.loads(found.data)["items"] if found is not None else []

    def pods(self, name: str) -> list[dict]:
        """A job's pods, the first worker first."""
        items = self.items(self.core.list_namespaced_pod, label_selector=f"{job.JOB_LABEL}={name}")
        return sorted(items, key=lambda pod: int(pod["metadata"]["name"].rpartition("-")[2]))

    def log(self, pod: str, **options: Any) -> str | None:
        """What a pod's container has written, each line after its time; None where it has not started."""
        found = self.ask(
            self.core.read_namespaced_pod_log, pod, self.namespace, container=job.CONTAINER, timestamps=True,
            _preload_content=False, absent=(ABSENT, NO_LOG_YET), **options,
        )  # fmt: skip
        return None if found is None else found.data.decode(errors="replace")

    def warnings(self, name: str) -> list[str]:
        """What the cluster has said against a job, the newest last."""
        selector = f"involvedObject.kind=PyTorchJob,involvedObject.name={name},type=Warning"
        items = self.items(self.core.list_namespaced_event, field_selector=selector)
        return [item["message"] for item in sorted(items, key=lambda item: item.get("lastTimestamp") or "")]

    def workflow(self, name: str) -> dict | None:
        return self.custom_object("argoproj.io", "v1alpha1", "workflows", name)

    def queue(self, name: str) -> dict | None:
        """Kueue's LocalQueue."""
        return self.custom_object(KUEUE, KUEUE_VERSION, "localqueues", name)

    def workload(self, found: dict) -> dict | None:
        """What Kueue makes of a job."""
        selector = f"{JOB_UID}={found['metadata']['uid']}"
        ask = self.custom.list_namespaced_custom_object
        items = self.ask(ask, KUEUE, KUEUE_VERSION, self.namespace, "workloads", label_selector=selector)
        return items["items"][0] if items is not None and items["items"] else None
