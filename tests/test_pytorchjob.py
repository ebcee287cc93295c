"""A step as a PyTorchJob: what is made, when another's is joined, what is said on the way, how it ends."""

import itertools
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import fake_cluster
import kubernetes_validate
import moto
import pytest
from fake_cluster import FakeCluster

from relic import __main__ as command
from relic import call as calls
from relic import cluster as clusters
from relic import kube, object_store, pods, recipes, steps, tracking, verdict
from relic.call import Call
from relic.cluster import Cluster, Images, Pool
from relic.launch import api, history, job, pytorchjob
from relic.launch.config import Launch

SAMPLES = "s3://bucket/store/join/" + "0" * 20
NOTHING: dict[str, Any] = {"spec": {"runPolicy": {}, "pytorchReplicaSpecs": {"Worker": {"replicas": 2}}}}
TEACHER = f"teacher --recipe quick --store s3://bucket/store --samples {SAMPLES}"
LAUNCH = "launch --backend pytorchjob --pool training -- relic"


def cluster_file(folder: Path, **more: str) -> Path:
    path = folder / "cluster.yaml"
    lines = {"name": "one", "store": "s3://bucket/store", "namespace": "here", "retries": "3", **more,
             "images": "{train: relic/train, serve: relic/serve, control: relic/control}",
             "pools": '{training: {nodes: "2", memory: 8Gi}, gpu: {gpus: 1}}'}  # fmt: skip
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return path


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster whose store has the artifact as soon as the job has succeeded."""
    monkeypatch.setenv(clusters.FILE, str(cluster_file(tmp_path)))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in (tracking.WORKFLOW, tracking.WORKFLOW_UID, steps.PARENT_PROCESS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pytorchjob, "POLL_S", 0.01)
    monkeypatch.setattr(pytorchjob, "QUEUED_S", 0.01)
    monkeypatch.setattr(kube, "PAUSE_S", 0.01)
    monkeypatch.setattr(api, "PATIENCE_S", 2.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with fake_cluster.started() as found, moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        monkeypatch.setattr(kube, "connect", found.connect)
        monkeypatch.setattr(Call, "is_finished", lambda self: "artifact" in found.objects)
        yield found


@pytest.fixture
def workflow(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The one whose pod the launcher is."""
    found = cluster.put("workflows", "walk", status={"phase": "Running"})
    monkeypatch.setenv(tracking.WORKFLOW, "walk")
    monkeypatch.setenv(tracking.WORKFLOW_UID, found["metadata"]["uid"])
    return found


def launched(*more: str) -> int:
    return command.main([*f"{LAUNCH} {TEACHER}".split(), *more])


