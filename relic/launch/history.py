"""What a launcher has seen of its job's pods, which do not last: how they ended, and what they wait for in vain."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from relic import pod_facts
from relic.launch import state
from relic.launch.state import Ending

GRACE_S = 60.0  # for an image that cannot be pulled, or a secret that is missing, to be there after all


class History:
    def __init__(self) -> None:
        self.endings: dict[tuple[str, datetime], Ending] = {}  # by the pod's uid and the time
        self.pods: dict[str, str] = {}  # uid by name
        self.waiting: dict[str, float] = {}  # since when, by our clock, a pod of a uid waits for what is missing
        self.begun = False  # whether any container has run

    def seen(self, found: dict, pods: Sequence[dict]) -> list[Ending]:
        """The ends that are new."""
        self.begun = self.begun or state.has_begun(found, pods)
        uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}
        ends = [ending for pod in pods for ending in state.endings(pod)]
        ended = {ending.pod for ending in self.endings.values()}
        for name, uid in self.pods.items():
            if uids.get(name) != uid and uid not in ended and not state.is_suspended(found):
                why = "its pod was deleted, or its node was lost"
                ends.append(Ending(name, uid, datetime.now(UTC), None, "Lost", why))
        self.pods = uids
        new = {(each.pod, each.at): each for each in ends if (each.pod, each.at) not in self.endings}
        self.endings |= new
        return list(new.values())

    def stuck(self, pods: Sequence[dict]) -> str:
        """What a pod has waited for too long, in words; empty: nothing. What has run once has all it needs, and waits
        for a registry that is away; to end it would be worse."""
        now, before = time.monotonic(), self.waiting
        self.waiting = {}
        for pod in pods:
            (kind, said), uid = pod_facts.waits(pod), pod["metadata"]["uid"]
            if kind in pod_facts.MISSING:
                self.waiting[uid] = before.get(uid, now)
                if now - self.waiting[uid] > GRACE_S and not self.begun:
                    return f"{pod['metadata']['name']} does not start: {said}"
        return ""
