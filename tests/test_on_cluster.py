"""relic on a real cluster, from `kubectl create -f` to a session through the Service. `make test-cluster`.

The first run is disturbed while it runs: the teacher's launcher and one of the distillation's workers are killed."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import on_cluster
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from on_cluster import BUCKET, Bucket, Space, command, kubectl, wait_for
from safetensors.torch import load, save

from relic import cluster as clusters
from relic import steps, tracking
from relic.launch import visit
from relic.pipeline import argo
from relic.pipeline.component import Component, Placeholder
from relic.pipeline.graph import FanOut, Graph, Input, Parameter
from relic.pipeline.graph import Step as GraphStep

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("RELIC_TEST_CLUSTER"), reason="needs a cluster: make test-cluster"),
]
STEPS: tuple[str, ...] = (
    "curate",
    "join-clips",
    "codec",
    "pose-net",
    "shard",
    "join-samples",
    "teacher",
    "trajectories",
)
STEPS += ("student-init", "distill", "evaluate", "export", "deploy")
TRAININGS = ("codec", "pose-net", "teacher", "student-init", "distill")
PARTED = ("curate", "shard", "trajectories")
RUN_S = 1500.0
MISTAKE_S = 120.0


def installed(folder: Path, name: str, *chart: str, **changed: Any) -> Space:
    """A namespace in which the platform's chart is installed for a cluster file, beside the store and MLflow of
    `relic`."""
    space = on_cluster.namespace(name)
    kubectl("create", "-f", "-", given=yaml.safe_dump_all(on_cluster.elsewhere(name, "relic")))
    cluster = on_cluster.cluster_file(folder, namespace=name, serving=None, **changed)
    rendered = folder / f"{name}.rendered.yaml"
    relic("pipeline", "render", "--cluster", str(cluster), "--out", str(rendered))
    platform = ["helm", "install", "relic-platform", "charts/relic-platform", "--namespace", name]
    secrets = f"secrets={{{changed.get('store_secret', 'relic-store')}}}"
    done = command(*platform, "--set-file", f"workflows={rendered}", "--set", secrets, *chart)
    assert done.returncode == 0, done.stderr
    time.sleep(3)  # until Argo's controller has seen the template
    return space


def relic(*args: str) -> str:
    done = command(sys.executable, "-m", "relic", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def space() -> Iterator[Space]:
    """The namespace `relic`, exactly as the committed files say."""
    space = on_cluster.namespace("relic")
    kubectl("create", "-f", "-", given=yaml.safe_dump_all(on_cluster.services("relic")))
    space.kubectl("wait", "--for=condition=Available", "deployment/moto", "deployment/mlflow", "--timeout=120s")
    for chart, given in (
        ("relic-platform", ("--set-file", "workflows=workflows/rendered/test.yaml")),
        ("relic-serve", ()),
    ):
        values = f"charts/{chart}/clusters/test.yaml"
        done = command("helm", "install", chart, f"charts/{chart}", "--namespace", "relic", "--values", values, *given)
        assert done.returncode == 0, done.stderr
    with on_cluster.bucket(space) as bucket:
        bucket.client.create_bucket(Bucket=on_cluster.BUCKET)
    yield space
    if not os.environ.get("RELIC_TEST_KEEP"):
        space.delete()


def pod_of(space: Space, run: str, step: str) -> str:
    """The name of a step's newest pod that is running; empty where there is none."""
    found = space.objects("pod", f"workflows.argoproj.io/workflow={run}")
    running = [pod for pod in found if pod["status"]["phase"] == "Running" and node_of(pod).startswith(f"{run}.{step}")]
    return max((pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]) for pod in running)[1] if running else ""


def node_of(pod: dict) -> str:
    """A pod's place in its workflow: RUN.STEP(TRY)."""
    return pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]


def job_of(space: Space, step: str, condition: str) -> dict | None:
    """A step's PyTorchJob that is in a condition now."""
    for job in space.jobs(step):
        conditions = job.get("status", {}).get("conditions", [])
        if any(one["type"] == condition and one["status"] == "True" for one in conditions):
            return job
    return None


