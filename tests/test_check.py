import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi, serving

from relic import cluster as clusters
from relic import kube
from relic.__main__ import main
from relic.launch import doctor
from relic.parallel.config import Finding
from relic.pipeline import check, named, node_pools, pulls
from relic.pipeline.site import Site
from relic.verdict import Unreachable

FILE = Path(__file__).parents[1] / "workflows" / "clusters" / "test.yaml"
SPACE = "/api/v1/namespaces/relic"
DEPLOYMENT = "/apis/apps/v1/namespaces/relic/deployments/relic-serve"
QUEUES = "/apis/kueue.x-k8s.io/v1beta2/namespaces/relic/localqueues"


def node(labels: dict[str, str] | None = None, *, ready: str = "True", taints: Any = (), **has: str) -> dict[str, Any]:
    allocatable = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", **has}
    return {
        "metadata": {"labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "allocatable": allocatable},
    }


def runs(pod: dict[str, Any]) -> None:
    """A kubelet that has every image."""
    pod["status"] = {"containerStatuses": [{"name": "image", "state": {"running": {}}}]}


@pytest.fixture
def fake() -> FakeApi:
    """A cluster where nothing is missing."""
    fake = FakeApi()
    fake.put("/api/v1/namespaces/relic")
    fake.objects["/api/v1/nodes/one"] = {**node(), "metadata": {"labels": {}}}
    keys = dict.fromkeys(named.KEYS["store_secret"], "")
    fake.put(f"{SPACE}/secrets/relic-store", data=keys)
    for name in ("relic-step", "relic-launcher", "relic-deploy"):
        fake.put(f"{SPACE}/serviceaccounts/{name}")
    fake.put(f"{SPACE}/configmaps/relic-cluster", data={"cluster.yaml": FILE.read_text()})
    fake.put("/apis/argoproj.io/v1alpha1/namespaces/relic/workflowtemplates/world-model")
    image = clusters.load(FILE).images.serve
    fake.put(DEPLOYMENT, spec={"template": {"spec": {"containers": [{"name": "serve", "image": image}]}}})
    fake.on_create = runs
    return fake


@pytest.fixture
def site(fake: FakeApi) -> Iterator[Site]:
    with serving(fake) as api, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kube, "connect", lambda: api)
        patch.setattr(kube, "PAUSE_S", 0.01)
        yield Site(cluster=clusters.load(FILE), api=kube.Api("relic"))


def failed(found: list[Finding]) -> list[str]:
    return [one.said for one in found if one.verdict == "fail"]


def test_a_cluster_where_nothing_is_missing_is_fit(site: Site, fake: FakeApi) -> None:
    found = check.examined(site)
    assert doctor.fit(found), doctor.report(found, as_json=False)
    looked_at = {"apis", "rights", "pools", "secrets", "accounts", "template", "server", "images"}
    assert looked_at <= {one.name for one in found}
    assert not fake.of("pods")  # those that tried the images are gone


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (
            f"{SPACE}/secrets/relic-store",
            "make it: kubectl -n relic create secret generic relic-store --from-literal=",
        ),
        (
            f"{SPACE}/serviceaccounts/relic-step",
            "service accounts do not exist in namespace relic: relic-step;",
        ),
        (f"{SPACE}/configmaps/relic-cluster", "ConfigMap relic-cluster does not exist in namespace relic; install it:"),
        ("/apis/argoproj.io/v1alpha1/namespaces/relic/workflowtemplates/world-model", "relic pipeline render"),
        (DEPLOYMENT, "install charts/relic-serve, or run with deploy=no"),
        ("/api/v1/namespaces/relic", "make it: kubectl create namespace relic"),
    ],
)
def test_what_is_missing_is_one_line_with_its_cure(site: Site, fake: FakeApi, gone: str, said: str) -> None:
    del fake.objects[gone]
    (line,) = failed(check.examined(replace(site, images=False)))
    assert said in line


def test_a_secret_without_its_keys_is_a_failure(site: Site, fake: FakeApi) -> None:
    fake.put(f"{SPACE}/secrets/relic-store", data={"AWS_ACCESS_KEY_ID": ""})
    assert failed(named.secrets(site))[0].startswith("secret relic-store has no AWS_SECRET_ACCESS_KEY")


def test_an_operator_that_is_not_installed_is_named(site: Site, fake: FakeApi) -> None:
    fake.served = {"argoproj.io/v1alpha1": ["workflows"], "kubeflow.org/v2": ["trainjobs"]}
    templates, jobs = failed(check.apis(site))
    assert templates.startswith("workflowtemplates of argoproj.io/v1alpha1 are not served")
    assert "(kubeflow.org has v2); install the Kubeflow Training Operator" in jobs


