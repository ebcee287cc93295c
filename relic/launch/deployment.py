"""The roll-out: the Deployment of charts/relic-serve is given an export, and what it had before if that fails.

The pod template names the export, not the registry's alias: a pod that starts later serves what its neighbours serve,
never a model that is only half deployed. Until the export is proven, an annotation says what was served before. So a
roll-out that was killed in the middle is seen by the next one, which goes back to the same.

Needs the extra `cluster`."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from relic import kube
from relic.cluster import Cluster
from relic.mistakes import UserError
from relic.verdict import MISTAKE, OUT_OF_MEMORY, Stopped

CONTAINER = "serve"
EXPORT = "RELIC_EXPORT"  # the container's variable with the URI of what it serves
BEFORE = "relic.dev/before"  # annotation: what was served before a roll-out that has not ended
REPLICAS = "relic.dev/replicas"  # annotation: how many pods the first roll-out starts
POLL_S = 2.0
RESTARTS = 2  # of a container that failed, perhaps for a store that did not answer
USUAL = ("ContainerCreating", "PodInitializing", "CrashLoopBackOff")  # why a container waits while all may be well
GRACE_S = 60.0  # for what keeps a container waiting, such as a registry that does not answer
OUTAGE_S = 180.0  # for an API server that does not answer


@dataclass(frozen=True)
class Served:
    export: str  # URI; empty: nothing is
    replicas: int


@contextmanager
def rolled_out(export: str, cluster: Cluster) -> Iterator[str]:
    """The address of the Service, once all its pods serve the export; where what is done inside fails, or SIGTERM
    comes, the Deployment goes back to what it had."""
    server = Deployment(cluster)
    before, replicas = server.before()
    with stopped_by_a_signal() as stopped:
        try:
            server.patch(export=export, replicas=replicas, before=before)
            server.wait(export, server.fault)
            yield server.serving.address
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                server.back(export, before, patiently=not stopped)
            except Exception as worse:
                raise RuntimeError(f"{error}; and going back to {before.export} failed: {worse}") from error
            if stopped:
                raise Stopped("the roll-out was stopped; the same command begins it again") from error
            raise
        server.patch(before=None)


def serves(export: str, cluster: Cluster) -> bool:
    """Whether the Deployment has the export, and no roll-out of it is left unproven."""
    found = Deployment(cluster).read()
    return exported(found) == export and found.spec.replicas > 0 and BEFORE not in annotations_of(found)


@contextmanager
def stopped_by_a_signal() -> Iterator[list[int]]:
    """Inside, SIGTERM raises `Stopped`. The list has the signal then, for what is raised may be caught on the way."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise Stopped("the roll-out was stopped")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


