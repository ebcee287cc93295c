"""What the cluster tests do with a cluster: kubectl, helm, a namespace with S3 and MLflow, and workflows in it."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import boto3
import yaml

ROOT = Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "relic", "AWS_SECRET_ACCESS_KEY": "relic-relic"}
BUCKET = "relic"
POLL_S = 0.5
TESTED = "relic.dev/test"  # the label of the tests' own namespaces
ENDED = ("Succeeded", "Failed", "Error")


def command(*args: str, given: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(args, input=given, capture_output=True, text=True, cwd=ROOT)


def kubectl(*args: str, given: str = "") -> str:
    done = command("kubectl", *args, given=given)
    assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout


def wait_for(what: str, found: Callable[[], Any], timeout_s: float) -> Any:
    """The first true value that `found` gives."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, f"{what} did not come within {timeout_s:.0f} s"
        time.sleep(POLL_S)
    return value


@contextlib.contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """An address of this machine that leads to a service's port, on any cluster."""
    args = ["kubectl", "-n", namespace, "port-forward", target, f":{port}"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, line
        try:
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()


@dataclass(frozen=True)
class Space:
    """A namespace with relic in it."""

    name: str

    def kubectl(self, *args: str, given: str = "") -> str:
        return kubectl("-n", self.name, *args, given=given)

    def delete(self, *, wait: bool = False) -> None:
        """The namespace, and what the charts have made outside of it."""
        for chart in ("relic-serve", "relic-platform"):
            command("helm", "uninstall", chart, "--namespace", self.name)
        kubectl("delete", "namespace", self.name, f"--wait={str(wait).lower()}")

    def objects(self, kind: str, selector: str = "") -> list[dict]:
        chosen = ["-l", selector] if selector else []
        return json.loads(self.kubectl("get", kind, *chosen, "-o", "json"))["items"]

    def object(self, kind: str, name: str) -> dict:
        return json.loads(self.kubectl("get", kind, name, "-o", "json"))

    def submit(self, run: str, **parameters: str) -> str:
        """The name of the workflow made of a file of workflows/runs/, as `kubectl create -f` makes it."""
        said = yaml.safe_load((ROOT / "workflows" / "runs" / f"{run}.yaml").read_text())
        given = {one["name"]: one["value"] for one in said["spec"].get("arguments", {}).get("parameters", [])}
        said["spec"]["arguments"] = {
            "parameters": [{"name": name, "value": value} for name, value in (given | parameters).items()]
        }
        return json.loads(self.kubectl("create", "-f", "-", "-o", "json", given=yaml.safe_dump(said)))["metadata"][
            "name"
        ]

    def bare(self, template: dict, **changed: Any) -> str:
        """The name of a workflow made of a template's own steps, without the first pod and the last one."""
        said = {**template, "kind": "Workflow", "metadata": {"generateName": f"{template['metadata']['name']}-"}}
        spec = {**said["spec"], "parallelism": changed.pop("parallelism")}
        spec.pop("onExit")
        spec["arguments"] = {"parameters": [{"name": name, "value": value} for name, value in changed.items()]}
        tasks = spec["templates"][0]["dag"]["tasks"]
        spec["templates"][0]["dag"]["tasks"] = [task for task in tasks if task["name"] != "preflight"]
        for task in tasks:
            task["dependencies"] = [name for name in task.get("dependencies", []) if name != "preflight"]
        text = json.dumps({**said, "spec": spec}).replace("{{workflow.outputs.parameters.parent-run}}", "")
        return json.loads(self.kubectl("create", "-f", "-", "-o", "json", given=text))["metadata"]["name"]

    def nodes(self, workflow: str) -> dict[str, dict]:
        """What Argo knows of a workflow's steps, by their display names."""
        status = self.object("workflow", workflow).get("status", {})
        return {node["displayName"]: node for node in status.get("nodes", {}).values()}

    def phase(self, workflow: str) -> str:
        return self.object("workflow", workflow).get("status", {}).get("phase", "")

    def ended(self, workflow: str, timeout_s: float) -> dict:
        """The status of a workflow, once it has ended."""
        wait_for(f"the end of {workflow}", lambda: self.phase(workflow) in ENDED, timeout_s)
        return self.object("workflow", workflow)["status"]

    def said(self, workflow: str) -> str:
        """All that `kubectl get wf` and the steps' messages say of a workflow."""
        status = self.object("workflow", workflow)["status"]
        nodes = status.get("nodes", {}).values()
        return "\n".join([status.get("message", ""), *(node.get("message", "") for node in nodes)])

    def jobs(self, step: str = "") -> list[dict]:
        return self.objects("pytorchjob", f"relic.dev/step={step}" if step else "")


def services(namespace: str) -> list[dict[str, Any]]:
    """Deployments and Services of S3 (moto) and MLflow, whose data live as long as their pods."""
    made: list[dict[str, Any]] = []
    database = "sqlite:////data/mlflow.db"
    commands = {
        "moto": ["moto_server", "-H", "0.0.0.0", "-p", "5000"],
        "mlflow": ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--allowed-hosts", "*",
                   "--backend-store-uri", database, "--artifacts-destination", "/data/artifacts"],
    }  # fmt: skip
    for name, args in commands.items():
        container = {
            "name": name, "image": "localhost/relic/services:test", "command": args,
            "env": [{"name": "HOME", "value": "/tmp"}, {"name": "DO_NOT_TRACK", "value": "true"}],
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "3Gi"}},
            "readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],
        }  # fmt: skip
        pod = {
            "automountServiceAccountToken": False, "containers": [container], "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        }  # fmt: skip
        labels = {"app": name}
        made.append({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        })  # fmt: skip
        made.append({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": 5000}]},
        })  # fmt: skip
    return made


def elsewhere(namespace: str, other: str) -> list[dict[str, Any]]:
    """The same names, for the services of another namespace. (moto takes a host with dots for a bucket's.)"""
    return [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "ExternalName", "externalName": f"{name}.{other}.svc.cluster.local"},
        }
        for name in ("moto", "mlflow")
    ]  # fmt: skip