@dataclass(frozen=True)
class Disturbed:
    """The first run, and what was done to it."""

    name: str
    status: dict
    worker: tuple[str, str]  # uids of the teacher's pod that was killed, and of the one that came for it
    teacher: str  # the log of the teacher's launcher
    job: tuple[list[str], list[str]]  # uids of the student's jobs before its launcher was killed, and after


@pytest.fixture(scope="module")
def first(space: Space) -> Disturbed:
    """`kubectl create -f workflows/runs/quick.yaml`; on its way a worker and a launcher are killed."""
    run = space.kubectl("create", "-f", "workflows/runs/quick.yaml", "-o", "name").strip().rpartition("/")[2]
    # 1. one of the teacher's two pods, once there is something to resume from
    wait_for("the teacher's job", lambda: job_of(space, "teacher", "Running"), RUN_S)
    launcher = pod_of(space, run, "teacher")
    with on_cluster.bucket(space) as bucket:
        wait_for("a checkpoint", lambda: whole_checkpoint(bucket, "teacher"), 120)
    worker = f"{space.jobs('teacher')[0]['metadata']['name']}-worker-1"
    uid = space.object("pod", worker)["metadata"]["uid"]
    space.kubectl("delete", "pod", worker, "--grace-period=0", "--force")
    wait_for("another worker", lambda: uid_of(space, worker) not in ("", uid), 120)
    another = uid_of(space, worker)
    wait_for("the teacher", lambda: space.nodes(run)["teacher"]["phase"] == "Succeeded", RUN_S)
    teacher = log_of(space, launcher)
    # 2. the pod that follows the student's job
    wait_for("the student's job", lambda: job_of(space, "student-init", "Running"), RUN_S)
    before = [job["metadata"]["uid"] for job in space.jobs("student-init")]
    killed = pod_of(space, run, "student-init")
    old = uid_of(space, killed)
    space.kubectl("delete", "pod", killed, "--wait=false")
    # Argo makes the same pod again where it had not yet seen it run, else it is the step's next try.
    again = lambda: pod_of(space, run, "student-init(1)") or uid_of(space, killed) not in ("", old)  # noqa: E731
    wait_for("the launcher's second pod", again, 120)
    wait_for("the student", lambda: space.nodes(run)["student-init"]["phase"] == "Succeeded", RUN_S)
    after = [job["metadata"]["uid"] for job in space.jobs("student-init")]
    return Disturbed(run, space.ended(run, RUN_S), (uid, another), teacher, (before, after))


def whole_checkpoint(bucket: Bucket, step: str) -> bool:
    return any(name.endswith("/manifest.json") for name in bucket.names(f"store/.checkpoints/{step}/"))


def uid_of(space: Space, pod: str) -> str:
    return next((one["metadata"]["uid"] for one in space.objects("pod") if one["metadata"]["name"] == pod), "")


def log_of(space: Space, pod: str) -> str:
    return space.kubectl("logs", pod, "-c", "main")


# 1. From kubectl to a session


def test_a_run_that_kubectl_submits_succeeds(space: Space, first: Disturbed) -> None:
    assert first.status["phase"] == "Succeeded", space.said(first.name)
    nodes = space.nodes(first.name)
    assert {nodes[step]["phase"] for step in STEPS if step not in PARTED} == {"Succeeded"}


def test_trainings_are_pytorchjobs_of_two_pods(space: Space, first: Disturbed) -> None:
    jobs = {job["metadata"]["labels"]["relic.dev/step"]: job for job in space.jobs()}
    assert set(jobs) == set(TRAININGS)
    for job in jobs.values():
        assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
        assert job["status"]["conditions"][-1]["type"] == "Succeeded"
        assert job["metadata"]["ownerReferences"][0]["name"] == first.name


def test_every_artifact_is_in_the_store_manifest_last(space: Space, first: Disturbed) -> None:
    with on_cluster.bucket(space) as bucket:
        manifests = [name for name in bucket.names("store/") if name.endswith("/manifest.json")]
        steps = [name.split("/")[1] for name in manifests if "/.checkpoints/" not in name]
        assert sorted(set(steps)) == sorted({*STEPS, "join"} - {"join-clips", "join-samples"})
        for name in manifests:
            for file, fact in json.loads(bucket.read(name))["files"].items():
                head = bucket.client.head_object(
                    Bucket=BUCKET, Key=f"{name.rpartition('/')[0]}/{fact['sha256']}/{file}"
                )
                assert head["ContentLength"] == fact["bytes"]


