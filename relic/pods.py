"""What every pod of a run has in common, as Kubernetes writes it: its environment, volumes and security.

Steps that Argo starts and pods of PyTorchJobs are the same to the step inside: a scratch disk for the copies of
artifacts, the cluster's file, credentials from a secret or from the account's own identity. All of it passes
restricted Pod Security: no root, no capabilities, nothing written but the volumes."""

from typing import Any

from relic import cluster as clusters
from relic.cluster import Cluster, Pool

TEMPLATE = "world-model"  # the WorkflowTemplate, which has the name of the graph in workflows/world_model.py
STEP, WORKFLOW = "relic.dev/step", "relic.dev/workflow"  # labels: the step, and the workflow's uid on its PyTorchJobs
ARGOS = "workflows.argoproj.io/workflow"  # Argo's label on its pods, with the workflow's name
CONFIG_MAP = "relic-cluster"  # with the cluster's file as cluster.yaml, beside the rendered workflow
USER = 1000  # of the images
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
MOUNTS: list[dict[str, Any]] = [
    {"name": "scratch", "mountPath": "/scratch"},
    {"name": "tmp", "mountPath": "/tmp"},
    {"name": "shared-memory", "mountPath": "/dev/shm"},
    {"name": "cluster", "mountPath": "/etc/relic", "readOnly": True},
]


def volumes(pool: Pool) -> list[dict[str, Any]]:
    return [
        {"name": "scratch", "emptyDir": {"sizeLimit": pool.scratch}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shared_memory}},
        {"name": "cluster", "configMap": {"name": CONFIG_MAP}},
    ]


def environment(cluster: Cluster, pool: Pool, **more: str) -> list[dict[str, str]]:
    """Variables of a container, the pool's before the cluster's, `more` before both."""
    values = {
        "HOME": "/scratch",
        "RELIC_CACHE": "/scratch/cache",
        clusters.FILE: "/etc/relic/cluster.yaml",
        "RELIC_LAST_WORDS": "/dev/termination-log",  # of relic/endings.py: Kubernetes shows it instead of the log's end
        **({"MLFLOW_TRACKING_URI": cluster.mlflow} if cluster.mlflow else {}),
        **cluster.environment,
        **pool.environment,
        **more,
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def secrets(cluster: Cluster, *, optional: bool = False) -> list[dict[str, Any]]:
    """The container's `envFrom`. With `optional` it starts without them too, to say which is missing."""
    may = {"optional": True} if optional else {}
    return [{"secretRef": {"name": name, **may}} for name in (cluster.store_secret, cluster.mlflow_secret) if name]


def resources(cluster: Cluster, pool: Pool) -> dict[str, Any]:
    """No limit on cores: an idle node's are for whoever is there."""
    devices = {**({cluster.gpu: str(pool.gpus)} if pool.gpus else {}), **pool.resources}
    asked = {"cpu": pool.cpu, "memory": pool.memory, "ephemeral-storage": pool.scratch, **devices}
    return {"requests": asked, "limits": {"memory": pool.memory, **devices}}


def tolerations(pool: Pool) -> list[dict[str, str]]:
    found = [{"key": t.key, "operator": t.operator, "value": t.value, "effect": t.effect} for t in pool.tolerations]
    return [{name: value for name, value in one.items() if value} for one in found]
