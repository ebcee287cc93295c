"""The roll-out of the server: it comes up and is proven, or the Deployment has again what it had."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import fake_api
import pytest
from fake_rollout import READY, FakeCluster, ended, waiting

from relic import kube
from relic.cluster import Cluster, Images, Serving
from relic.launch import deployment, promote
from relic.launch.config import Deploy, Threshold
from relic.mistakes import UserError
from relic.verdict import Stopped

OLD, NEW = "s3://b/store/export/00000000000000000001", "s3://b/store/export/00000000000000000002"
CLUSTER = Cluster(
    name="test", store="s3://b/store", images=Images(train="t", serve="s", control="c"), pools={}, serving=Serving()
)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeCluster]]:
    """A cluster whose Deployment has an export; time passes without waiting."""
    now = [0.0]
    passing = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(deployment, "time", passing)
    monkeypatch.setattr(kube, "PAUSE_S", 0.01)
    with ExitStack() as stack:

        def started(*given: Any) -> FakeCluster:
            fake = FakeCluster(*given)
            api = stack.enter_context(fake_api.serving(fake))
            monkeypatch.setattr(kube, "connect", lambda: api)
            return fake

        yield started


def state_of(fake: FakeCluster) -> tuple[str, int, bool]:
    """Its export, its pods, and whether a roll-out is left unproven."""
    return fake.export, fake.replicas, deployment.BEFORE in fake.annotations


def broken(status: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Pods of the new export have this status, others are well."""
    return lambda export: status if export == NEW else READY


def test_the_first_export_starts_as_many_pods_as_the_chart_says(start: Callable[..., FakeCluster]) -> None:
    fake = start("", 0, 3)
    with deployment.rolled_out(NEW, CLUSTER) as place:
        assert place == "http://relic-serve:8000"
        assert state_of(fake) == (NEW, 3, True)
    assert state_of(fake) == (NEW, 3, False)


def test_the_next_export_leaves_the_number_of_pods_alone(start: Callable[..., FakeCluster]) -> None:
    fake = start(OLD, 5)
    with deployment.rolled_out(NEW, CLUSTER):
        pass
    assert state_of(fake) == (NEW, 5, False)
    assert all("replicas" not in patch["spec"] for patch in fake.patches)


@pytest.mark.parametrize(("export", "replicas"), [(OLD, 2), ("", 0)])
def test_what_fails_inside_brings_back_what_was(start: Callable[..., FakeCluster], export: str, replicas: int) -> None:
    fake = start(export, replicas)
    with pytest.raises(OSError, match="the alias"), deployment.rolled_out(NEW, CLUSTER):
        raise OSError("the alias could not be moved")
    assert state_of(fake) == (export, replicas, False)


STALLED = "relic-serve has not come further for 600 s"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (ended(137, reason="OOMKilled"), "relic-serve-new was killed for its memory; it may have 4Gi"),
        (ended(2, "loading\nrelic: no GPU\n"), "relic-serve-new has ended with exit code 2 and said: no GPU"),
        (ended(1, "Traceback", restarts=3), "relic-serve-new has ended with exit code 1 and said: Traceback"),
        (waiting("ErrImagePull", "not found"), "relic-serve-new does not start: ErrImagePull: not found"),
        (waiting("ContainerCreating", ""), f"{STALLED}; relic-serve-new: ContainerCreating"),
        (ended(1, restarts=1), f"{STALLED}; relic-serve-new: CrashLoopBackOff"),
    ],
)
def test_a_pod_that_does_not_come_up_says_why(
    start: Callable[..., FakeCluster], status: dict[str, Any], said: str
) -> None:
    fake = start(OLD, 2)
    fake.status = broken(status)
    with pytest.raises(RuntimeError, match=f"^{said}$"), deployment.rolled_out(NEW, CLUSTER):
        pytest.fail("the server is not up")
    assert state_of(fake) == (OLD, 2, False)


def test_a_pod_without_a_node_is_said_with_the_scheduler_s_words(start: Callable[..., FakeCluster]) -> None:
    fake = start(OLD, 1)
    fake.status = broken({"ready": False, "restartCount": 0, "state": {}})
    fake.conditions = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes have a GPU"}]
    said = "has not come further for 600 s; relic-serve-new: 0/3 nodes have a GPU"
    with pytest.raises(RuntimeError, match=said), deployment.rolled_out(NEW, CLUSTER):
        pytest.fail("the server is not up")