def last_words(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said.strip()


def succeed(cluster: FakeCluster) -> None:
    for index in range(2):
        cluster.ends(index, 0)
    cluster.says("Succeeded")
    cluster.put("artifact", "it")


def name() -> str:
    return job.name_of(calls.read(steps.STEPS["teacher"], TEACHER.split()[1:], recipes.named))


# Made


def test_a_job_is_followed_to_its_artifact(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.happens = [cluster.run_workers, partial(cluster.writes, "step 1"), partial(succeed, cluster)]
    assert launched("--artifact", str(tmp_path / "deep" / "uri")) == 0
    said = capsys.readouterr().out.splitlines()
    uri = (tmp_path / "deep" / "uri").read_text()
    assert said[-1] == uri
    assert [line.removeprefix(f"launch: {name()}: ") for line in said[:-1]] == ["Running", "step 1", "Succeeded"]
    assert cluster.job["metadata"]["annotations"][job.URI] == uri


def test_the_checkpoints_of_a_finished_artifact_are_deleted(cluster: FakeCluster) -> None:
    store = boto3.client("s3")
    key = calls.read(steps.STEPS["teacher"], TEACHER.split()[1:], recipes.named).key
    for place in (f"teacher/{key}/stage-0/00000010", f"teacher/{'f' * 20}/stage-0/00000010"):
        for file in ("manifest.json", "rank-0000.safetensors"):
            store.put_object(Bucket="bucket", Key=f"store/.checkpoints/{place}/{file}", Body=b"x")
    cluster.happens = [cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    left = store.list_objects_v2(Bucket="bucket")["Contents"]
    assert {item["Key"].split("/")[3] for item in left} == {"f" * 20}


def test_checkpoints_that_stay_behind_are_no_failure(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(self: object) -> None:
        raise verdict.Unreachable("the store is away")

    monkeypatch.setattr(object_store.S3Folder, "clear", away)
    cluster.happens = [cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("s3://bucket/store/teacher/")
    assert "are not deleted (the store is away)" in said.err


def test_a_finished_artifact_makes_no_job(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put("artifact", "it")
    assert launched() == 0
    assert capsys.readouterr().out.startswith("s3://bucket/store/teacher/")
    assert not cluster.asked


def manifest(step: str, pool: Pool, **more: Any) -> dict:
    """The job of a step on a pool."""
    images = Images(train="relic/train", serve="", control="")
    cluster = Cluster(name="one", store="s3://bucket/store", images=images, pools={"here": pool}, **more)
    options = Launch(backend="pytorchjob", pool="here", nodes=pool.nodes, processes="2", max_restarts=3)
    inputs = [word for kind in steps.STEPS[step].inputs for word in (f"--{kind}", SAMPLES)]
    args = [step, "--recipe", "quick", "--store", "s3://bucket/store", *inputs, "--artifact", "/tmp/uri"]
    return job.manifest(options, cluster, calls.read(steps.STEPS[step], args[1:], recipes.named), args)


def test_the_typed_job_drops_no_field(cluster: FakeCluster, workflow: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIC_PARENT_RUN", "run-1")
    made = manifest("teacher", Pool(nodes="1:4", gpus=2, memory="8Gi"), queue="mine", step_s=60, keep_s=70)
    assert made["metadata"]["labels"] == {pods.STEP: "teacher", pods.WORKFLOW: "uid-0", job.QUEUE: "mine"}
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "walk", "uid": "uid-0"}
    ]
    spec = made["spec"]
    worker = spec.pop("pytorchReplicaSpecs")["Worker"]
    assert spec == {
        "nprocPerNode": "2",
        "elasticPolicy": {
            "rdzvBackend": "c10d", "minReplicas": 1, "maxReplicas": 4, "maxRestarts": 3,
            "rdzvConf": [{"key": "join_timeout", "value": "1800"}, {"key": "read_timeout", "value": "300"}],
        },
        "runPolicy": {
            "backoffLimit": 12, "cleanPodPolicy": "None", "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 70,
            "suspend": True,
        },
    }  # fmt: skip
    assert (worker["replicas"], worker["restartPolicy"]) == (4, "OnFailure")
    (container,) = worker["template"]["spec"]["containers"]
    assert {"name": "RELIC_PARENT_RUN", "value": "run-1"} in container["env"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}


def test_a_pod_is_valid_and_as_restricted_pod_security_wants_it() -> None:
    tolerated = (clusters.Toleration(key="gpu"),)
    pool = Pool(nodes="2", node_selector={"kind": "h100"}, tolerations=tolerated, environment={"NCCL_DEBUG": "INFO"},
                resources={"rdma/hca": "1"}, runtime_class="nvidia", priority_class="high")  # fmt: skip
    spec = pod_of(manifest("teacher", pool))
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": spec}
    kubernetes_validate.validate(whole, "1.34", strict=True)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert spec["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert spec["nodeSelector"] == {"kind": "h100"}


def pod_of(made: dict) -> dict:
    return made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def test_a_pod_has_what_its_pool_says_of_devices_and_rank() -> None:
    pool = Pool(gpus=8, resources={"rdma/hca": "1"}, runtime_class="nvidia", priority_class="high")
    spec = pod_of(manifest("teacher", pool))
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "high")
    assert spec["containers"][0]["resources"]["limits"]["rdma/hca"] == "1"
    assert not {"runtimeClassName", "priorityClassName"} & set(pod_of(manifest("teacher", Pool())))


@pytest.mark.parametrize(("step", "seconds"), [("teacher", 330), ("shard", 30)])
def test_only_a_training_gets_the_time_to_save(step: str, seconds: int) -> None:
    assert pod_of(manifest(step, Pool(gpus=1)))["terminationGracePeriodSeconds"] == seconds


def test_an_ended_job_leaves_the_nodes_disks_after_a_day() -> None:
    made = manifest("teacher", Pool(), keep_s=10**6)
    assert made["spec"]["runPolicy"]["ttlSecondsAfterFinished"] == 86400


def command_of(made: dict) -> list[str]:
    return pod_of(made)["containers"][0]["command"]


def test_workers_meet_at_the_first_one_and_save_where_all_see_it() -> None:
    made = manifest("teacher", Pool(nodes="2"))
    before, step = " ".join(command_of(made)).split(" -- ")
    meet = f"{made['metadata']['name']}-worker-0:29500"
    assert before.startswith(f"relic launch --nodes 2 --processes 2 --endpoint {meet} --job {made['metadata']['name']}")
    assert step.startswith("relic teacher --recipe quick --store s3://bucket/store --samples")
    assert step.endswith("--config.checkpoint.to s3://bucket/store/.checkpoints")
    assert "--artifact" not in step


def test_a_step_that_does_not_train_runs_as_it_is_in_one_pod() -> None:
    made = manifest("evaluate", Pool(nodes="4", gpus=1))
    assert command_of(made)[:2] == ["relic", "evaluate"]
    assert made["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    assert "elasticPolicy" not in made["spec"]


@pytest.mark.parametrize("queue", ["", "mine"])
def test_workers_should_share_a_rack(queue: str) -> None:
    made = manifest("teacher", Pool(nodes="2", topology="rack"), queue=queue)
    template = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    if queue:  # Kueue decides
        assert template["metadata"]["annotations"] == {job.TOPOLOGY: "rack"}
        assert "affinity" not in template["spec"]
    else:
        (near,) = template["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert near["podAffinityTerm"]["topologyKey"] == "rack"


def test_options_are_the_clusters_unless_they_are_given(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (("", "--nodes 2 --processes 1"), ("--nodes 1:3 --max-restarts 7", "--nodes 1:3")):
        line = f"launch --backend pytorchjob --pool training --dry-run {options} -- relic {TEACHER}"
        assert command.main(line.split()) == 0
        made = json.loads(capsys.readouterr().out)
        assert said in " ".join(command_of(made))
    assert made["spec"]["elasticPolicy"]["maxRestarts"] == 7


# One job for one artifact


def test_a_job_that_runs_is_joined(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put("pytorchjobs", name(), **NOTHING)
    cluster.run_workers()
    cluster.happens = [lambda: None, partial(succeed, cluster)]
    assert launched() == 0
    assert f"launch: {name()}: runs already" in capsys.readouterr().out
    assert cluster.job["metadata"]["uid"] == "uid-0"


@pytest.mark.parametrize("how", ["Failed", "Succeeded"])
def test_a_job_that_ended_without_its_artifact_is_made_anew(how: str, cluster: FakeCluster) -> None:
    cluster.put("pytorchjobs", name(), **NOTHING)
    cluster.says(how)
    cluster.happens = [lambda: None, cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    assert cluster.asked.count(f"DELETE pytorchjobs {name()}") == 1
    assert cluster.job["metadata"]["uid"] != "uid-0"


def test_a_job_that_is_being_deleted_is_waited_for(cluster: FakeCluster) -> None:
    leaving = {"name": name(), "uid": "old", "deletionTimestamp": cluster.now()}
    cluster.put("pytorchjobs", name(), **{**NOTHING, "metadata": leaving})
    gone = partial(cluster.objects.pop, "pytorchjobs")
    cluster.happens = [lambda: None, gone, cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    assert not [line for line in cluster.asked if line.startswith("DELETE")]
    assert cluster.job["metadata"]["uid"] != "old"


@pytest.mark.parametrize("how", ["fails", "vanishes"])
def test_of_anothers_job_that_comes_to_nothing_an_own_one_is_made(
    how: str, cluster: FakeCluster, workflow: dict
) -> None:
    owned = {"ownerReferences": [{"kind": "Workflow", "name": "other", "uid": "another"}]}
    cluster.put("pytorchjobs", name(), **{**NOTHING, "metadata": owned})
    ends = partial(cluster.says, "Failed") if how == "fails" else partial(cluster.objects.pop, "pytorchjobs")
    cluster.happens = [lambda: None, ends]
    if how == "fails":
        cluster.happens.append(lambda: None)
    cluster.happens += [cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    assert cluster.job["metadata"]["ownerReferences"][0]["uid"] == workflow["metadata"]["uid"]


def test_the_first_pod_may_upload_after_another_has_succeeded(cluster: FakeCluster) -> None:
    uploading = partial(cluster.says, "Succeeded")
    cluster.happens = [cluster.run_workers, uploading, uploading, partial(succeed, cluster)]
    assert launched() == 0


def test_worker_0_speaks_for_all_and_nobody_in_its_place(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost() -> None:
        cluster.writes("of 1", index=1)
        del cluster.objects["pods"][f"{name()}-worker-0"]

    def back() -> None:
        cluster.worker(0)
        cluster.writes("of 0")

    cluster.happens = [cluster.run_workers, lost, lambda: None, back, partial(succeed, cluster)]
    assert launched() == 0
    said = capsys.readouterr().out.splitlines()
    assert "of 0" in said
    assert "of 1" not in said


def test_another_worker_that_still_runs_uploads_nothing(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> None:
        del cluster.objects["pods"][f"{name()}-worker-0"]
        cluster.says("Succeeded")

    cluster.happens = [cluster.run_workers, gone]
    assert launched() == verdict.FAILURE
    assert "succeeded, and s3://bucket/store/teacher/" in last_words(capsys)


def test_a_worker_that_is_left_alone_does_not_keep_its_gpus(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone() -> None:
        succeed(cluster)
        cluster.worker(1)

    monkeypatch.setattr(pytorchjob, "LEAVE_S", 0.05)
    cluster.happens = [cluster.run_workers, alone]
    assert launched() == 0
    assert not cluster.objects["pytorchjobs"]


def test_success_without_the_artifact_is_a_failure(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.happens = [cluster.run_workers, partial(cluster.ends, 0, 0), partial(cluster.says, "Succeeded")]
    assert launched() == verdict.FAILURE
    assert "succeeded, and s3://bucket/store/teacher/" in last_words(capsys)


# On the way


def test_what_it_waits_for_is_said(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are free"}

    def unschedulable() -> None:
        cluster.worker(0)
        cluster.worker(1, waiting={})["status"]["conditions"] = [full]

    said = {"lastTimestamp": "1", "message": "pods are forbidden"}
    cluster.put("events", "one", **said)

    def scheduled() -> None:
        cluster.pod(1)["status"]["containerStatuses"][0]["state"] = {"running": {}}

    cluster.happens = [lambda: None, unschedulable, scheduled, partial(succeed, cluster)]
    assert launched() == 0
    words = [line.split(": ", 2)[2] for line in capsys.readouterr().out.splitlines() if line.startswith("launch")]
    assert words == [
        "Pending: pods are forbidden",
        f"Pending: 1 of 2 workers run; {name()}-worker-1: 0/1 nodes are free",
        "Running",
        "Succeeded",
    ]


def test_a_job_that_kueue_lets_wait_is_queued(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_file(tmp_path, queue="mine")

    def waits() -> None:
        full = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota"}
        labels = {"kueue.x-k8s.io/job-uid": cluster.job["metadata"]["uid"]}
        cluster.put("workloads", "one", metadata={"labels": labels}, status={"conditions": [full]})

    def admitted() -> None:
        cluster.job["spec"]["runPolicy"]["suspend"] = False
        cluster.run_workers()

    cluster.happens = [waits, admitted, partial(succeed, cluster)]
    assert launched() == 0
    words = [line.partition(f"{name()}: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert words[:2] == ["Queued: insufficient unused quota", "Running"]
    asked = [line for line in cluster.asked if not line.endswith("localqueues mine")]
    assert asked[:4] == ["POST pytorchjobs", f"GET pytorchjobs {name()}", "GET workloads", f"GET pytorchjobs {name()}"]


def test_no_line_of_rank_0_is_lost_or_doubled(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    def goes_on_in_a_new_container() -> None:
        cluster.writes("2", "3")
        cluster.ends(0, 1, "relic: lost", again=True)
        cluster.writes("4")

    def goes_on_in_a_new_pod() -> None:
        cluster.worker(0)
        cluster.writes("5")

    writes = partial(cluster.writes, "1", "2")
    cluster.happens = [cluster.run_workers, writes, lambda: None, goes_on_in_a_new_container, lambda: None]
    cluster.happens += [goes_on_in_a_new_pod, partial(cluster.writes, "6", "6"), partial(succeed, cluster)]
    assert launched() == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.isdigit()] == list("12234566")
    assert f"launch: {name()}: {name()}-worker-0 ended (Error, exit code 1): lost" in said
    assert [line for line in said if "Lost: its pod was deleted" in line] == []


def test_a_server_that_is_away_for_a_while_costs_nothing(cluster: FakeCluster) -> None:
    def away() -> None:
        cluster.failing += [503, 0, 429, 500]

    cluster.happens = [cluster.run_workers, away, partial(succeed, cluster)]
    assert launched() == 0


def test_a_server_that_stays_away_is_no_failure_of_the_step(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "PATIENCE_S", 0.05)
    cluster.happens = [cluster.run_workers, partial(cluster.failing.extend, 1000 * [503])]
    assert launched() == verdict.STOPPED
    said = f"relic: the API server does not answer (not now); the same command follows {name()} again"
    assert last_words(capsys) == said


def test_a_store_that_is_away_for_a_while_costs_nothing(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([verdict.Unreachable("it is away"), False, verdict.Unreachable("it is away"), True])
    monkeypatch.setattr(Call, "is_finished", lambda self: answered(next(answers)))
    cluster.happens = [cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    assert capsys.readouterr().out.count("it is away") == 2
    assert cluster.asked.count("POST pytorchjobs") == 1


def answered(answer: Any) -> bool:
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_a_store_that_stays_away_leaves_the_job_to_the_next(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away() -> None:
        succeed(cluster)
        monkeypatch.setattr(Call, "is_finished", lambda self: answered(verdict.Unreachable("s3://bucket is away")))

    monkeypatch.setattr(pytorchjob, "STORE_S", 0.05)
    cluster.happens = [cluster.run_workers, away]
    assert launched() == verdict.STOPPED
    assert last_words(capsys) == f"relic: s3://bucket is away; the same command follows {name()} again"
    assert cluster.objects["pytorchjobs"]


# How it ends


@pytest.mark.parametrize("code", [verdict.MISTAKE, verdict.OUT_OF_MEMORY])
def test_a_verdict_that_no_restart_changes_ends_the_job(
    code: int, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "step 1\nrelic: the batch is 3; it must be even\n"
    cluster.happens = [cluster.run_workers, partial(cluster.ends, 1, code, said, again=True)]
    assert launched() == code
    assert last_words(capsys) == "relic: the batch is 3; it must be even"
    assert not cluster.objects["pytorchjobs"]


@pytest.mark.parametrize(
    ("code", "reason", "words", "ended"),
    [
        (137, "OOMKilled", "", verdict.OUT_OF_MEMORY),
        (1, "Error", "relic: teacher failed: OSError: no", verdict.FAILURE),
        (70, "Error", "relic: no step has ended", verdict.HUNG),
        (137, "Error", "", verdict.STOPPED),
        (143, "Error", "", verdict.STOPPED),
    ],
)
def test_the_reason_is_the_first_failing_worker_of_the_last_round(
    code: int, reason: str, words: str, ended: int, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def rounds() -> None:
        cluster.ends(0, 1, "relic: long ago", again=True)
        cluster.seconds = itertools.count(1000)
        cluster.ends(1, code, words, reason)
        cluster.ends(0, 1, "relic: the other one is gone")
        cluster.says("Failed", "it has reached the specified backoff limit")

    cluster.happens = [cluster.run_workers, rounds]
    assert launched() == ended
    said = last_words(capsys)
    assert f"{name()}-worker-1" in said
    assert words.removeprefix("relic: ") in said
    assert ("8Gi" in said) == (ended == verdict.OUT_OF_MEMORY)
    assert not cluster.objects["pytorchjobs"]


def test_an_evicted_pod_is_a_reason(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    def evicted() -> None:
        cluster.pod(1)["status"] = {"phase": "Failed", "reason": "Evicted", "message": "the disk is full"}
        cluster.says("Failed", "reached the specified backoff limit")

    cluster.happens = [cluster.run_workers, evicted]
    assert launched() == verdict.STOPPED
    assert f"{name()}-worker-1 ended (Evicted): the disk is full" in last_words(capsys)


def test_a_deadline_is_its_own_reason(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    late = partial(cluster.says, "Failed", "Job has failed because it was active longer than specified deadline")
    cluster.happens = [cluster.run_workers, late]
    assert launched() == verdict.FAILURE
    assert "longer than specified deadline" in last_words(capsys)


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"])
def test_what_a_person_forgot_ends_after_a_while(
    reason: str, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(history, "GRACE_S", 0.05)
    waiting = {"reason": reason, "message": "x is not there"}
    cluster.happens = [partial(cluster.worker, 0, waiting=waiting)]
    assert launched() == verdict.MISTAKE
    assert f"{reason}: x is not there; see images and secrets in the file of cluster one" in last_words(capsys)
    assert not cluster.objects["pytorchjobs"]


@pytest.mark.parametrize("before", ["beside it", "by the job"])
def test_a_registry_that_is_away_ends_no_job_that_has_run(
    before: str, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pulled() -> None:
        waiting = {"reason": "ImagePullBackOff", "message": "back-off"}
        if before == "beside it":
            cluster.worker(0)
        else:  # whoever ran is lost, and so is the launcher that saw it
            cluster.says("Restarting")
        cluster.worker(1, waiting=waiting)

    monkeypatch.setattr(history, "GRACE_S", -1.0)
    cluster.happens = [lambda: None, pulled, lambda: None, cluster.run_workers, partial(succeed, cluster)]
    assert launched() == 0
    assert ("worker-1: its image cannot be pulled" in capsys.readouterr().out) == (before == "beside it")


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (("POST", "pytorchjobs", 403), "pytorchjobs is forbidden: cannot; charts/relic-platform gives the accounts of"),
        (("POST", "pytorchjobs", 422), "the cluster refuses this: refused"),
        (("POST", "pytorchjobs", 404), "namespace here takes no PyTorchJob (refused); it must exist, and the Training"),
    ],
)
def test_a_refusal_is_one_sentence(
    refused: tuple[str, str, int], said: str, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refused[refused[:2]] = refused[2]
    assert launched() == verdict.MISTAKE
    assert said in last_words(capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "cluster one has no pool ''; did you mean 'training'?"),
        ("--pool gpus", "cluster one has no pool 'gpus'; did you mean 'gpu'?"),
        ("--pool training --processes auto", "processes is 'auto'"),
        ("--pool training --nodes 0", "nodes is '0'"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(
    line: str, said: str, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(f"launch --backend pytorchjob {line} -- relic {TEACHER}".split()) == verdict.MISTAKE
    assert said in last_words(capsys)


# Asked to end


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", ["stopped", "deleted", "gone", "over"])
def test_a_workflow_that_ends_takes_its_job_along(how: str, cluster: FakeCluster, workflow: dict) -> None:
    def stopping() -> None:
        if how == "gone":
            del cluster.objects["workflows"]
        workflow["spec"] = {"shutdown": "Stop"} if how == "stopped" else {}
        workflow["status"] = {"phase": "Failed"} if how == "over" else {}
        workflow["metadata"] |= {"deletionTimestamp": "now"} if how == "deleted" else {}
        terminate()

    cluster.happens = [cluster.run_workers, stopping]
    assert launched() == verdict.STOPPED
    assert not cluster.objects["pytorchjobs"]


def test_a_pod_that_is_deleted_leaves_the_job_to_the_next(cluster: FakeCluster, workflow: dict) -> None:
    cluster.happens = [cluster.run_workers, terminate]
    assert launched() == verdict.STOPPED
    made = cluster.job["metadata"]["uid"]
    cluster.happens = [lambda: None, partial(succeed, cluster)]
    assert launched() == 0
    assert cluster.job["metadata"]["uid"] == made


def test_the_job_of_another_workflow_outlives_ours(cluster: FakeCluster, workflow: dict) -> None:
    owned = {"ownerReferences": [{"kind": "Workflow", "name": "other", "uid": "another"}]}
    cluster.put("pytorchjobs", name(), **{**NOTHING, "metadata": owned})
    workflow["spec"] = {"shutdown": "Terminate"}
    cluster.happens = [lambda: None, terminate]
    assert launched() == verdict.STOPPED
    assert cluster.job["metadata"]["ownerReferences"] == owned["ownerReferences"]


def test_a_job_that_somebody_deletes_is_not_made_again_at_once(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.happens = [cluster.run_workers, partial(cluster.objects.pop, "pytorchjobs", None)]
    assert launched() == verdict.STOPPED
    assert "was deleted; the same command goes on from its last checkpoint" in last_words(capsys)
