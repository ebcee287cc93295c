"""Why a pod does not run, and what it said last."""

from typing import Any

import pytest

from relic import pod_facts


def pod(state: dict[str, Any], *, name: str = "main", **more: Any) -> dict[str, Any]:
    sidecar = {"name": "wait", "restartCount": 7, "state": {"running": {}}}
    statuses = [sidecar, {"name": name, "restartCount": 0, "state": state}]
    return {"status": {"containerStatuses": statuses, **more}}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("InvalidImageName", pod_facts.WRONG),
        ("ImagePullBackOff", pod_facts.IMAGE),
        ("RegistryUnavailable", pod_facts.IMAGE),
        ("RunContainerError", pod_facts.CONTAINER),
        ("ContainerCreating", pod_facts.COMING),
        ("CrashLoopBackOff", pod_facts.COMING),
    ],
)
def test_what_a_container_waits_for_is_known_by_the_kubelets_reason(reason: str, kind: str) -> None:
    assert pod_facts.waits(pod({"waiting": {"reason": reason, "message": "why"}}), "main") == (kind, f"{reason}: why")
    assert pod_facts.waits(pod({"waiting": {"reason": reason}}), "main") == (kind, reason)


def test_a_container_that_has_started_waits_for_nothing() -> None:
    assert pod_facts.waits(pod({"running": {}}), "main") == pod_facts.waits(pod({"terminated": {}}), "main") == ("", "")


def test_a_pod_without_a_node_has_the_schedulers_words() -> None:
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    assert pod_facts.waits({"status": {"conditions": [said]}}) == (pod_facts.NODE, "0/3 nodes")
    assert pod_facts.waits({})[0] == pod_facts.NODE
    assert pod_facts.waits({"spec": {"nodeName": "a"}})[0] == pod_facts.COMING


def test_the_last_words_are_relics_sentence_or_the_last_line() -> None:
    log = "step 1\nrelic: the batch is 3\n"
    assert pod_facts.last_words(f"{log}Error: exit status 2\n") == "the batch is 3"
    assert pod_facts.last_words("main: Error (exit code 2): relic: the batch is 3") == "the batch is 3"
    assert pod_facts.last_words("Traceback\nKeyError: 1\n\n") == "KeyError: 1"
    assert pod_facts.last_words("") == ""