def namespace(name: str) -> Space:
    """A fresh namespace under restricted Pod Security, with the secrets of the store and of the servers' tokens. One of
    that name from an earlier test is deleted, and nobody else's."""
    found = command("kubectl", "get", "namespace", name, "-o", "json")
    if found.returncode == 0:
        assert TESTED in json.loads(found.stdout)["metadata"]["labels"], f"namespace {name} is there, and not a test's"
        Space(name).delete(wait=True)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")} | {TESTED: "true"}
    secrets = {"relic-store": KEYS, "relic-serve-token": {"token": token_urlsafe(48)}}
    made = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        *(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": one, "namespace": name}, "stringData": values}
            for one, values in secrets.items()
        ),
    ]
    kubectl("create", "-f", "-", given=yaml.safe_dump_all(made))
    return Space(name)


def cluster_file(folder: Path, **changed: Any) -> Path:
    """workflows/clusters/test.yaml, changed; a mapping is merged with what is there."""
    said = yaml.safe_load((ROOT / "workflows/clusters/test.yaml").read_text())
    for name, value in changed.items():
        said[name] = {**said.get(name, {}), **value} if isinstance(value, Mapping) else value
    path = folder / f"{said['namespace']}.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


@dataclass
class Bucket:
    """The store's bucket, from outside of the cluster."""

    client: Any

    def names(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)

    def copy(self, store: str, other: str, steps: tuple[str, ...]) -> None:
        """The artifacts of some steps, to another prefix."""
        for step in steps:
            for name in self.names(f"{store}/{step}/"):
                self.write(f"{other}/{name.removeprefix(f'{store}/')}", self.read(name))


@contextlib.contextmanager
def bucket(space: Space) -> Iterator[Bucket]:
    with forwarded(space.name, "service/moto", 5000) as url:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        yield Bucket(client)


def available() -> bool:
    """Whether there is a cluster to test on."""
    return bool(os.environ.get("KUBECONFIG")) and command("kubectl", "get", "--raw", "/readyz").returncode == 0