def test_a_queue_needs_kueue_and_an_active_local_queue(site: Site, fake: FakeApi) -> None:
    wanted = replace(site, cluster=replace(site.cluster, queue="gpus"))
    assert "LocalQueue gpus does not exist" in failed(named.queue(wanted))[0]
    off = {"type": "Active", "status": "False", "message": "no ClusterQueue"}
    fake.put(f"{QUEUES}/gpus", status={"conditions": [off]})
    assert "is not active (no ClusterQueue)" in failed(named.queue(wanted))[0]
    fake.objects[f"{QUEUES}/gpus"]["status"]["conditions"][0]["status"] = "True"
    assert not failed(named.queue(wanted))
    assert not failed(check.apis(wanted))
    fake.served["kueue.x-k8s.io/v1beta1"] = fake.served.pop("kueue.x-k8s.io/v1beta2")
    queues, _ = failed(check.apis(wanted))
    assert queues == (
        "localqueues of kueue.x-k8s.io/v1beta2 are not served (kueue.x-k8s.io has v1beta1); "
        "install Kueue 0.16, or leave queue out of the cluster's file"
    )
    assert not failed(check.apis(site))  # which names no queue


def test_a_server_of_another_image_is_a_warning_and_nobody_asks_where_nothing_is_deployed(
    site: Site, fake: FakeApi
) -> None:
    fake.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"] = "relic/serve:old"
    (found,) = named.server(site)
    assert found.verdict == "warn"
    assert found.said.startswith("Deployment relic-serve runs relic/serve:old and images.serve is localhost/")
    assert named.server(replace(site, deploys=False)) == []


def test_a_storage_class_is_looked_for_only_when_one_is_named(site: Site, fake: FakeApi) -> None:
    assert not named.storage(site)
    wanted = replace(site, cluster=replace(site.cluster, storage_class="fast"))
    assert failed(named.storage(wanted))[0].startswith("storage class fast does not exist; correct storage_class")
    fake.put("/apis/storage.k8s.io/v1/storageclasses/fast")
    assert not failed(named.storage(wanted))


def test_a_right_that_is_missing_is_named(site: Site, fake: FakeApi) -> None:
    fake.forbidden = {("create", "workflows"), ("patch", "workflows"), ("get", "pods/log")}
    (said,) = failed(check.rights(site))
    assert "may not create patch workflows.argoproj.io, get pods/log in namespace relic" in said


def test_what_may_not_be_seen_does_not_refuse_a_run(site: Site, fake: FakeApi) -> None:
    fake.forbidden = {("list", "nodes"), ("get", "secrets")}
    found = {one.name: one.verdict for one in check.examined(replace(site, images=False))}
    assert (found["pools"], found["secrets"]) == ("warn", "warn")


def test_a_server_that_does_not_answer_is_the_only_finding_and_a_run_waits_for_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "PATIENCE_S", 0.05)
    site.api.client.configuration.host = "http://127.0.0.1:9"
    (found,) = check.examined(site)
    assert found.said.startswith("http://127.0.0.1:9: the API server does not answer")
    with pytest.raises(Unreachable, match="the API server does not answer"):
        check.examined(replace(site, inside=True))


def test_what_passes_does_not_end_a_check(site: Site, fake: FakeApi) -> None:
    fake.failing = [503, 0, 429]
    assert doctor.fit(check.examined(site))


def test_a_store_that_never_answers_costs_its_time_and_no_more() -> None:
    began = time.monotonic()
    assert check.within(0.05, lambda: time.sleep(1.0), "late") == "late"
    assert time.monotonic() - began < 0.5


