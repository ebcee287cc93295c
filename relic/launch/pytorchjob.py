"""A step as a PyTorchJob on Kubernetes: made, or found where it already runs, and followed to its end.

The job's name comes from the artifact, so whoever wants the same artifact meets in the same job and none runs twice. It
belongs to the Workflow whose pod made it. A pod that is deleted and a Workflow that is stopped both look like SIGTERM
here: the job is deleted only when its Workflow is ending, else it goes on for the pod that is started next."""

import json
import sys
import time
from collections.abc import Sequence

from relic import cluster as clusters
from relic import verdict
from relic.call import Call
from relic.cluster import Cluster
from relic.launch import job, state
from relic.launch.api import Api
from relic.launch.config import Launch
from relic.launch.history import History
from relic.launch.rank_log import RankLog
from relic.launch.state import State
from relic.launch.torchrun import stop_signals
from relic.mistakes import UserError
from relic.verdict import Unreachable, Verdict

POLL_S = 5.0  # a run may have as many launchers as parts, and each asks for the job, its pods and a log
QUEUED_S = 15.0  # between two looks at a job that has no place yet
SLICE_S = 0.1  # of a pause, after which a signal is seen
LEAVE_S = 60.0  # for the other workers to end when the artifact is there
STORE_S = 300.0  # with a store that does not answer


def defaults(pool: str) -> Launch:
    """The options of a launch on a pool, as the cluster's file has them."""
    cluster = cluster_of_launch()
    found = cluster.pool(pool)
    return Launch(
        backend="pytorchjob", pool=pool, nodes=found.nodes, processes=str(found.processes), max_restarts=cluster.retries
    )


def cluster_of_launch() -> Cluster:
    found = clusters.of_pod()
    if found is None:
        raise UserError(
            f"{clusters.FILE} is not set; it must name the cluster's file, such as workflows/clusters/….yaml"
        )
    return found


def run(config: Launch, call: Call, args: Sequence[str]) -> Verdict:
    """Make the artifact of a call, `relic args…`, in a job, or find it finished; say its URI, and how it ended."""
    cluster = cluster_of_launch()
    if not call.store.startswith("s3://"):
        raise UserError(
            f"store is {call.store!r}; on a cluster it must be s3://BUCKET/PREFIX, which all pods can reach"
        )
    if config.dry_run:
        print(json.dumps(job.manifest(config, cluster, call, args), indent=1))
        return Verdict(verdict.DONE, "")
    with stop_signals() as signals:
        try:
            ended = Launcher(config, cluster, call, args, signals).run()
        except ConnectionError as error:
            ended = Verdict(verdict.STOPPED, f"{error}; the same command follows {job.name_of(call)} again")
    if ended.code == verdict.DONE:
        if call.step.trains:
            forget_checkpoints(call)
        call.say(call.uri)
    return ended


def forget_checkpoints(call: Call) -> None:
    """Those that the job kept in the store; a finished artifact needs none, and is none the worse for them."""
    from relic.object_store import S3Folder

    place = S3Folder(f"{job.checkpoints(call).removeprefix('s3://')}/{call.step.name}/{call.key}")
    try:
        place.clear()
    except (OSError, UserError) as error:
        print(f"warning: the checkpoints of {call.uri} are not deleted ({error})", file=sys.stderr, flush=True)


