"""The servers on a real cluster: an autoscaler makes more of them and fewer while people walk. `make test-cluster`.

The model is a small one that has learnt nothing."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import custom_metrics
import exports
import on_cluster
import pytest
import yaml
from on_cluster import Bucket, Space, command, kubectl, wait_for

from relic import artifacts
from relic.serve import client

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("RELIC_TEST_CLUSTER"), reason="needs a cluster: make test-cluster"),
]
SLOTS = 4
READY_S = 120.0  # for a pod to come up
SCALED_S = 90.0  # for the autoscaler, which looks every 15 s
QUICK = {"periodSeconds": 15, "stabilizationSeconds": 5}
VALUES = {
    "slots": SLOTS, "sessionsEach": 2 * SLOTS, "sessionSeconds": 600, "drainSeconds": 30,
    "router": {"deletionCost": True}, "autoscaling": {"mode": "hpa", "maxReplicas": 2, "scaleDown": QUICK},
    "networkPolicy": {"metrics": [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": custom_metrics.NAMESPACE}}}
    ]},
}  # fmt: skip
SERVERS = "app.kubernetes.io/name=relic-serve,app.kubernetes.io/component=server"
COST = "controller.kubernetes.io/pod-deletion-cost"


class Walker:
    """Somebody who walks, in a thread of their own, and says what they saw."""

    def __init__(self, place: str) -> None:
        self.walk = client.begin(place, wait_s=READY_S)
        self.sequences: list[int] = []
        self.at: list[float] = []  # when each frame came
        self.fault = ""
        self.thread = threading.Thread(target=self.go, daemon=True)
        self.thread.start()

    def go(self) -> None:
        try:
            for frame in self.walk.frames():
                if not len(self.sequences) % 4:
                    self.walk.act("dolly_in")  # without a key the world rests
                self.sequences.append(frame.sequence)
                self.at.append(time.monotonic())
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"

    def goes_on(self) -> bool:
        """Whether ten frames come."""
        seen = len(self.sequences)
        return bool(wait_for("frames", lambda: self.fault or len(self.sequences) >= seen + 10, 30)) and not self.fault

    def longest_s(self) -> float:
        """The longest wait for a frame."""
        return max(after - before for before, after in pairwise(self.at))

    def leave(self) -> None:
        self.walk.close()
        self.thread.join(10)


@dataclass(frozen=True)
class Story:
    """What was seen."""

    asleep: tuple[int, str]  # servers without an export, and why the autoscaler leaves them alone
    shares: dict[str, float]  # pods' places that are taken, with SLOTS walkers on one server and one on the other
    upgraded: int  # servers after `helm upgrade` of two
    left: list[str]  # pods, once there is little to do
    stayed: tuple[Walker, Walker]  # on either server, until the end
    seconds: dict[str, float]  # from a full server to two wanted and ready, from one on each to one wanted and left


def installed(space: Space, action: str, export: str, folder: Path) -> None:
    (folder / "values.yaml").write_text(yaml.safe_dump({**VALUES, "export": export}))
    values = ("--values", "charts/relic-serve/clusters/test.yaml", "--values", str(folder / "values.yaml"))
    done = command("helm", action, "relic-serve", "charts/relic-serve", "--namespace", space.name, *values)
    assert done.returncode == 0, done.stderr


def upload(bucket: Bucket, uri: str) -> str:
    """A local store's artifact as one of the cluster's store."""
    folder = Path(uri)
    place = f"store/{folder.parent.name}/{folder.name}"
    manifest = json.loads((folder / artifacts.MANIFEST).read_bytes())
    for file, fact in manifest["files"].items():
        bucket.write(f"{place}/{fact['sha256']}/{file}", (folder / file).read_bytes())
    bucket.write(f"{place}/{artifacts.MANIFEST}", json.dumps(manifest).encode())
    return f"s3://{on_cluster.BUCKET}/{place}"


def servers(space: Space) -> list[str]:
    """The servers' pods that are not told to end."""
    found = space.objects("pod", SERVERS)
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def wanted(space: Space) -> int:
    return space.object("deployment", "relic-serve")["spec"]["replicas"]


def ready(space: Space) -> int:
    return space.object("deployment", "relic-serve")["status"].get("readyReplicas", 0)