def test_a_signal_brings_back_what_was_even_where_its_exception_is_caught(start: Callable[..., FakeCluster]) -> None:
    fake, before = start(OLD, 1), signal.getsignal(signal.SIGTERM)

    def asked() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Stopped as error:
            raise RuntimeError("a client's own error") from error

    with pytest.raises(Stopped, match="the roll-out was stopped"), deployment.rolled_out(NEW, CLUSTER):
        asked()
    assert state_of(fake) == (OLD, 1, False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_roll_out_that_was_killed_is_known_to_the_next_one(start: Callable[..., FakeCluster]) -> None:
    fake = start(NEW, 1)
    fake.annotations[deployment.BEFORE] = json.dumps({"export": OLD, "replicas": 1})
    assert not deployment.serves(NEW, CLUSTER)
    with pytest.raises(RuntimeError, match="flat colour"), deployment.rolled_out(NEW, CLUSTER):
        raise RuntimeError("one flat colour")
    assert state_of(fake) == (OLD, 1, False)


def test_another_run_s_export_is_not_taken_back(start: Callable[..., FakeCluster]) -> None:
    fake, other = start(OLD, 1), OLD.replace("1", "3")

    def overtaken(export: str) -> dict[str, Any]:
        if export == NEW:
            fake.export, fake.status = other, lambda _: READY
        return READY

    fake.status = overtaken
    with pytest.raises(RuntimeError, match=f"was given {other} meanwhile"), deployment.rolled_out(NEW, CLUSTER):
        pytest.fail("the server has another export")
    assert fake.export == other


@pytest.mark.parametrize("theirs", [True, False])
def test_what_was_before_is_forgotten_only_while_the_export_is_ours(
    start: Callable[..., FakeCluster], theirs: bool
) -> None:
    fake, mark = start(OLD, 1), {deployment.BEFORE: json.dumps({"export": NEW, "replicas": 1})}

    def meanwhile() -> None:
        fake.generation, fake.on_patch = fake.generation + 1, lambda: None
        if theirs:
            fake.export, fake.annotations = "s3://another", mark

    refused = pytest.raises(RuntimeError, match="was given s3://another meanwhile") if theirs else nullcontext()
    with refused, deployment.rolled_out(NEW, CLUSTER):
        fake.on_patch = meanwhile
    assert (deployment.BEFORE in fake.annotations) == theirs


def test_an_api_server_that_is_away_for_a_while_is_waited_for(start: Callable[..., FakeCluster]) -> None:
    fake = start(OLD, 1)
    fake.failing = [503, 0, 429]
    with deployment.rolled_out(NEW, CLUSTER):
        pass
    assert deployment.serves(NEW, CLUSTER)
    assert not deployment.serves(OLD, CLUSTER)


def test_a_refusal_of_the_api_server_is_a_sentence(start: Callable[..., FakeCluster]) -> None:
    start(OLD, 1).failing = [403]
    with pytest.raises(UserError, match="the cluster refuses this: the server is starting"):
        deployment.serves(NEW, CLUSTER)
    elsewhere = Cluster(**{**CLUSTER.__dict__, "namespace": "elsewhere"})
    with pytest.raises(UserError, match="there is no Deployment elsewhere/relic-serve; install charts/relic-serve"):
        deployment.serves(NEW, elsewhere)


def test_a_cluster_that_serves_nothing_has_no_server_to_play_with(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., FakeCluster]
) -> None:
    cfg = Deploy(gate=(Threshold(metric="x", at_least=0),))
    fake = start(OLD, 1)
    for serving, place in ((None, ""), (Serving(), "http://relic-serve:8000")):
        found = Cluster(**{**CLUSTER.__dict__, "serving": serving})
        monkeypatch.setattr(promote.cluster, "of_pod", lambda found=found: found)
        with promote.server_of(cfg, NEW, log=None) as opened:  # type: ignore[arg-type]
            assert opened == place
    assert fake.export == NEW


def test_the_deployment_needs_no_torch_and_outside_a_cluster_no_kubernetes() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from relic import steps\n"
        "step = steps.STEPS['deploy']\n"
        "steps.function_at(step.function), steps.function_at(step.holds)\n"
        "assert 'kubernetes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
