"""Every check of `relic doctor` finds what is right, and what is wrong."""

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import boto3
import pytest
import ranks
import torch
from moto import mock_aws

from relic import __main__ as command
from relic.launch import doctor as around
from relic.parallel import doctor as within
from relic.parallel.config import Doctor, Finding, Parallel
from relic.parallel.mesh import Mesh, joined

ALONE = Mesh()


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_shared_memory_is_enough_too_small_or_missing(tmp_path):
    assert around.shared_memory(Doctor(shm_gb=0.001), tmp_path).verdict == "ok"
    found = around.shared_memory(Doctor(shm_gb=1e6), tmp_path)
    assert (found.verdict, found.said.rpartition("; ")[2]) == ("fail", "1e+06 GB are needed")
    assert around.shared_memory(Doctor(), tmp_path / "none").verdict == "fail"


def test_a_disk_is_looked_at_where_the_store_will_be(tmp_path):
    deep = str(tmp_path / "not" / "yet")
    assert around.disk(Doctor(store=deep, disk_gb=0)).verdict == "ok"
    found = around.disk(Doctor(store=deep, disk_gb=1e6))
    assert (found.verdict, deep in found.said) == ("fail", True)


def test_a_store_is_left_as_it_was_or_refused(tmp_path):
    assert around.store(Doctor(store=str(tmp_path / "store"))).verdict == "ok"
    assert not list((tmp_path / "store").iterdir())
    (tmp_path / "file").touch()
    found = around.store(Doctor(store=str(tmp_path / "file" / "store")))
    assert (found.verdict, "cannot be written" in found.said) == ("fail", True)
    assert around.store(Doctor(store="ftp://place")).verdict == "fail"


def test_a_bucket_is_written_to_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RELIC_CACHE", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="doctors")
        assert around.store(Doctor(store="s3://doctors/runs")).verdict == "ok"
        assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="doctors")
        found = around.store(Doctor(store="s3://nobodys/runs"))
    assert (found.verdict, "NoSuchBucket" in found.said) == ("fail", True)


@pytest.fixture
def server() -> Iterator[str]:
    """A server that knows /health only."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_mlflow_answers(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/")
    assert around.mlflow(Doctor()).verdict == "ok"


@pytest.mark.parametrize("place", ["http://127.0.0.1:1", "{server}/other"])
def test_mlflow_that_does_not_answer_is_a_warning(place, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.format(server=server))
    found = around.mlflow(Doctor(timeout_s=2))
    assert (found.verdict, "does not answer" in found.said) == ("warn", True)


def test_mlflow_without_a_server_needs_none(monkeypatch):
    assert around.mlflow(Doctor()).verdict == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert around.mlflow(Doctor()).verdict == "ok"


def gpus(monkeypatch: pytest.MonkeyPatch, number: int, *, major: int = 9, free_gb: float = 79.0) -> None:
    about = SimpleNamespace(name="NVIDIA H100", major=major)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free_gb * 1e9, 80e9))


def test_missing_gpus_are_said(monkeypatch):
    gpus(monkeypatch, 0)
    assert within.devices(Doctor())[0].verdict == "warn"
    assert within.devices(Doctor(gpus=1))[0].verdict == "fail"
    gpus(monkeypatch, 2)
    assert [found.verdict for found in within.devices(Doctor(gpus=2))] == ["ok"] * 3
    assert within.devices(Doctor(gpus=4))[0].verdict == "fail"


def test_a_driver_whose_gpus_torch_does_not_see_is_a_fault(monkeypatch, tmp_path):
    gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27")
    monkeypatch.setattr(within, "DRIVER", tmp_path / "version")
    (found,) = within.devices(Doctor())
    assert (found.verdict, "driver 580.65.06" in found.said) == ("fail", True)


@pytest.mark.parametrize(("gpu", "verdict"), [({}, "ok"), ({"free_gb": 40.0}, "warn"), ({"major": 7}, "fail")])
def test_a_gpu_has_its_memory_free_and_bfloat16(gpu, verdict, monkeypatch):
    gpus(monkeypatch, 1, **gpu)
    assert within.devices(Doctor())[1].verdict == verdict


def test_one_process_has_nobody_to_compare_with():
    found = [within.versions(ALONE), within.all_reduce(ALONE, Doctor()), within.clocks(ALONE, Doctor())]
    assert [finding.verdict for finding in found] == ["ok"] * 3
    assert f"torch {torch.__version__.partition('+')[0]}" in found[0].said


def both(doctor: Doctor) -> tuple[list[Finding], bool]:
    return within.examined(doctor, [Finding(verdict="ok", name="node", said="")])


def test_two_processes_give_one_list_of_findings(monkeypatch):
    monkeypatch.setattr(within, "ELEMENTS", 1000)
    (first, first_says), (second, second_says) = ranks.run(both, 2, Doctor())
    assert (first_says, second_says) == (True, False)
    assert first == second
    assert [(found.name, bool(found.where)) for found in first] == [
        ("node", True), ("devices", True), ("versions", False), ("all-reduce", False), ("clocks", False)
    ]  # fmt: skip
    assert around.fit(first)


def wrong() -> list[Finding]:
    """Versions, a bandwidth and clocks that are not as they must be."""
    rank = int(os.environ["RANK"])
    within.version_of = lambda package: f"1.{rank if package == 'torch' else 0}"
    mesh = joined(Parallel())
    slow = within.all_reduce(mesh, Doctor(bus_gb_s=1e6))
    return [within.versions(mesh), slow, within.clocks(mesh, Doctor(), clock=lambda: time.time() + 60 * rank)]


def test_processes_that_do_not_fit_together_are_told():
    versions, slow, clocks = ranks.run(wrong, 2)[0]
    assert [found.verdict for found in (versions, slow, clocks)] == ["fail"] * 3
    assert versions.said == "torch is 1.0 in process 0, 1.1 in process 1; all must have the same"
    assert slow.said.startswith("gloo, 2 processes, 64 MiB: algorithm ")
    assert slow.said.endswith("1e+06 GB/s are needed")
    assert clocks.said.startswith("clocks are 60.")


def test_a_process_that_meets_nobody_says_so(monkeypatch):
    for name, value in {
        "WORLD_SIZE": 2,
        "RANK": 1,
        "LOCAL_RANK": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    found, says = within.examined(Doctor(timeout_s=1), [])
    assert says
    assert (found[-1].verdict, found[-1].name) == ("fail", "processes")
    assert "process 1 of 2" in found[-1].said


def test_the_command_prints_lines_or_json_and_ends_by_the_verdicts(tmp_path, capsys):
    here = ["doctor", "--store", str(tmp_path), "--shm-gb", "0", "--disk-gb", "0"]
    assert command.main(here) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["shm", "disk", "store", "mlflow"]
    assert command.main([*here, "--gpus", "99", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["fit"] is False
    assert [found["name"] for found in said["findings"] if found["verdict"] == "fail"] == ["devices"]


@pytest.mark.parametrize("dials", [{"gpus": -1}, {"gpu_free_share": 2}, {"shm_gb": -1}, {"timeout_s": 0}])
def test_wrong_dials_are_refused(dials):
    with pytest.raises(ValueError, match=f"{next(iter(dials))} "):
        Doctor(**dials)
