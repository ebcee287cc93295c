"""Work on Ray is that of one process, bit for bit, also where a worker is killed. One cluster of two CPUs for all."""

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray_work import dies, squares
from test_shard import SMALL, Killed, Killing, write_clips

from relic import steps, stores
from relic.data import curate, on_ray, shard
from relic.data.config import Curate, Shard
from relic.mistakes import UserError
from relic.model import weights
from relic.model.codec import Codec
from relic.tracking import Run

pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:ray\.data\.context")  # Ray warns of its own defaults
WALKS = Curate(source="rooms", train=5, known=1, unseen=0, num_frames=13)
SMALL_BATCHES = Shard(batch=2, shard_bytes=20_000)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
        on_ray.ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
        yield
        on_ray.ray.shutdown()


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    weights.save(Codec(SMALL), folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), {f"walk-{i}": 13 for i in range(7)})


def files(folder: Path) -> dict[str, bytes]:
    """Every file by its name; shard's journal counts, curate's hidden entries are its own to resume from."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sharded(clips: Path, codec: Path, out: Path, ray: str = "local", run: Run | None = None) -> dict[str, bytes]:
    out.mkdir(exist_ok=True)
    shard.main(SMALL_BATCHES, clips=[clips], codec=[codec], out=out, run=run or Run.silent(), ray=ray)
    return files(out)


def curated(out: Path, ray: str = "local", run: Run | None = None) -> dict[str, bytes]:
    out.mkdir(exist_ok=True)
    curate.main(WALKS, out=out, run=run or Run.silent(), ray=ray)
    return files(out)


def test_shards_are_those_of_one_process_though_a_worker_is_killed(clips, codec, tmp_path, monkeypatch):
    expected = sharded(clips, codec, tmp_path / "alone", ray="")
    (mark := tmp_path / "mark").touch()
    monkeypatch.setattr(shard, "encoder", partial(dies, mark, shard.encoder))
    assert sharded(clips, codec, tmp_path / "ray") == expected
    assert not mark.exists()
    assert len(expected) == 4  # two shards, the index, the journal


def test_clips_are_those_of_one_process_though_a_worker_is_killed(tmp_path, monkeypatch):
    expected = curated(tmp_path / "alone", ray="")
    (mark := tmp_path / "mark").touch()
    monkeypatch.setattr(curate, "maker", partial(dies, mark, curate.maker))
    assert curated(tmp_path / "ray") == expected
    assert not mark.exists()
    assert sum(name.endswith(".mp4") for name in expected) == 6


def test_shards_go_on_behind_what_a_killed_call_has_written(clips, codec, tmp_path, monkeypatch):
    expected = sharded(clips, codec, tmp_path / "alone", ray="")
    with pytest.raises(Killed):
        sharded(clips, codec, tmp_path / "killed", ray="", run=Killing(2))
    read: list[int] = []
    results = on_ray.results
    monkeypatch.setattr(on_ray, "results", lambda *given, **by: read.append(len(given[2])) or results(*given, **by))
    assert sharded(clips, codec, tmp_path / "killed") == expected
    assert read == [2]  # batches of four


def test_results_come_in_order_from_workers_with_our_number_of_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert list(on_ray.results(squares, (2,), range(20), address="local")) == [(2 * n**2, 2) for n in range(20)]


class Begun:
    """The actor that counts attempts, without a process."""

    def __init__(self, allowed: int = 1) -> None:
        attempts = on_ray.Attempts(allowed)
        self.begin = SimpleNamespace(remote=lambda number: on_ray.ray.put(attempts.begin(number)))


@pytest.mark.parametrize(
    ("factor", "number", "said"),
    [(1, -2, "-2 is negative; allowed is 0 or more"), (0, 2, "factor is 0; it must be more")],
)
def test_what_a_worker_raises_is_raised_here(factor, number, said):
    row = on_ray.Worker(squares, (factor,), 1, Begun())({"number": 0, "item": pickle.dumps(number)})
    with pytest.raises(ValueError, match=f"^{said}$") as caught:
        on_ray.value_of(row)
    assert "ray_work.py" in str(caught.value.__cause__)  # where it was raised there


def test_a_piece_that_ends_its_worker_again_and_again_ends_the_work():
    worker = on_ray.Worker(squares, (1,), 1, Begun(allowed=2))
    rows = [worker({"number": 7, "item": pickle.dumps(3)}) for _ in range(3)]
    assert [on_ray.value_of(row) for row in rows[:2]] == [(9, 1), (9, 1)]
    with pytest.raises(RuntimeError, match="piece 7 has ended its worker 2 times"):
        on_ray.value_of(rows[2])
    assert on_ray.value_of(worker({"number": 8, "item": pickle.dumps(3)})) == (9, 1)


def test_what_reading_raises_goes_past_the_worker(tmp_path):
    row = on_ray.mapped(Path.read_bytes, {"number": 0, "item": pickle.dumps(tmp_path / "missing")})
    with pytest.raises(FileNotFoundError, match="missing"):
        on_ray.value_of(on_ray.Worker(squares, (1,), 1, Begun())(row))


def test_a_worker_that_fits_on_no_machine_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(UserError, match="no machine of the Ray cluster 'local' has the 3 CPUs"):
        next(on_ray.results(squares, (1,), [1], address="local"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "--ray is 'ray://head:10001'; it must be HOST:PORT, auto or local"),
        ("head", "--ray is 'head'"),
        ("127.0.0.1:1", "there is no Ray cluster at '127.0.0.1:1' .*refused"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address, said, monkeypatch):
    monkeypatch.setattr(on_ray.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=said):
        next(on_ray.results(squares, (1,), [1], address=address))


def test_without_ray_a_sentence_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "relic.data.on_ray")
    monkeypatch.delattr("relic.data.on_ray")
    with pytest.raises(UserError, match=r"--ray needs ray; install the extra: pip install 'relic\[ray\]'"):
        curated(tmp_path)


def test_ray_is_no_part_of_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIC_PARENT_RUN", "runner")
    monkeypatch.setattr(curate, "made_on_ray", lambda cfg, stretches, out, address: pytest.fail("it was made already"))
    alone = steps.perform(steps.STEPS["curate"], WALKS, store=str(tmp_path), inputs={})
    assert steps.perform(steps.STEPS["curate"], WALKS, store=str(tmp_path), inputs={}, ray="auto") == alone
    assert "ray" not in stores.read_manifest(alone)["parameters"]