def shares(space: Space) -> dict[str, float]:
    """The share of places that are taken, by pod, as the autoscaler is told."""
    asked = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{space.name}/pods/*/relic_session_slots_used"
    items = json.loads(kubectl("get", "--raw", f"{asked}?labelSelector={SERVERS.replace('=', '%3D')}"))["items"]
    return {item["describedObject"]["name"]: int(item["value"].removesuffix("m")) / 1000 for item in items}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("serving")
    space = on_cluster.namespace("relic-serving")
    store = [one for one in on_cluster.services(space.name) if one["metadata"]["name"] == "moto"]
    kubectl("create", "-f", "-", given=yaml.safe_dump_all(store))
    space.kubectl("wait", "--for=condition=Available", "deployment/moto", "--timeout=120s")
    with on_cluster.bucket(space) as bucket:
        bucket.client.create_bucket(Bucket=on_cluster.BUCKET)
        local = folder / "store"
        export = upload(bucket, exports.export(local, exports.inputs(local)))
    with ExitStack() as stack:
        stack.enter_context(custom_metrics.registered(space, folder))
        # 1. nothing to serve yet
        installed(space, "install", "", folder)
        space.kubectl("rollout", "status", "deployment/relic-serve-router", f"--timeout={READY_S:.0f}s")
        asleep = wait_for("the autoscaler", lambda: inactive(space), SCALED_S)
        number = wanted(space)
        # 2. one server, full
        installed(space, "upgrade", export, folder)
        place = stack.enter_context(on_cluster.forwarded(space.name, "service/relic-serve", 8000))
        wait_for("a server behind the router", lambda: reached(place), READY_S)
        first = [Walker(place) for _ in range(SLOTS)]
        began, seconds = time.monotonic(), {}
        wait_for("a second server", lambda: wanted(space) == 2, SCALED_S)
        seconds["two_wanted"] = time.monotonic() - began
        wait_for("its start", lambda: ready(space) == 2, READY_S)
        seconds["two_ready"] = time.monotonic() - began
        installed(space, "upgrade", export, folder)
        upgraded = wanted(space)
        # 3. somebody on the second
        last = Walker(place)
        wait_for("their place", lambda: len(shares(space)) == 2 and min(shares(space).values()) > 0, 30)
        taken = shares(space)
        walks = {name: SLOTS * share for name, share in taken.items()}
        wait_for("the router's notes", lambda: costs(space) == walks, 90)
        # 4. one on each
        began = time.monotonic()
        for walker in first[1:]:
            walker.leave()
        wait_for("a server to leave", lambda: wanted(space) == 1 and len(servers(space)) == 1, SCALED_S)
        seconds["one_wanted"] = time.monotonic() - began
        wait_for("its end", lambda: len(space.objects("pod", SERVERS)) == 1, 90)
        seconds["one_left"] = time.monotonic() - began
        yield Story((number, asleep), taken, upgraded, servers(space), (first[0], last), seconds)
        for walker in (first[0], last):
            walker.leave()
    space.delete()


def reached(place: str) -> bool:
    """Whether the router knows of a ready server."""
    try:
        return client.ask("GET", f"{place}/readyz")["ready"]
    except client.Answered:
        return False


def inactive(space: Space) -> str:
    """Why the autoscaler does nothing; empty while it does, or has not looked yet."""
    conditions = space.object("hpa", "relic-serve").get("status", {}).get("conditions", [])
    return next((one["reason"] for one in conditions if (one["type"], one["status"]) == ("ScalingActive", "False")), "")


def costs(space: Space) -> dict[str, float]:
    """What the router has noted on the servers' pods as the cost of their deletion."""
    found = {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}) for pod in space.objects("pod", SERVERS)}
    return {name: float(annotations[COST]) for name, annotations in found.items() if COST in annotations}


def test_before_there_is_an_export_the_autoscaler_starts_nothing(story: Story) -> None:
    assert story.asleep == (0, "ScalingDisabled")


def test_a_full_server_brings_a_second_one_and_the_next_walk_begins_there(story: Story) -> None:
    assert sorted(story.shares.values()) == [1 / SLOTS, 1.0]


def test_an_upgrade_of_the_chart_keeps_what_the_autoscaler_has_set(story: Story) -> None:
    assert story.upgraded == 2


def test_with_little_to_do_one_server_leaves_and_the_walk_on_it_goes_on(story: Story) -> None:
    assert len(story.left) == 1
    for walker in story.stayed:
        assert walker.goes_on(), walker.fault
        assert walker.sequences == sorted(set(walker.sequences))
    assert sorted(walker.walk.num_lost for walker in story.stayed) == [0, 1]
    (moved,) = [walker for walker in story.stayed if walker.walk.num_lost]
    frames = {"came": len(moved.sequences), "of": moved.sequences[-1] + 1}
    print(json.dumps({"seconds": story.seconds, "longest_wait_s": moved.longest_s(), "frames_of_who_moved": frames}))
    assert moved.longest_s() < 10
