from pathlib import Path
from typing import Any

import pytest
import yaml

from relic import cluster, pods
from relic.cluster import Cluster, Pool
from relic.mistakes import UserError

ROOT = Path(__file__).parents[1]
LEAST: dict[str, Any] = {
    "name": "here",
    "store": "s3://bucket/store",
    "images": {"train": "a", "serve": "b", "control": "c"},
    "pools": {"cpu": {}, "gpu": {"gpus": 1, "tolerations": [{"key": "gpu"}]}, "training": {"nodes": "1:4"}},
}


def written(tmp_path: Path, **changed: Any) -> Path:
    path = tmp_path / "here.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **changed}))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "workflows/clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_cluster_files_that_ship_load_and_have_the_graphs_pools(path: Path) -> None:
    assert set(cluster.load(path).pools) == {"cpu", "gpu", "training"}


def test_a_file_becomes_typed_values(tmp_path: Path) -> None:
    found = cluster.load(written(tmp_path))
    assert found.pool("training").nodes == "1:4"
    assert found.pool("gpu").tolerations[0].operator == "Exists"
    assert found.serving is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stroe": "x"}, "has a field 'stroe'; did you mean 'store'?"),
        ({"store": "/disk"}, "store is '/disk'; it must be s3://BUCKET/PREFIX"),
        ({"parts": "many"}, "parts is 'many'; it must be a whole number"),
        ({"images": {"train": "a"}}, "images: missing 2 required keyword-only arguments: 'serve' and 'control'"),
        ({"pools": {"cpu": {"memory": "lots"}}}, "pools.cpu: memory is 'lots'; it must be a quantity"),
        ({"pools": {"cpu": {"nodes": "4:"}}}, "nodes is '4:'; it must be a number such as 2, or MIN:MAX"),
        ({"pools": {"cpu": {"nodes": "8:2"}}}, "pools.cpu: nodes is '8:2'; it must be a number such as 2, or MIN:MAX"),
        ({"pools": {"cpu": {"resources": {"rdma/hca": "all"}}}}, "resources has rdma/hca: 'all'; it must be a quan"),
        ({"pools": {"cpu": {"tolerations": [{"key": "x", "operator": "Has"}]}}}, "operator is 'Has'; allowed are"),
        ({"pools": {"cpu": {"tolerations": "x"}}}, "tolerations is 'x'; it must be a list"),
        ({"namespace": "My Team"}, "namespace is 'My Team'; allowed are small letters, digits and hyphens"),
        ({"serving": "yes"}, "serving is 'yes'; it must have fields such as deployment"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_with_its_place(tmp_path: Path, changed: dict, said: str) -> None:
    path = written(tmp_path, **changed)
    with pytest.raises(UserError) as error:
        cluster.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_numbers_are_decimal_without_quotes_too(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    path.write_text(yaml.safe_dump({**LEAST, "pools": {"cpu": {"nodes": "some", "gpus": 8}}}).replace("some", "2:8"))
    assert "nodes: 2:8\n" in path.read_text()
    assert cluster.load(path).pool("cpu") == Pool(nodes="2:8", gpus=8)
    path.write_text(path.read_text().replace("2:8", "3") + "step_s: 60\nqueue: 1.5\n")
    found = cluster.load(path)
    assert (found.pool("cpu").nodes, found.step_s, found.queue) == ("3", 60, "1.5")


def test_nothing_is_served_where_the_file_says_so(tmp_path: Path) -> None:
    assert cluster.load(written(tmp_path, serving=None)).serving is None
    assert cluster.load(written(tmp_path, serving={})).serving == cluster.Serving()


def test_a_pool_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cluster here has no pool 'gpus'; did you mean 'gpu'"):
        cluster.load(written(tmp_path)).pool("gpus")


def test_only_a_pod_has_a_cluster_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.FILE, raising=False)
    assert cluster.of_pod() is None
    monkeypatch.setenv(cluster.FILE, str(written(tmp_path)))
    found = cluster.of_pod()
    assert found is not None
    assert found.name == "here"


def test_a_pods_variables_are_the_pools_before_the_clusters() -> None:
    here = Cluster(**{**LEAST, "images": None, "pools": {}}, environment={"A": "cluster", "B": "cluster"})
    found = {one["name"]: one["value"] for one in pods.environment(here, Pool(environment={"A": "pool"}), C="more")}
    assert (found["A"], found["B"], found["C"]) == ("pool", "cluster", "more")


def test_memory_is_asked_and_limited_and_gpus_carry_the_clusters_name() -> None:
    here = Cluster(**{**LEAST, "images": None, "pools": {}}, gpu="amd.com/gpu")
    found = pods.resources(here, Pool(gpus=8, memory="64Gi"))
    assert found["limits"] == {"memory": "64Gi", "amd.com/gpu": "8"}
    assert found["requests"]["amd.com/gpu"] == "8"
    assert "nvidia.com/gpu" not in found["requests"]


def test_what_else_a_pod_asks_is_a_limit_too() -> None:
    here = Cluster(**{**LEAST, "images": None, "pools": {}})
    found = pods.resources(here, Pool(gpus=8, resources={"rdma/hca": "1"}))
    assert found["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "8", "rdma/hca": "1"}
    assert found["requests"]["rdma/hca"] == "1"
