"""A step as a PyTorchJob of the Training Operator 1.9, as the API server takes it.

All of its pods are workers, and torchrun in them is elastic: the group meets at the first worker, whichever pod comes
back. With a master there would be an init container without a security context, which restricted Pod Security refuses.
"""

import os
from collections.abc import Sequence
from typing import Any

from relic import artifacts, pods, tracking
from relic.call import Call
from relic.cluster import Cluster, Pool
from relic.launch.config import Launch

GROUP, VERSION = "kubeflow.org", "v1"
CONTAINER = "pytorch"  # by this name the operator finds it
PORT = 29500  # where the workers meet, at the first one
JOB_LABEL = "training.kubeflow.org/job-name"  # the operator's, on each pod
URI = "relic.dev/uri"  # the annotation with the artifact that is made
QUEUE = "kueue.x-k8s.io/queue-name"
TOPOLOGY = "kueue.x-k8s.io/podset-preferred-topology"
MEET_S = 1800  # for all workers to come, an image pulled and a node added meanwhile
READ_S = 300  # for the first worker to be there when another one already is
LEAVE_S = 30  # for a step, or the launch in a pod, to end; a training has its grace for saving before that
LOGS_S = 86400  # the longest that an ended job is kept for its logs: until then its pods' scratch fills nodes' disks


def name_of(call: Call) -> str:
    """The same for the same artifact, so that two who want it meet in one job."""
    return f"{call.step.name}-{artifacts.digest(call.uri)[:10]}"


def worker(name: str, index: int) -> str:
    """A pod's name, and by a headless Service of that name its address."""
    return f"{name}-worker-{index}"


def owner() -> tuple[str, str]:
    """Name and uid of the Workflow that this launcher is a pod of; empty outside."""
    return os.environ.get(tracking.WORKFLOW, ""), os.environ.get(tracking.WORKFLOW_UID, "")


def command(config: Launch, call: Call, args: Sequence[str]) -> list[str]:
    """What a pod runs for `relic STEP args…`."""
    step = ["relic", *without_artifact(args)]
    if not call.step.trains:
        return step
    if not any(arg.partition("=")[0] == "--config.checkpoint.to" for arg in args):
        step += ["--config.checkpoint.to", checkpoints(call)]
    name = name_of(call)
    meet = ["--endpoint", f"{worker(name, 0)}:{PORT}"] if config.most_nodes > 1 else []
    return [
        "relic", "launch", "--nodes", config.nodes, "--processes", config.processes, *meet, "--job", name,
        "--max-restarts", str(config.max_restarts), "--grace-s", str(config.grace_s), "--", *step,
    ]  # fmt: skip


def checkpoints(call: Call) -> str:
    """Where a job's trainings save their state, unless the command says another place."""
    return f"{call.store.rstrip('/')}/.checkpoints"


def without_artifact(args: Sequence[str]) -> list[str]:
    """The launcher itself writes the artifact's URI; its file is in no other pod."""
    kept, at = [], 0
    while at < len(args):
        if args[at] == "--artifact":
            at += 1
        elif not args[at].startswith("--artifact="):
            kept.append(args[at])
        at += 1
    return kept


