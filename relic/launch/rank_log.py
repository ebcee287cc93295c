"""Rank 0's log, passed on while it grows: no line is lost and none is shown twice, whatever restarts.

The API server gives lines of the last so many seconds, by the node's clock, which is not ours. So each request reaches
back a little further than the one before it, and what that one has shown is left out, by the times of the lines."""

import math
import time
from typing import Any

from relic.launch import state
from relic.launch.api import Api

MARGIN_S = 5  # that a request reaches back further than it must
ATTACHED_LINES = 20  # of the log so far, when a job is found that already runs


class RankLog:
    def __init__(self, api: Api, *, attached: bool) -> None:
        self.api = api
        self.uid, self.restarts = "", 0  # of the pod and its container, of which lines were read
        self.read_at: float | None = None  # by our clock; None: nothing of this pod
        self.shown: set[str] = set()  # by the last request, with their times
        self.options: dict[str, Any] = {"tail_lines": ATTACHED_LINES} if attached else {}

    def pass_on(self, pod: dict) -> None:
        """Print the lines of a pod's container that are new."""
        status = state.container(pod)
        uid, restarts = pod["metadata"]["uid"], status["restartCount"]
        if uid != self.uid:
            self.uid, self.restarts, self.read_at = uid, restarts if self.options else 0, None
        if not {"running", "terminated"} & set(status["state"]) and not restarts:
            return
        now = time.monotonic()
        if self.read_at is not None:
            self.options = {"since_seconds": math.ceil(now - self.read_at) + MARGIN_S}
        said = []
        if restarts > self.restarts:
            said.append(self.api.log(pod["metadata"]["name"], previous=True, **self.options))
        said.append(self.api.log(pod["metadata"]["name"], **self.options))
        if said[-1] is None:
            return
        lines = [line for text in said if text is not None for line in text.split("\n") if line]
        for line in lines:
            if line not in self.shown:
                print(line.partition(" ")[2], flush=True)
        self.shown, self.restarts, self.read_at, self.options = set(lines), restarts, now, {}