class Launcher:
    """One artifact's way through its job, or through another's and then its own."""

    def __init__(
        self, config: Launch, cluster: Cluster, call: Call, args: Sequence[str], signals: Sequence[int]
    ) -> None:
        self.config, self.cluster, self.call, self.signals = config, cluster, call, signals
        self.api = Api(cluster.namespace, signals)
        self.name = job.name_of(call)
        self.body = job.manifest(config, cluster, call, args)

    def run(self) -> Verdict:
        while not self.signals:
            if self.is_finished():
                return Verdict(verdict.DONE, "")
            found, attached = self.meet()
            if found is not None and (ended := self.follow(found, attached=attached)) is not None:
                return ended
        return Verdict(verdict.STOPPED, f"stopped before {self.name} ran; the same command goes on")

    def say(self, text: object) -> None:
        print(f"launch: {self.name}: {text}", flush=True)

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.signals and time.monotonic() < until:
            time.sleep(min(SLICE_S, seconds))

    def is_finished(self) -> bool:
        """Whether the artifact is there. A store that is away for a while costs patience, as the API server does."""
        began = time.monotonic()
        while True:
            try:
                return self.call.is_finished()
            except Unreachable as error:
                if self.signals or time.monotonic() - began > STORE_S:
                    raise
                self.say(error)
            self.pause(POLL_S)

    # Made, or found

    def meet(self) -> tuple[dict | None, bool]:
        """The job, and whether it was there already; none where an old one has to go first."""
        if (made := self.api.create(self.body)) is not None:
            return made, False
        found = self.api.job(self.name)
        if found is None:
            return None, False
        leaving = "deletionTimestamp" in found["metadata"]
        if leaving or self.is_over(found):
            if not leaving:
                self.api.delete(found)
            self.pause(POLL_S)
            return None, False
        self.say("runs already" if self.is_ours(found) else f"runs already, for {owner_of(found) or 'a person'}")
        return found, True

    def is_ours(self, found: dict) -> bool:
        uids = [item["uid"] for item in found["metadata"].get("ownerReferences", []) if item["kind"] == "Workflow"]
        return uids == [uid for uid in job.owner()[1:] if uid]

    def is_over(self, found: dict) -> bool:
        """Whether nothing more comes of a job. Worker 0 may upload the artifact when another has succeeded."""
        first = self.first(self.api.pods(self.name)) if state.condition(found, "Succeeded") else None
        uploading = first is not None and "running" in state.container(first)["state"]
        return state.is_finished(found) and not uploading

    def first(self, pods: Sequence[dict]) -> dict | None:
        """The pod of worker 0, which speaks for all; none while it is made again."""
        return next((pod for pod in pods if pod["metadata"]["name"] == job.worker(self.name, 0)), None)

    # Followed

    def follow(self, found: dict, *, attached: bool) -> Verdict | None:
        """The job's end; None of a job that is not ours and leaves the artifact unmade."""
        log, history = RankLog(self.api, attached=attached), History()
        uid, ours, said = found["metadata"]["uid"], self.is_ours(found), None
        while True:
            now = self.api.job(self.name)
            if now is None or now["metadata"]["uid"] != uid:
                return self.vanished() if ours else None
            suspended = state.is_suspended(now)
            pods = [] if suspended else self.api.pods(self.name)  # while it is, its pods go or are gone
            if (first := self.first(pods)) is not None:
                log.pass_on(first)
            for ending in history.seen(now, pods):
                self.say(ending)
            how = self.state_of(now, pods)
            if how != said:
                self.say(how)
                said = how
            ended = self.ending(now, pods, history)
            if ended is None and self.signals:
                return self.stop(now)
            if ended is not None and ended.code == verdict.DONE:
                if ours:
                    self.leave(now)
                return ended
            if ended is not None and ours:
                self.api.delete(now)
            if ended is not None:
                return ended if ours or not state.is_finished(now) else None
            self.pause(QUEUED_S if suspended else POLL_S)

    def leave(self, found: dict) -> None:
        """Workers end soon after the first one. One that was just starting again would wait for it, with its GPUs."""
        until = time.monotonic() + LEAVE_S
        while not all(map(state.is_over, self.api.pods(self.name))):
            if self.signals or time.monotonic() > until:
                return self.api.delete(found)
            self.pause(POLL_S)

    def state_of(self, found: dict, pods: list[dict]) -> State:
        suspended = state.is_suspended(found)
        queued = state.why_queued(self.api.workload(found)) if suspended and self.cluster.queue else ""
        warned = "" if pods or suspended or state.is_finished(found) else "".join(self.api.warnings(self.name)[-1:])
        return state.of(found, pods, queued=queued, warned=warned)

    def ending(self, found: dict, pods: list[dict], history: History) -> Verdict | None:
        """How the job has ended, if nothing better can come of it."""
        if (final := state.final(history.endings.values())) is not None:
            return final
        if stuck := history.stuck(pods):
            return Verdict(
                verdict.MISTAKE, f"{stuck}; see images and secrets in the file of cluster {self.cluster.name}"
            )
        if state.condition(found, "Failed"):
            memory = self.cluster.pool(self.config.pool).memory
            return state.failure(found, list(history.endings.values()), memory)
        if not self.is_over(found):
            return None
        if self.is_finished():
            return Verdict(verdict.DONE, "")
        return Verdict(verdict.FAILURE, f"{self.name} succeeded, and {self.call.uri} is not there")

    def vanished(self) -> Verdict:
        if self.is_finished():
            return Verdict(verdict.DONE, "")
        return Verdict(verdict.STOPPED, f"{self.name} was deleted; the same command goes on from its last checkpoint")

    def stop(self, found: dict) -> Verdict:
        """End as SIGTERM asks: with our job where the Workflow ends too, else without it."""
        name, uid = job.owner()
        if uid and self.is_ours(found) and is_ending(self.api.workflow(name), uid):
            self.api.delete(found)
            return Verdict(verdict.STOPPED, f"stopped with its workflow, and {self.name} with it")
        return Verdict(verdict.STOPPED, f"stopped; {self.name} goes on, and the same command follows it again")


def owner_of(found: dict) -> str:
    return ", ".join(item["name"] for item in found["metadata"].get("ownerReferences", []))


def is_ending(workflow: dict | None, uid: str) -> bool:
    """Whether a Workflow is being stopped, is deleted, or is over."""
    if workflow is None or workflow["metadata"]["uid"] != uid or "deletionTimestamp" in workflow["metadata"]:
        return True
    return bool(workflow["spec"].get("shutdown")) or workflow.get("status", {}).get("phase") in state.OVER