def manifest(config: Launch, cluster: Cluster, call: Call, args: Sequence[str]) -> dict[str, Any]:
    """The PyTorchJob of a call, as JSON has it."""
    from kubeflow.training import models
    from kubernetes import client

    name, pool, (workflow, uid) = name_of(call), cluster.pool(config.pool), owner()
    together = call.step.trains
    labels = {pods.STEP: call.step.name, **({pods.WORKFLOW: uid} if uid else {})}
    owners = [client.V1OwnerReference(api_version="argoproj.io/v1alpha1", kind="Workflow", name=workflow, uid=uid)]
    job = models.KubeflowOrgV1PyTorchJob(
        api_version=f"{GROUP}/{VERSION}",
        kind="PyTorchJob",
        metadata=client.V1ObjectMeta(
            name=name,
            namespace=cluster.namespace,
            labels={**labels, **({QUEUE: cluster.queue} if cluster.queue else {})},
            annotations={URI: call.uri},
            owner_references=owners if uid else None,
        ),
        spec=models.KubeflowOrgV1PyTorchJobSpec(
            nproc_per_node=config.processes if together else "1",
            elastic_policy=models.KubeflowOrgV1ElasticPolicy(
                rdzv_backend="c10d",
                min_replicas=config.least_nodes,
                max_replicas=config.most_nodes,
                max_restarts=config.max_restarts,
                rdzv_conf=[
                    models.KubeflowOrgV1RDZVConf(key=key, value=str(value))
                    for key, value in (("join_timeout", MEET_S), ("read_timeout", READ_S))
                ],
            )
            if together
            else None,
            run_policy=models.KubeflowOrgV1RunPolicy(
                # Restarts are counted over all pods, and a first worker that is lost costs each of them one.
                backoff_limit=config.max_restarts * (config.most_nodes if together else 1),
                # An elastic job has succeeded when its first pod has, and the operator would then end the others, of
                # which one may still upload the artifact.
                clean_pod_policy="None",
                active_deadline_seconds=cluster.step_s,
                ttl_seconds_after_finished=min(cluster.keep_s, LOGS_S),
                suspend=True if cluster.queue else None,  # until Kueue admits it
            ),
            pytorch_replica_specs={
                "Worker": models.KubeflowOrgV1ReplicaSpec(
                    replicas=config.most_nodes if together else 1,
                    restart_policy="OnFailure",
                    template={
                        "metadata": {"labels": labels, **topology_hint(cluster, pool)},
                        "spec": pod(
                            cluster,
                            pool,
                            name,
                            command(config, call, args),
                            grace_s=LEAVE_S + (config.grace_s if together else 0),
                        ),
                    },
                )
            },
        ),
    )
    return client.ApiClient(client.Configuration()).sanitize_for_serialization(job)


def topology_hint(cluster: Cluster, pool: Pool) -> dict[str, Any]:
    return {"annotations": {TOPOLOGY: pool.topology}} if pool.topology and cluster.queue else {}


def pod(cluster: Cluster, pool: Pool, name: str, command: list[str], *, grace_s: int) -> dict[str, Any]:
    """The specification of each worker's pod."""
    passed_on = (tracking.PARENT, tracking.WORKFLOW, tracking.WORKFLOW_UID)
    parent = {variable: os.environ[variable] for variable in passed_on if os.environ.get(variable)}
    found = {
        "serviceAccountName": cluster.accounts.step,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # as process 1 a launch would not hear SIGTERM before it has a handler for it
        "securityContext": pods.POD_SECURITY,
        "terminationGracePeriodSeconds": grace_s,
        "runtimeClassName": pool.runtime_class,
        "priorityClassName": pool.priority_class,
        "imagePullSecrets": [{"name": secret} for secret in cluster.images.pull_secrets],
        "nodeSelector": dict(pool.node_selector),
        "tolerations": pods.tolerations(pool),
        "volumes": pods.volumes(pool),
        "containers": [
            {
                "name": CONTAINER,
                "image": cluster.images.train,
                "imagePullPolicy": cluster.images.pull_policy,
                "command": command,
                "ports": [{"name": "pytorchjob-port", "containerPort": PORT}],  # by this name the operator finds it
                "env": pods.environment(cluster, pool, **parent),
                "envFrom": pods.secrets(cluster),
                "resources": pods.resources(cluster, pool),
                "securityContext": pods.CONTAINER_SECURITY,
                "volumeMounts": pods.MOUNTS,
                "terminationMessagePolicy": "FallbackToLogsOnError",  # so that its last words outlive it
            }
        ],
    }
    if pool.topology and not cluster.queue:
        near = {"topologyKey": pool.topology, "labelSelector": {"matchLabels": {JOB_LABEL: name}}}
        preferred = [{"weight": 100, "podAffinityTerm": near}]
        found["affinity"] = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return {field: value for field, value in found.items() if value not in ("", [], {})}