def test_what_a_store_raises_is_raised_to_who_waits() -> None:
    with pytest.raises(ZeroDivisionError):
        check.within(5.0, lambda: 1 // 0, "late")


# Nodes


def room(**has: Any) -> tuple[int, str]:
    cluster = clusters.load(FILE)
    pool = replace(
        cluster.pools["training"], gpus=8, cpu="4", memory="10Gi", node_selector={"pool": "a"},
        tolerations=(clusters.Toleration(key="gpu"), clusters.Toleration(key="kind", operator="Equal", value="h100")),
    )  # fmt: skip
    return node_pools.room(cluster, pool, node(**{"labels": {"pool": "a"}, "nvidia.com/gpu": "16", **has}))


def test_a_node_takes_as_many_pods_as_its_scarcest_resource_allows() -> None:
    assert room() == (2, "")  # 16 GPUs, 8 a pod; 32 GiB, 10 a pod
    assert room(memory="15Gi") == (1, "")


def test_a_node_that_takes_no_pod_says_why() -> None:
    assert room(ready="False")[1] == "are not ready"
    assert room(labels={})[1] == "lack the label pool=a"
    assert room(**{"nvidia.com/gpu": "4"})[1] == "have too little nvidia.com/gpu (of 8 asked)"


def test_taints_are_tolerated_by_key_value_and_effect() -> None:
    soft, hard = "PreferNoSchedule", "NoSchedule"
    assert room(taints=[{"key": "gpu", "value": "x", "effect": hard}, {"key": "other", "effect": soft}])[0] == 2
    assert room(taints=[{"key": "kind", "value": "a100", "effect": hard}])[1] == "have the taint kind=a100:NoSchedule"
    assert room(taints=[{"key": "gpu", "effect": "NoExecute"}])[1] == "have the taint gpu=:NoExecute"


def test_a_training_needs_room_for_its_least_number_of_pods(site: Site) -> None:
    small = node(memory="5Gi")
    pool = site.cluster.pools["training"]
    assert "room for 1 of the 2 pods" in node_pools.look(site, "training", pool, [small]).said
    assert node_pools.look(site, "training", pool, [small, small]).verdict == "ok"
    assert node_pools.look(replace(site, nodes="1:4"), "training", pool, [small]).verdict == "ok"
    assert node_pools.look(site, "training", replace(pool, scales=True), []).verdict == "warn"


def test_a_pool_says_in_its_file_that_an_autoscaler_adds_nodes(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(FILE.read_text().replace("cpu: {", "cpu: {scales: true, "))
    assert clusters.load(file).pools["cpu"].scales
    file.write_text(FILE.read_text().replace("cpu: {", "cpu: {scales: 1, "))
    with pytest.raises(ValueError, match="scales is 1; it must be true or false"):
        clusters.load(file)


# Images


def kubelet(fake: FakeApi, reason: str, message: str = "") -> None:
    """Every new pod waits for this reason."""

    def waits(pod: dict[str, Any]) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        pod["status"] = {"containerStatuses": [{"name": "image", "state": state}]}

    fake.on_create = waits


def test_an_image_that_is_refused_for_a_while_is_a_failure(
    site: Site, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "REFUSED_S", 0.1)
    monkeypatch.setattr(pulls, "POLL_S", 0.05)
    kubelet(fake, "ErrImagePull", 'failed to resolve reference "localhost/relic/train:test": not found')
    began = time.monotonic()
    said = failed(pulls.examined(replace(site, deploys=False)))
    assert time.monotonic() - began < 5.0  # not the whole time that a pull is watched
    assert said[0] == (
        "image localhost/relic/train:test cannot be pulled (not found); "
        "correct images.train, or images.pull_secrets, in the cluster's file"
    )
    assert len(said) == 2  # train and control
    assert not fake.of("pods")


@pytest.mark.parametrize(
    ("reason", "verdict"), [("InvalidImageName", "fail"), ("ContainerCreating", "ok"), ("CreateContainerError", "ok")]
)
def test_a_reason_to_wait_says_whether_the_image_is_there(
    site: Site, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, reason: str, verdict: str
) -> None:
    monkeypatch.setattr(pulls, "WATCHED_S", 0.1)
    monkeypatch.setattr(pulls, "POLL_S", 0.05)
    kubelet(fake, reason)
    assert {one.verdict for one in pulls.examined(site)} == {verdict}


def test_a_pod_that_no_node_takes_says_nothing_of_its_image(
    site: Site, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "WATCHED_S", 0.05)
    monkeypatch.setattr(pulls, "POLL_S", 0.05)
    state = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    fake.on_create = lambda pod: pod.update(status={"conditions": [state]})
    found = pulls.examined(site)[0]
    assert (found.verdict, found.said.endswith("could not be tried: 0/1 nodes are available")) == ("warn", True)


def test_in_a_run_the_pods_belong_to_the_pod_that_looks(
    site: Site, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELIC_WORKFLOW", "wm-1")
    monkeypatch.setenv("HOSTNAME", "wm-1-preflight-cut")
    fake.put(f"{SPACE}/pods/wm-1-preflight-cut-off", labels={"workflows.argoproj.io/workflow": "wm-1"})
    fake.forbidden = {("delete", "pods")}
    pulls.examined(replace(site, inside=True))
    made = [pod for pod in fake.of("pods") if "ownerReferences" in pod["metadata"]]
    assert [pod["metadata"]["labels"]["relic.dev/check"] for pod in made] == ["train", "serve"]
    assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in made} == {"uid-wm-1-preflight-cut-off"}


# The command


def command(monkeypatch: pytest.MonkeyPatch, site: Site, *args: str) -> int:
    monkeypatch.setattr(kube, "connect", lambda: site.api.client)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != clusters.FILE})
    return main(["cluster", *args])


def test_the_command_ends_with_one_sentence_of_what_is_first(
    site: Site, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake.objects[f"{SPACE}/secrets/relic-store"], fake.objects[f"{SPACE}/serviceaccounts/relic-step"]
    assert command(monkeypatch, site, "check", "--cluster", str(FILE), "--no-images") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("relic: secret relic-store does not exist")
    assert last.endswith("(and 1 more: relic cluster check)")


def test_the_command_of_a_fit_cluster_ends_well(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, site, "check", "--cluster", str(FILE)) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("ok    api")


def test_the_command_without_a_cluster_says_what_it_needs(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, site, "check") == 2
    assert "needs --cluster FILE" in capsys.readouterr().err
