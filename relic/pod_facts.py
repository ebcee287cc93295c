"""What the status of a pod says, which Kubernetes spreads over conditions and containers. Pods are as JSON has them."""

import re

WRONG, IMAGE, CONTAINER, NODE, COMING = "wrong", "image", "container", "node", "coming"  # what a pod waits for
MISSING = (WRONG, IMAGE, CONTAINER)  # of these, what a person may have to mend
KINDS = {  # by the kubelet's reasons; any other comes by itself
    **dict.fromkeys(("InvalidImageName", "ErrImageNeverPull"), WRONG),  # an image that no registry can give
    **dict.fromkeys(("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"), IMAGE),
    # such as for a secret or a ConfigMap that is not there
    **dict.fromkeys(("CreateContainerConfigError", "CreateContainerError", "RunContainerError"), CONTAINER),
}
OURS = re.compile(r"^(?:.*: )?relic: (.+)$")  # Argo writes before it how the container ended


def container(pod: dict, name: str = "") -> dict:
    """The status of a pod's container, of its only one where there is no name."""
    known = pod.get("status", {}).get("containerStatuses") or []
    found = [status for status in known if name in ("", status["name"])]
    return found[0] if found else {"restartCount": 0, "state": {}}


def waits(pod: dict, name: str = "") -> tuple[str, str]:
    """What a pod's container waits for, and the words of the kubelet or the scheduler; empty when it has started."""
    state = container(pod, name)["state"]
    if "running" in state or "terminated" in state:
        return "", ""
    if waiting := state.get("waiting"):
        reason, message = waiting["reason"], waiting.get("message", "")
        return KINDS.get(reason, COMING), f"{reason}: {message}" if message else reason
    for item in pod.get("status", {}).get("conditions") or []:
        if item["type"] == "PodScheduled" and item["status"] == "False":
            return NODE, item.get("message") or "no node takes the pod"
    return (COMING, "it starts") if pod.get("spec", {}).get("nodeName") else (NODE, "no node has taken the pod yet")


def last_words(message: str) -> str:
    """The sentence that a command of relic ends with, out of the last lines of its log; else the last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [found[1] for line in lines if (found := OURS.match(line))]
    return (ours or lines or [""])[-1]
