"""A cluster's custom metrics, by tests/cluster/metrics_adapter.py in a pod, for an autoscaler to read."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import on_cluster
import yaml
from on_cluster import ROOT, Space, command, kubectl, wait_for

NAMESPACE = "relic-metrics"
NAME = "v1beta2.custom.metrics.k8s.io"  # of the APIService
FOLDER = "/etc/adapter"  # the script and its certificate, in the pod
AVAILABLE_S = 60.0


@contextlib.contextmanager
def registered(watched: Space, folder: Path) -> Iterator[None]:
    """Inside, the cluster has the custom metrics of a namespace's pods. `folder` is for the certificate."""
    assert command("kubectl", "get", "apiservice", NAME).returncode, "the cluster has custom metrics of somebody else"
    space = on_cluster.namespace(NAMESPACE)
    kubectl("create", "-f", "-", given=yaml.safe_dump_all(objects(watched.name, certificate(folder))))
    try:
        wait_for("the custom metrics", lambda: is_available(), AVAILABLE_S)
        yield
    finally:
        kubectl("delete", "apiservice", NAME)  # left behind, no namespace of the cluster could be deleted
        watched.kubectl("delete", "role,rolebinding", "adapter")
        space.delete()


def is_available() -> bool:
    given = '{.status.conditions[?(@.type=="Available")].status}'
    return kubectl("get", "apiservice", NAME, "-o", f"jsonpath={given}") == "True"


def certificate(folder: Path) -> dict[str, str]:
    """A self-made one for a day. The API server is told not to verify it."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = f"adapter.{NAMESPACE}.svc"
    named = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "1"]
    made += [*named, "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    return {name: (folder / name).read_text() for name in ("tls.crt", "tls.key")}


def objects(watched: str, files: dict[str, str]) -> list[dict[str, Any]]:
    """The adapter's pod under an account that may list the watched namespace's pods, and its place in the API."""
    script = (ROOT / "tests" / "cluster" / "metrics_adapter.py").read_text()
    own: dict[str, Any] = {"name": "adapter", "namespace": NAMESPACE}
    there: dict[str, Any] = {"name": "adapter", "namespace": watched}
    rights = "rbac.authorization.k8s.io"
    container = {
        "name": "adapter", "image": "localhost/relic/control:test",
        "command": ["python", f"{FOLDER}/metrics_adapter.py", FOLDER],
        "readinessProbe": {"tcpSocket": {"port": 6443}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "files", "mountPath": FOLDER}],
    }  # fmt: skip
    pod = {
        "serviceAccountName": "adapter", "enableServiceLinks": False, "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "files", "secret": {"secretName": "adapter"}}],
    }  # fmt: skip
    labels = {"app": "adapter"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own},
        {"apiVersion": "v1", "kind": "Secret", "metadata": own, "stringData": {"metrics_adapter.py": script, **files}},
        {
            "apiVersion": f"{rights}/v1", "kind": "Role", "metadata": there,
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
        },
        {
            "apiVersion": f"{rights}/v1", "kind": "RoleBinding", "metadata": there,
            "roleRef": {"apiGroup": rights, "kind": "Role", "name": "adapter"},
            "subjects": [{"kind": "ServiceAccount", **own}],
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": own,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": own,
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 6443}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
            "spec": {
                "group": "custom.metrics.k8s.io", "version": "v1beta2", "service": own,
                "insecureSkipTLSVerify": True, "groupPriorityMinimum": 100, "versionPriority": 100,
            },
        },
    ]  # fmt: skip