def test_mlflow_has_a_run_of_the_workflow_and_the_steps_under_it(space: Space, first: Disturbed) -> None:
    uid = space.object("workflow", first.name)["metadata"]["uid"]
    with on_cluster.forwarded("relic", "service/mlflow", 5000) as url:
        runs = MlflowClient(tracking_uri=url)
        (experiment,) = [one.experiment_id for one in runs.search_experiments() if one.name == tracking.EXPERIMENT]
        (parent,) = runs.search_runs([experiment], f"tags.`relic.workflow_uid` = '{uid}'")
        nested = runs.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.info.status == "FINISHED"
    assert {run.info.run_name for run in nested} >= {*TRAININGS, "curate-0", "curate-1", "evaluate"}
    assert all(run.info.status == "FINISHED" for run in nested), [
        (run.info.run_name, run.info.status) for run in nested
    ]


def test_the_served_model_answers_a_session_through_its_service(space: Space, first: Disturbed) -> None:
    with on_cluster.forwarded("relic", "service/relic-serve", 8000) as url:
        said = visit.play(url, pictures=16, picture_s=60)
    assert said["pictures"] >= 16
    assert served(space) == deployed(space)["export"]


def served(space: Space) -> str:
    """The export that the Deployment's pods show."""
    (container,) = space.object("deployment", "relic-serve")["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", "") for one in container["env"]}["RELIC_EXPORT"]


def deployed(space: Space, store: str = "store") -> dict:
    """What the deploy step of a store says."""
    with on_cluster.bucket(space) as bucket:
        (name,) = [name for name in bucket.names(f"{store}/deploy/") if name.endswith("/deploy.json")]
        return json.loads(bucket.read(name))


# 2. What is killed, stopped, or there already


def test_a_launcher_that_is_deleted_comes_back_to_its_job(first: Disturbed) -> None:
    before, after = first.job
    assert len(before) == 1
    assert after == before


def test_a_worker_that_is_killed_is_started_again_and_resumes(first: Disturbed) -> None:
    assert first.worker[0] != first.worker[1]
    assert "going on after step" in first.teacher


def test_a_second_run_finds_every_step_finished(space: Space, first: Disturbed) -> None:
    before = {job["metadata"]["uid"] for job in space.jobs()}
    run = space.submit("quick")
    status = space.ended(run, RUN_S)
    assert status["phase"] == "Succeeded", space.said(run)
    assert {job["metadata"]["uid"] for job in space.jobs()} == before


def test_a_damaged_student_is_refused_and_the_old_model_stays(space: Space, first: Disturbed) -> None:
    before = served(space)
    with on_cluster.bucket(space) as bucket:
        bucket.copy("store", "damaged", tuple({*STEPS, "join"} - {"distill", "evaluate", "export", "deploy"}))
        shuffle = lambda name, tensor: shuffled(tensor) if "blocks." in name else tensor  # noqa: E731
        change(bucket, "damaged", "distill", "model.safetensors", shuffle)
    run = space.submit("quick", store="s3://relic/damaged")
    assert space.ended(run, RUN_S)["phase"] == "Failed"
    assert "models.distilled.psnr_gain_over_still_db is -" in space.said(run)
    assert served(space) == before


def test_an_export_whose_session_fails_is_taken_back_and_the_alias_stays(space: Space, first: Disturbed) -> None:
    before = served(space)
    with on_cluster.bucket(space) as bucket:
        bucket.copy("store", "flat", tuple({*STEPS, "join"} - {"export", "deploy"}))
        blacken = lambda name, tensor: torch.zeros_like(tensor) if "decoder." in name else tensor  # noqa: E731
        change(bucket, "flat", "export", "codec/model.safetensors", blacken)
    run = space.submit("quick", store="s3://relic/flat")
    assert space.ended(run, RUN_S)["phase"] == "Failed"
    assert "the last picture is one flat colour" in space.said(run)
    assert served(space) == before
    with on_cluster.forwarded("relic", "service/mlflow", 5000) as url:
        registry = MlflowClient(tracking_uri=url)
        sources = [str(version.source) for version in registry.search_model_versions("name='relic'")]
        assert any(source.startswith("s3://relic/flat/export/") for source in sources)  # it came as far as to a session
        assert registry.get_model_version_by_alias("relic", "production").source == before
    with on_cluster.forwarded("relic", "service/relic-serve", 8000) as url:
        assert visit.play(url, pictures=16, picture_s=60)["pictures"] >= 16


