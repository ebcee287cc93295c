"""What a PyTorchJob, its pods and Kueue say of how it goes, in words; and how it ended.

Containers are started again in their pods, and pods that are lost are made again, until the job's limit is reached.
Then the job has failed, and the reason is what came first in its last round: the other workers fail of that."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from relic import pod_facts, verdict
from relic.pod_facts import container, last_words
from relic.verdict import Verdict

TOGETHER_S = 120.0  # workers whose ends are no further apart than that ended of the same cause
FINAL = (verdict.MISTAKE, verdict.OUT_OF_MEMORY)  # the same after a restart
AGAIN = (verdict.HUNG, verdict.STOPPED)  # the same command goes on
OVER = ("Succeeded", "Failed", "Error")  # phases of a Workflow that has ended
KILLED, ASKED_TO_END = 137, 143  # exit codes of a container that got SIGKILL, SIGTERM


@dataclass(frozen=True)
class Ending:
    """A worker's container that has ended, or a pod that the cluster ended."""

    worker: str
    pod: str  # the uid of that worker's pod, which can be made again
    at: datetime
    code: int | None  # None: the whole pod
    reason: str  # Kubernetes' word, such as OOMKilled, Error, Evicted
    text: str  # its last words

    def __str__(self) -> str:
        how = self.reason if self.code is None else f"{self.reason}, exit code {self.code}"
        return f"{self.worker} ended ({how}){f': {self.text}' if self.text else ''}"


@dataclass(frozen=True)
class State:
    word: str  # Queued, Pending, Running, Restarting, Succeeded, Failed
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}{f': {self.why}' if self.why else ''}"


def condition(found: dict, kind: str) -> dict | None:
    """A condition of an object that is true."""
    said = [item for item in found.get("status", {}).get("conditions") or [] if item["type"] == kind]
    return said[0] if said and said[0]["status"] == "True" else None


def is_finished(found: dict) -> bool:
    return bool(condition(found, "Succeeded") or condition(found, "Failed"))


def is_suspended(found: dict) -> bool:
    return bool(found["spec"].get("runPolicy", {}).get("suspend"))


def is_over(pod: dict) -> bool:
    """Whether none of a pod's containers runs or will."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def is_done(pod: dict) -> bool:
    return container(pod)["state"].get("terminated", {}).get("exitCode") == 0


def has_begun(found: dict, pods: Sequence[dict]) -> bool:
    """Whether a container of a job runs or has run, as far as the job and its pods still say."""
    said = {item["type"] for item in found.get("status", {}).get("conditions") or []}
    return bool(said & {"Running", "Restarting"}) or any(
        {"running", "terminated"} & set(container(pod)["state"]) or container(pod)["restartCount"] for pod in pods
    )


def of(found: dict, pods: Sequence[dict], *, queued: str, warned: str) -> State:
    """How a job goes. `queued` is why Kueue lets it wait, `warned` what the cluster last said against it."""
    for kind in ("Failed", "Succeeded"):
        if said := condition(found, kind):
            return State(kind, said["message"])
    if is_suspended(found):
        return State("Queued", queued)
    if not pods:
        return State("Restarting" if condition(found, "Restarting") else "Pending", warned)
    running = sum("running" in container(pod)["state"] for pod in pods)
    if running + sum(map(is_done, pods)) == found["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]:
        return State("Running")
    some = f"{running} of {len(pods)} workers run" if running else ""
    if condition(found, "Restarting") or any(map(will_restart, pods)):
        return State("Restarting", some)
    why = next(filter(None, map(waits_for, pods)), "")
    return State("Pending", "; ".join(filter(None, (some, why))))


def will_restart(pod: dict) -> bool:
    """Whether a pod's container has ended and is started again, after a pause that grows."""
    now = container(pod)["state"]
    return bool(now.get("terminated", {}).get("exitCode")) or now.get("waiting", {}).get("reason") == "CrashLoopBackOff"


def waits_for(pod: dict) -> str:
    """Why a pod does not run yet, where that is worth to be said, in words that stay while the kubelet's change."""
    kind, said = pod_facts.waits(pod)
    reasons = {
        pod_facts.NODE: said,
        pod_facts.WRONG: "its image cannot be pulled",
        pod_facts.IMAGE: "its image cannot be pulled",
        pod_facts.CONTAINER: said.partition(":")[0],
    }
    return f"{pod['metadata']['name']}: {reasons[kind]}" if kind in reasons else ""


def why_queued(workload: dict | None) -> str:
    """What Kueue says of a workload that has no quota yet."""
    for item in (workload or {}).get("status", {}).get("conditions") or []:
        if item["type"] == "QuotaReserved" and item["status"] == "False":
            return item["message"]
    return ""


# Ends


def endings(pod: dict) -> Iterable[Ending]:
    """How a pod's container ended, now and before it was started again; or how the pod did."""
    found = container(pod)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    for state in (found.get("lastState") or {}, found["state"]):
        if (said := state.get("terminated")) and (said["exitCode"] or said["reason"] == "OOMKilled"):
            at, message = datetime.fromisoformat(said["finishedAt"]), said.get("message") or ""
            text = "" if said["reason"] == "OOMKilled" else last_words(message)  # it has had no time for any
            yield Ending(name, uid, at, said["exitCode"], said["reason"], text)
    if pod["status"].get("phase") == "Failed" and (reason := pod["status"].get("reason")):
        changed = max((item["lastTransitionTime"] for item in pod["status"].get("conditions") or []),
                      default=pod["metadata"]["creationTimestamp"])  # fmt: skip
        yield Ending(name, uid, datetime.fromisoformat(changed), None, reason, pod["status"].get("message", ""))


def final(ended: Iterable[Ending]) -> Verdict | None:
    """A verdict that no restart changes."""
    said = [ending for ending in ended if ending.code in FINAL]
    if not said:
        return None
    first = min(said, key=lambda ending: ending.at)
    return Verdict(first.code or 0, first.text or str(first))


def failure(found: dict, ended: Sequence[Ending], memory: str) -> Verdict:
    """Of a job that was started again as often as it may; `memory` is what a pod has."""
    name, said = found["metadata"]["name"], condition(found, "Failed")
    message = said["message"] if said else f"{name} failed"
    if not ended or "deadline" in message:
        return Verdict(verdict.FAILURE, message)
    newest = max(ending.at for ending in ended)
    first = min((e for e in ended if (newest - e.at).total_seconds() <= TOGETHER_S), key=lambda ending: ending.at)
    if first.reason == "OOMKilled":
        text = f"{first.worker} ran out of memory (OOMKilled): it has {memory}, which its pool's `memory` says"
        return Verdict(verdict.OUT_OF_MEMORY, text)
    lost = first.code is None or first.code in (KILLED, ASKED_TO_END)
    code = verdict.STOPPED if lost else first.code if first.code in AGAIN else verdict.FAILURE
    return Verdict(code, f"{first}, and {name} was started again as often as it may")