class Deployment:
    """The Deployment of a cluster's file, by the few calls that the account may make."""

    def __init__(self, cluster: Cluster) -> None:
        assert cluster.serving is not None
        self.serving, self.name, self.namespace = cluster.serving, cluster.serving.deployment, cluster.namespace
        self.apps, self.core = apis()
        self.waiting: dict[str, float] = {}  # pod and reason -> since when

    def read(self) -> Any:
        return self.call(lambda: self.apps.read_namespaced_deployment(self.name, self.namespace))

    def patch(self, *, export: str | None = None, replicas: int | None = None, before: Served | None) -> None:
        """One change of all, so that no pod sees half of it."""
        said = None if before is None else json.dumps(asdict(before))
        body: dict[str, Any] = {"metadata": {"annotations": {BEFORE: said}}, "spec": {}}
        if replicas is not None:
            body["spec"]["replicas"] = replicas
        if export is not None:
            container = {"name": CONTAINER, "env": [{"name": EXPORT, "value": export}]}
            body["spec"]["template"] = {"spec": {"containers": [container]}}
        self.call(lambda: self.apps.patch_namespaced_deployment(self.name, self.namespace, body))

    def before(self) -> tuple[Served, int | None]:
        """What a roll-out goes back to, and how many pods it starts; None where there are some: their number is not
        its own."""
        found = self.read()
        said = annotations_of(found)
        served = Served(exported(found), found.spec.replicas)
        if BEFORE in said:
            served = Served(**json.loads(said[BEFORE]))
        return served, None if found.spec.replicas else int(said.get(REPLICAS, "1"))

    def back(self, export: str, before: Served, *, patiently: bool) -> None:
        """Go back, unless the Deployment has been given something else meanwhile; `patiently` waits for that."""
        if exported(self.read()) == export:
            self.patch(export=before.export, replicas=None if before.replicas else 0, before=None)
            print(f"the roll-out is taken back: {before.export or 'nothing'} is served, as before", flush=True)
            if patiently:
                self.wait(before.export, lambda _: "")

    def wait(self, export: str, fault: Callable[[str], str]) -> None:
        """Returns when every pod that is wanted has the export and is ready, and no other is left in the Service.

        The Deployment's own condition of a deadline is not asked: it may be of the roll-out before."""
        counts, since = None, time.monotonic()
        while True:
            found = self.read()
            if (other := exported(found)) != export:
                raise RuntimeError(f"{self.name} was given {other} meanwhile, by another run; it wins")
            if is_complete(found):
                return
            if why := fault(export):
                raise RuntimeError(why)
            if counts != counts_of(found):
                counts, since = counts_of(found), time.monotonic()
            if time.monotonic() > since + found.spec.progress_deadline_seconds:
                waited = found.spec.progress_deadline_seconds
                raise RuntimeError(f"{self.name} has not come further for {waited} s{self.held_up(export)}")
            time.sleep(POLL_S)

    def pods(self, export: str) -> list[Any]:
        """Those that are made to serve the export."""
        labels = self.read().spec.selector.match_labels
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found = self.call(lambda: self.core.list_namespaced_pod(self.namespace, label_selector=selector)).items
        return [pod for pod in found if export_of(pod.spec) == export and pod.metadata.deletion_timestamp is None]

    def fault(self, export: str) -> str:
        """Why a pod of the export will not come up, in one sentence; empty while it may."""
        for pod in self.pods(export):
            for status in pod.status.container_statuses or ():
                ended = status.state.terminated or status.last_state.terminated
                if ended is not None and (is_final(ended) or status.restart_count > RESTARTS):
                    return f"{pod.metadata.name} {end_of(ended, memory_of(pod))}"
                waits = status.state.waiting
                if waits is None or waits.reason in USUAL:
                    continue
                since = self.waiting.setdefault(f"{pod.metadata.name} {waits.reason}", time.monotonic())
                if time.monotonic() > since + GRACE_S:
                    return f"{pod.metadata.name} does not start: {waits.reason}: {waits.message}"
        return ""

    def held_up(self, export: str) -> str:
        """What the scheduler says of pods that have no node."""
        for pod in self.pods(export):
            for condition in pod.status.conditions or ():
                if condition.type == "PodScheduled" and condition.status == "False":
                    return f"; {pod.metadata.name}: {condition.message}"
        return ""

    def call(self, ask: Callable[[], Any]) -> Any:
        """An answer of the API server, which may be away for a while; a refusal is a person's mistake."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        until = time.monotonic() + OUTAGE_S
        while True:
            try:
                return ask()
            except ApiException as error:
                if error.status == 404:
                    place = f"{self.namespace}/{self.name}"
                    raise UserError(f"there is no Deployment {place}; install charts/relic-serve") from error
                if error.status < 500 and error.status != 429:
                    raise UserError(f"the cluster refuses the roll-out: {kube.said(error)}") from error
                if time.monotonic() > until:
                    raise
            except HTTPError:
                if time.monotonic() > until:
                    raise
            time.sleep(POLL_S)


def apis() -> tuple[Any, Any]:
    """Of Deployments and of pods."""
    connection = kube.connect()
    from kubernetes import client

    return client.AppsV1Api(connection), client.CoreV1Api(connection)


def annotations_of(found: Any) -> dict[str, str]:
    return found.metadata.annotations or {}


def exported(found: Any) -> str:
    """The export of a Deployment."""
    return export_of(found.spec.template.spec)


def export_of(pod: Any) -> str:
    """The export that a pod of this spec serves."""
    values = {item.name: item.value for c in pod.containers if c.name == CONTAINER for item in c.env or ()}
    return values.get(EXPORT) or ""


def is_complete(found: Any) -> bool:
    seen = (found.status.observed_generation or 0) >= found.metadata.generation
    return seen and all(count == found.spec.replicas for count in counts_of(found))


def counts_of(found: Any) -> tuple[int, int, int]:
    """Pods with the newest template, of all templates, and those that are ready; none that is on its way out."""
    status = found.status
    return status.updated_replicas or 0, status.replicas or 0, status.available_replicas or 0


def is_final(ended: Any) -> bool:
    """Whether to start the same again would end the same."""
    return ended.reason == "OOMKilled" or ended.exit_code in (MISTAKE, OUT_OF_MEMORY)


def end_of(ended: Any, memory: str) -> str:
    """How a container has ended, with the last sentence of its log."""
    if ended.reason == "OOMKilled":
        return f"was killed for its memory; it may have {memory}"
    said = [line for line in (ended.message or "").splitlines() if line.strip()]
    sentence = next((line for line in reversed(said) if line.startswith("relic: ")), said[-1] if said else "nothing")
    return f"has ended with exit code {ended.exit_code} and said: {sentence.removeprefix('relic: ')}"


def memory_of(pod: Any) -> str:
    limits = next(c.resources.limits or {} for c in pod.spec.containers if c.name == CONTAINER)
    return limits.get("memory", "all of its node")