def change(
    bucket: Bucket, other: str, step: str, changed: str, how: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """A step's artifact with one file's tensors changed, as a finished artifact of another store."""
    (name,) = [name for name in bucket.names(f"store/{step}/") if name.endswith("/manifest.json")]
    manifest, folder = json.loads(bucket.read(name)), name.rpartition("/")[0]
    for file, fact in manifest["files"].items():
        data = bucket.read(f"{folder}/{fact['sha256']}/{file}")
        if file == changed:
            data = save({name: how(name, tensor) for name, tensor in load(data).items()})
        fact |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        bucket.write(f"{other}/{folder.partition('/')[2]}/{fact['sha256']}/{file}", data)
    bucket.write(f"{other}/{name.partition('/')[2]}", json.dumps(manifest).encode())


def shuffled(tensor: torch.Tensor) -> torch.Tensor:
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))
    return tensor.flatten()[order].view_as(tensor)


@pytest.mark.parametrize("how", ["stop", "delete"])
def test_a_stopped_workflow_leaves_no_job(space: Space, first: Disturbed, how: str) -> None:
    with on_cluster.bucket(space) as bucket:
        bucket.copy("store", how, ("curate", "join"))
    run = space.submit("quick", store=f"s3://relic/{how}")
    mine = lambda: [job for job in space.jobs() if unfinished(job) and owner(job) == run]  # noqa: E731
    wait_for("a job", mine, 300)
    if how == "stop":
        space.kubectl("patch", "workflow", run, "--type=merge", "-p", '{"spec": {"shutdown": "Stop"}}')
    else:
        space.kubectl("delete", "workflow", run)
    wait_for("the end of its jobs", lambda: not mine(), 120)


def owner(job: dict) -> str:
    return job["metadata"]["ownerReferences"][0]["name"]


def unfinished(job: dict) -> bool:
    return not {"Succeeded", "Failed"} & {one["type"] for one in job.get("status", {}).get("conditions", [])}


# 3. A person's mistakes

QUEUE = ("--set", "kueue.enabled=true", "--set", "kueue.queue=relic", "--set", "kueue.clusterQueue=nobodys")


@pytest.mark.parametrize(
    ("number", "changed", "chart", "parameters", "said"),
    [
        (0, {}, (), {"parts": "none"}, "parts is none; it must be 1 to 10000"),
        (1, {"store_secret": "forgotten"}, (), {}, "secret forgotten does not exist"),
        (2, {"queue": "nowhere"}, QUEUE, {}, "LocalQueue nowhere does not exist"),
        (3, {"images": {"train": "localhost/relic/trian:test"}}, (), {}, "localhost/relic/trian:test"),
        (4, {"accounts": {"launcher": "relic-step"}}, (), {}, "the account relic-step may not"),
    ],
)
def test_a_mistake_ends_within_two_minutes_by_one_sentence(
    space: Space, tmp_path: Path, number: int, changed: dict, chart: tuple, parameters: dict, said: str
) -> None:
    other = installed(tmp_path, f"relic-wrong-{number}", *chart, **changed)
    run = other.submit("quick", **parameters)
    assert other.ended(run, MISTAKE_S)["phase"] in ("Failed", "Error")
    assert said in other.said(run)
    tries = [name for name in other.nodes(run) if name.startswith("preflight(")]
    assert tries == ["preflight(0)"]
    other.delete()


# 4. Queues and nodes


