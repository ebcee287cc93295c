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

from relic import kube, pod_facts
from relic.cluster import Cluster
from relic.mistakes import UserError
from relic.verdict import MISTAKE, OUT_OF_MEMORY, Stopped

CONTAINER = "serve"
EXPORT = "RELIC_EXPORT"  # the container's variable with the URI of what it serves
BEFORE = "relic.dev/before"  # annotation: what was served before a roll-out that has not ended
REPLICAS = "relic.dev/replicas"  # annotation: how many pods the first roll-out starts
POLL_S = 2.0
RESTARTS = 2  # of a container that failed, perhaps for a store that did not answer
GRACE_S = 60.0  # for what a container misses to be there after all, such as a registry that does not answer
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
        server.prove(export)


def serves(export: str, cluster: Cluster) -> bool:
    """Whether the Deployment has the export, and no roll-out of it is left unproven."""
    found = Deployment(cluster).read()
    return exported(found) == export and found["spec"]["replicas"] > 0 and BEFORE not in annotations_of(found)


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
        self.api = kube.Api(self.namespace, in_run=True, patience=lambda: OUTAGE_S)
        self.waiting: dict[str, float] = {}  # pod and what it waits for -> since when

    def read(self) -> dict:
        if (found := self.api.get("deployments", self.name)) is None:
            raise UserError(f"there is no Deployment {self.namespace}/{self.name}; install charts/relic-serve")
        return found

    def patch(
        self, *, export: str | None = None, replicas: int | None = None, before: Served | None, version: str = ""
    ) -> bool:
        """One change of all, so that no pod sees half of it; false where the Deployment has another `version`."""
        said = None if before is None else json.dumps(asdict(before))
        body: dict[str, Any] = {"metadata": {"annotations": {BEFORE: said}}, "spec": {}}
        if version:
            body["metadata"]["resourceVersion"] = version
        if replicas is not None:
            body["spec"]["replicas"] = replicas
        if export is not None:
            container = {"name": CONTAINER, "env": [{"name": EXPORT, "value": export}]}
            body["spec"]["template"] = {"spec": {"containers": [container]}}
        place = self.api.place("deployments", self.name)
        return self.api.ask("PATCH", place, body, absent=(kube.EXISTS,)) is not None

    def before(self) -> tuple[Served, int | None]:
        """What a roll-out goes back to, and how many pods it starts; None where there are some: their number is not
        its own."""
        found = self.read()
        said, replicas = annotations_of(found), found["spec"]["replicas"]
        served = Served(exported(found), replicas)
        if BEFORE in said:
            served = Served(**json.loads(said[BEFORE]))
        return served, None if replicas else int(said.get(REPLICAS, "1"))

    def ours(self, export: str) -> dict:
        """The Deployment, while it has our export."""
        found = self.read()
        if (other := exported(found)) != export:
            raise RuntimeError(f"{self.name} was given {other} meanwhile, by another run; it wins")
        return found

    def prove(self, export: str) -> None:
        """Forget what was before. What another run has put there since, to go back to, is not ours to forget."""
        while not self.patch(before=None, version=self.ours(export)["metadata"]["resourceVersion"]):
            pass

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
            found = self.ours(export)
            if is_complete(found):
                return
            if why := fault(export):
                raise RuntimeError(why)
            if counts != counts_of(found):
                counts, since = counts_of(found), time.monotonic()
            if time.monotonic() > since + (waited := found["spec"]["progressDeadlineSeconds"]):
                raise RuntimeError(f"{self.name} has not come further for {waited} s{self.held_up(export)}")
            time.sleep(POLL_S)

    def pods(self, export: str) -> list[dict]:
        """Those that are made to serve the export."""
        labels = self.read()["spec"]["selector"]["matchLabels"]
        found = self.api.items("pods", labelSelector=",".join(f"{name}={value}" for name, value in labels.items()))
        return [pod for pod in found if export_of(pod["spec"]) == export and "deletionTimestamp" not in pod["metadata"]]

    def fault(self, export: str) -> str:
        """Why a pod of the export will not come up, in one sentence; empty while it may."""
        for pod in self.pods(export):
            name, status = pod["metadata"]["name"], pod_facts.container(pod, CONTAINER)
            ended = status["state"].get("terminated") or status.get("lastState", {}).get("terminated")
            if ended and (is_final(ended) or status["restartCount"] > RESTARTS):
                return f"{name} {end_of(ended, memory_of(pod))}"
            kind, said = pod_facts.waits(pod, CONTAINER)
            if kind in pod_facts.MISSING:
                since = self.waiting.setdefault(f"{name} {kind}", time.monotonic())
                if time.monotonic() > since + GRACE_S:
                    return f"{name} does not start: {said}"
        return ""

    def held_up(self, export: str) -> str:
        """What a pod waits for: a node, or what its container needs, such as a secret that is a volume."""
        for pod in self.pods(export):
            _, said = pod_facts.waits(pod, CONTAINER)
            if said:
                return f"; {pod['metadata']['name']}: {said}"
        return ""


def annotations_of(found: dict) -> dict[str, str]:
    return found["metadata"].get("annotations", {})


def exported(found: dict) -> str:
    """The export of a Deployment."""
    return export_of(found["spec"]["template"]["spec"])


def serving_in(pod: dict) -> dict:
    """The container that serves, in a pod's specification."""
    return next(container for container in pod["containers"] if container["name"] == CONTAINER)


def export_of(pod: dict) -> str:
    """The export that a pod of this specification serves."""
    values = {item["name"]: item.get("value", "") for item in serving_in(pod).get("env", [])}
    return values.get(EXPORT, "")


def is_complete(found: dict) -> bool:
    seen = found["status"].get("observedGeneration", 0) >= found["metadata"]["generation"]
    return seen and all(count == found["spec"]["replicas"] for count in counts_of(found))


def counts_of(found: dict) -> tuple[int, ...]:
    """Pods with the newest template, of all templates, and those that are ready; none that is on its way out."""
    return tuple(found["status"].get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas"))


def is_final(ended: dict) -> bool:
    """Whether to start the same again would end the same."""
    return ended["reason"] == "OOMKilled" or ended["exitCode"] in (MISTAKE, OUT_OF_MEMORY)


def end_of(ended: dict, memory: str) -> str:
    """How a container has ended, with the last sentence of its log."""
    if ended["reason"] == "OOMKilled":
        return f"was killed for its memory; it may have {memory}"
    said = pod_facts.last_words(ended.get("message", "")) or "nothing"
    return f"has ended with exit code {ended['exitCode']} and said: {said}"


def memory_of(pod: dict) -> str:
    limits = serving_in(pod["spec"]).get("resources", {}).get("limits", {})
    return limits.get("memory", "all of its node")
