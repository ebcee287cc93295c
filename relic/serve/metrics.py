"""What a server counts, for Prometheus: who is there, who was refused, how long chunks and answers take."""

import os
import resource
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from starlette.responses import Response

from relic.serve.access import Refused
from relic.serve.logs import note

SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
ENDINGS = ("bye", "deleted", "idle", "lifetime", "lease", "failed", "closing", "moved")
RESULTS = ("saved", "restored", "save_failed", "restore_failed")  # of snapshots
NOTED_S = 1.0  # between two records of refusals for one reason
PAGE = resource.getpagesize()

disable_created_metrics()  # else each counter has a second series with the time of its birth


class Exposition(Response):
    media_type = "text/plain; version=0.0.4; charset=utf-8"


class Counted:
    """Counters in a registry of their own, and among them, under a name, that of refusals."""

    def __init__(self, refusals: str):
        self.registry = CollectorRegistry()
        self.refusals = self._counter(refusals, "Requests and streams refused", "status", "reason")
        self.noted: dict[str, float] = {}  # when a refusal was logged last, by reason

    def refused(self, error: Refused) -> None:
        """Counts a refusal, and logs one a second for each reason: who is refused all the time fills no disk. Its
        sentence, which may quote the caller, stays with the caller."""
        self.refusals.labels(str(error.status), error.reason).inc()
        now = time.monotonic()
        if now - self.noted.get(error.reason, -NOTED_S) >= NOTED_S:
            self.noted[error.reason] = now
            note("refused", status=error.status, reason=error.reason)

    def _gauge(self, name: str, said: str, *labels: str) -> Gauge:
        return Gauge(name, said, labels, registry=self.registry)

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(name, said, labels, registry=self.registry)

    def _histogram(self, name: str, said: str) -> Histogram:
        return Histogram(name, said, buckets=SECONDS, registry=self.registry)


class Metrics(Counted):
    """The counters of one server."""

    def __init__(self) -> None:
        super().__init__("relic_refusals")
        self.active = self._gauge("relic_sessions_active", "Walks that have a place")
        self.slots = self._gauge("relic_session_slots", "Places for walks")
        self.used = self._gauge("relic_session_slots_used", "Share of the places that are taken, 0 to 1")
        self.ready = self._gauge("relic_ready", "1 while walks are admitted")
        self.streams = self._gauge("relic_streams_open", "Connections that are open to a walk's stream")
        self.memory = self._gauge(
            "relic_memory_bytes", "Of the device for walks and their moments; of the process", "of"
        )
        self.created = self._counter("relic_sessions_created", "Walks that were begun")
        self.ended = self._counter("relic_sessions_ended", "Walks that have ended, by reason", "reason")
        self.frames_sent = self._counter("relic_frames_sent", "Pictures sent")
        self.frames_dropped = self._counter("relic_frames_dropped", "Pictures made and dropped: the reader was slow")
        self.snapshots = self._counter("relic_snapshots", "Walks saved and restored, and failures of both", "result")
        self.chunk = self._histogram("relic_chunk_seconds", "The engine's time for a chunk")
        self.answer = self._histogram("relic_action_to_frame_seconds", "From an action to the first picture showing it")
        self.queue_wait = self._histogram("relic_queue_wait_seconds", "How long a chunk that was due waited its turn")
        for reason in ENDINGS:
            self.ended.labels(reason)  # a rate needs its first zero
        for result in RESULTS:
            self.snapshots.labels(result)

    def show(self, *, active: int, slots: int, ready: bool, streams: int, walk_bytes: int) -> bytes:
        """All of it in the exposition format, with what is so at this moment."""
        self.active.set(active)
        self.slots.set(slots)
        self.used.set(active / slots)
        self.ready.set(ready)
        self.streams.set(streams)
        self.memory.labels("walks").set(walk_bytes)
        self.memory.labels("process").set(resident_bytes())
        return generate_latest(self.registry)


def resident_bytes() -> int:
    """Of this process, without the one that decodes images."""
    with open(f"/proc/{os.getpid()}/statm") as file:
        return int(file.read().split()[1]) * PAGE