def test_of_two_runs_and_room_for_one_the_second_is_queued_and_then_runs(
    space: Space, first: Disturbed, tmp_path: Path
) -> None:
    quotas = {"cpu": "200m", "memory": "8Gi", "ephemeral-storage": "2Gi"}  # of one training's two pods
    values = tmp_path / "queue.yaml"
    kueue = {"enabled": True, "queue": "relic", "clusterQueue": "relic-queue"}
    values.write_text(yaml.safe_dump({"kueue": {**kueue, "flavors": [{"name": "relic-queue", "quotas": quotas}]}}))
    other = installed(tmp_path, "relic-queue", "--values", str(values), queue="relic")
    with on_cluster.bucket(space) as bucket:
        for store in ("first", "second"):
            bucket.copy("store", store, ("curate", "join", "codec", "shard"))
    runs = [other.submit("quick", store=f"s3://relic/{store}") for store in ("first", "second")]
    jobs = lambda: {suspended(job): job["metadata"]["name"] for job in other.jobs("pose-net")}  # noqa: E731
    waits = wait_for("one that runs and one that waits", lambda: jobs() if len(jobs()) == 2 else {}, 300)[True]
    (run,) = [run for run in runs if waits in queued(other, run)]
    assert "Queued" in queued(other, run)
    wait_for("its turn", lambda: not suspended(other.object("pytorchjob", waits)), 300)
    wait_for("its end", lambda: other.nodes(run)["pose-net"]["phase"] == "Succeeded", 300)
    other.delete()


def suspended(job: dict) -> bool:
    return bool(job["spec"]["runPolicy"].get("suspend"))


def queued(space: Space, run: str) -> str:
    """What the launcher of a run's pose-net says."""
    return log_of(space, wait_for("a launcher", lambda: pod_of(space, run, "pose-net"), 60))


GPUS: dict[str, Any] = {"node_selector": {"relic.dev/pool": "gpus"}}
TOLERATED = [{"key": "relic.dev/gpus"}]


@pytest.fixture
def gpu_node() -> Iterator[None]:
    """The cluster's only node as one of GPUs, which takes only pods that tolerate it."""
    (node,) = [node["metadata"]["name"] for node in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]]
    given = {kind: {"nvidia.com/gpu": "4"} for kind in ("capacity", "allocatable")}  # pretended
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps({"status": given}))
    kubectl("label", "node", node, "relic.dev/pool=gpus")
    kubectl("taint", "node", node, "relic.dev/gpus=:NoSchedule")
    yield
    kubectl("taint", "node", node, "relic.dev/gpus-")
    kubectl("label", "node", node, "relic.dev/pool-")


def test_steps_with_gpus_run_with_the_pools_selector_and_tolerations(
    space: Space, first: Disturbed, gpu_node: None, tmp_path: Path
) -> None:
    gpus = {"cpu": "100m", "memory": "4Gi", "scratch": "1Gi", "gpus": 1, **GPUS, "tolerations": TOLERATED}
    pools = {"cpu": {"memory": "3Gi", "scratch": "1Gi", "cpu": "100m", "tolerations": TOLERATED}}
    pools |= {"gpu": gpus, "training": gpus | {"nodes": "2", "shared_memory": "64Mi"}}
    other = installed(tmp_path, "relic-gpus", pools=pools)
    with on_cluster.bucket(space) as bucket:
        bucket.copy("store", "gpus", ("curate", "join", "codec"))
    run = other.submit("quick", store="s3://relic/gpus")
    job = wait_for("a job on the node", lambda: job_of(other, "shard", "Succeeded"), 300)  # which does not train
    pods = other.objects("pod", "relic.dev/step=shard,training.kubeflow.org/job-name")
    assert {pod["spec"]["nodeSelector"]["relic.dev/pool"] for pod in pods} == {"gpus"}
    assert {pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods} == {"1"}
    assert job["metadata"]["ownerReferences"][0]["name"] == run
    other.delete()


def test_without_the_toleration_there_is_no_node_for_them(gpu_node: None, tmp_path: Path) -> None:
    small = {"cpu": "100m", "scratch": "1Gi"}
    pools = {name: small | {"tolerations": TOLERATED} for name in ("cpu", "gpu")}
    pools |= {"training": small | {"gpus": 1, **GPUS}}
    other = installed(tmp_path, "relic-no-gpus", pools=pools)
    run = other.submit("quick")
    assert other.ended(run, MISTAKE_S)["phase"] == "Failed"
    assert "pool training" in other.said(run)
    other.delete()


# 5. What the API server says


@pytest.mark.parametrize("name", ["test", "one_gpu", "large"])
def test_the_api_server_takes_all_that_is_rendered(name: str) -> None:
    strict = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--namespace", "default")
    kubectl(*strict, "-f", f"workflows/rendered/{name}.yaml")


@pytest.mark.parametrize("name", ["test", "one_gpu", "large"])
def test_the_api_server_takes_the_servers_chart(name: str) -> None:
    values = ("--values", f"charts/relic-serve/clusters/{name}.yaml", "--set", "monitor.kind=none,export=s3://relic/e")
    place = ("--namespace", "default", "--kube-version", "1.34")
    rendered = command("helm", "template", "relic-serve", "charts/relic-serve", *place, *values)
    assert rendered.returncode == 0, rendered.stderr
    strict = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--namespace", "default")
    kubectl(*strict, "-f", "-", given=rendered.stdout)


@pytest.mark.parametrize("run", sorted(path.stem for path in (on_cluster.ROOT / "workflows/runs").glob("*.yaml")))
def test_the_api_server_takes_what_people_submit(run: str) -> None:
    kubectl("create", "--dry-run=server", "--validate=strict", "-n", "default", "-f", f"workflows/runs/{run}.yaml")


def test_the_launchers_account_may_do_its_work_and_not_one_verb_more(space: Space, first: Disturbed) -> None:
    account = "--as=system:serviceaccount:relic:relic-launcher"
    allowed = ("create pytorchjobs", "delete pytorchjobs", "get workflows", "create pods", "get pods/log")
    refused = (
        "patch pytorchjobs",
        "delete pods",
        "patch workflows",
        "list secrets",
        "get secrets/other",
        "patch deployments",
    )
    for said, wanted in ((allowed, "yes"), (refused, "no")):
        for words in said:
            assert (
                command("kubectl", "-n", "relic", "auth", "can-i", *words.split(), account).stdout.strip() == wanted
            ), words


# 6. Many parts

PARTS = int(os.environ.get("RELIC_TEST_PARTS", "40"))


def test_a_workflow_of_many_parts_completes_and_stays_small(space: Space, first: Disturbed) -> None:
    run = many(space, PARTS)
    status = space.ended(run, 60 + 10 * PARTS)
    assert status["phase"] == "Succeeded", space.said(run)
    nodes = [node for node in space.nodes(run).values() if node["type"] == "Pod"]
    assert len(nodes) == PARTS + 1
    seconds = seconds_between(status["startedAt"], status["finishedAt"])
    stored = len(json.dumps(space.object("workflow", run)["status"]))
    said = {"parts": PARTS, "seconds": seconds, "seconds_per_part": seconds / PARTS, "status_bytes": stored}
    print(json.dumps(said))
    assert stored / PARTS < 2000  # 1 MiB is what Argo stores of a workflow, compressed to a tenth of this


def many(space: Space, parts: int) -> str:
    """A workflow of the renderer's, whose parts do next to nothing, and whose last step reads what all of them say."""
    line = ("sh", "-c", 'echo "s3://relic/store/part/$0" > $1', Placeholder("inputValue", "part"))
    part = Component(
        name="part", about="", inputs={"part": "Integer", "parts": "Integer"}, outputs={"artifact": "String"},
        image="relic/control", command=(*line, Placeholder("outputPath", "artifact")),
    )  # fmt: skip
    whole = replace(
        part, name="whole", inputs={"found": "List"},
        command=("sh", "-c", 'test "$(echo "$0" | tr , "\\n" | wc -l)" = ' + str(parts) + ' && echo "$0" > $1',
                 Placeholder("inputValue", "found"), Placeholder("outputPath", "artifact")),
    )  # fmt: skip
    wired = Graph(
        name="many", about="parts that do nothing",
        parameters=(Parameter(name="parts", default=str(parts), about=""),),
        steps=(
            GraphStep(name="part", component="part", fan_out=FanOut("parts")),
            GraphStep(name="whole", component="whole", inputs={"found": Input("part")}),
        ),
        report="whole", world="whole",
    )  # fmt: skip
    table = {"part": steps.Step(name="part", function="", about="", fan_out=True)}
    source = argo.Rendering(
        workflow="many", graph=wired, cluster=clusters.load(on_cluster.ROOT / "workflows/clusters/test.yaml"),
        table={**table, "whole": steps.Step(name="whole", function="", about="")},
        components={"part": part, "whole": whole}, recipes=(),
    )  # fmt: skip
    return space.bare(argo.workflow(source).to_dict(), parallelism=8, parts=str(parts))


def seconds_between(began: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
