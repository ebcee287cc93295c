"""Checkpoints: what was saved by any number of processes comes back, to any number; a kill leaves a whole one."""

import errno
import hashlib
import json
import os
import signal
import threading
from pathlib import Path

import boto3
import buckets
import pytest
import ranks
import torch
from boto3.s3.transfer import TransferConfig
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file
from torch import Tensor

from relic import __main__ as command
from relic import artifacts, object_store, place
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.parallel.mesh import Mesh
from relic.place import Folder
from relic.tracking import Run
from relic.train import checkpoint, saved
from relic.train.checkpoint import Checkpoints
from relic.train.config import Checkpointing, Teacher
from relic.train.fragments import Fragment, Part, Whole, gap, shared
from relic.train.watch import Watch

OFTEN = Checkpointing(every_s=-1)
SHAPES = {"weights/a": (5, 7), "weights/b": (11,), "exp_avg/a": (5, 7), "step": ()}


def values(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtypes = {"weights/b": torch.bfloat16, "exp_avg/a": torch.float64}
    return {
        name: torch.randn(shape, generator=generator).to(dtypes.get(name, torch.float32))
        for name, shape in SHAPES.items()
    }


class Cut:
    """The shard of one process of flattened tensors, as ZeRO cuts them; bounds fall anywhere."""

    def __init__(self, tensors: dict[str, Tensor], rank: int, world: int):
        self.shards = {}
        for name, value in tensors.items():
            first, last = (value.numel() * one // world for one in (rank, rank + 1))
            self.shards[name] = tuple(value.shape), first, value.flatten()[first:last].clone()

    def fragments(self) -> list[Fragment]:
        return [Fragment(f"cut/{name}", *shard, False) for name, shard in self.shards.items()]

    def restored(self) -> None:
        pass


def checkpoints(where: Path | str, tensors: dict[str, Tensor], **dials) -> Checkpoints:
    return Checkpoints(str(where), [Whole("student", tensors)], Mesh(), Checkpointing(every_s=-1, **dials))


def written(where: Path | str, *steps: int, **dials) -> list[str]:
    """The folders there are after saves of `values(step)`."""
    tensors = values(0)
    saving = checkpoints(where, tensors, **dials)
    saving.load()
    for step in steps:
        for name, value in values(step).items():
            tensors[name].copy_(value)
        saving.save(step)
    saving.close()
    return sorted({saved.folder_of(file) for file in saving.place.files()})


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


def restored(where: Path | str) -> tuple[int, dict[str, Tensor]]:
    tensors = values(99)
    return checkpoints(where, tensors).load(), tensors


# Saved and restored


def test_what_was_saved_comes_back(tmp_path):
    written(tmp_path, 7)
    step, tensors = restored(tmp_path)
    assert step == 7
    assert same(tensors, values(7))


def test_nothing_saved_means_step_zero(tmp_path):
    step, tensors = restored(tmp_path / "nothing")
    assert step == 0
    assert same(tensors, values(99))


def test_facts_come_back_with_the_step(tmp_path):
    saving = Checkpoints(str(tmp_path), [], Mesh(), OFTEN, facts={"stage": 0, "seed": 3})
    saving.facts["stage"] = 2
    saving.save(4)
    saving.close()
    again = Checkpoints(str(tmp_path), [], Mesh(), OFTEN, facts={"stage": 0})
    assert (again.load(), again.facts) == (4, {"stage": 2, "seed": 3})


def test_memory_in_another_order_than_its_elements_comes_back(tmp_path):
    def weight(seed: int) -> Tensor:
        return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))

    before = {"conv": weight(0).to(memory_format=torch.channels_last)}
    saving = checkpoints(tmp_path, before)
    saving.save(1)
    saving.close()
    after = {"conv": weight(1).to(memory_format=torch.channels_last)}
    checkpoints(tmp_path, after).load()
    assert torch.equal(after["conv"], weight(0))
    assert after["conv"].is_contiguous(memory_format=torch.channels_last)
    found, _ = saved.newest(Folder(tmp_path), Mesh())
    assert torch.equal(found.whole("student/conv"), weight(0))


def test_each_file_is_plain_safetensors(tmp_path):
    (name,) = written(tmp_path, 3)
    found = load_file(tmp_path / name / "rank-0000.safetensors")
    assert same(found, {f"student/{key}": value for key, value in values(3).items()})


def test_it_saves_only_when_due(tmp_path):
    saving = Checkpoints(str(tmp_path), [], Mesh(), Checkpointing(every_s=3600))
    with Watch(Run.silent(), Mesh(), folder=None, stages=[("steps", 9)]) as watch:
        saving.after(1, watch)
        saving.close()
        assert saving.place.files() == []
        saving.saved_at -= 3600
        saving.after(2, watch)
    saving.close()
    assert saving.load() == 2


def test_other_tensors_are_named(tmp_path):
    written(tmp_path, 1)
    for wrong, said in (
        ({"weights/c": torch.zeros(1), **values(0)}, "has no tensor student/weights/c"),
        ({name: value for name, value in values(0).items() if name != "step"}, "also has the tensor student/step"),
        ({**values(0), "step": torch.zeros(2)}, r"has student/step as \(\(\), torch.float32\), and not as \(\(2,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            checkpoints(tmp_path, wrong).load()


# Several processes


def cut_and_saved(where: str) -> list[str]:
    mesh = meshes.joined(Parallel())
    parts: list[Part] = [Cut(values(5), mesh.rank, mesh.world), Whole("all", values(6))]
    saving = Checkpoints(where, parts, mesh, OFTEN)
    saving.save(5)
    saving.close()
    mesh.wait()
    return [sorted(load_file(path)) for path in sorted(Path(where).glob("*/*.safetensors"))][mesh.rank]


def cut_and_restored(where: str) -> bool:
    mesh = meshes.joined(Parallel())
    cut, whole = Cut(values(0), mesh.rank, mesh.world), values(0)
    wanted = Cut(values(5), mesh.rank, mesh.world)
    step = Checkpoints(where, [cut, Whole("all", whole)], mesh, OFTEN).load()
    pairs = [(cut.shards[name][2], wanted.shards[name][2]) for name in SHAPES]
    return step == 5 and same(whole, values(6)) and all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory) -> str:
    """A place with a checkpoint that four processes saved, each its shards."""
    where = tmp_path_factory.mktemp("four").as_posix()
    files = ranks.run(cut_and_saved, 4, where)
    assert all(any(name.startswith("all/") for name in names) for names in files)
    return where


@pytest.mark.parametrize("world", [4, 2])
def test_what_four_processes_saved_is_read_by(world, of_four):
    assert ranks.run(cut_and_restored, world, of_four) == [True] * world


def test_what_four_processes_saved_is_read_by_one(of_four):
    assert cut_and_restored(of_four)


def faults_of_several(where: str) -> tuple[int, list[str]]:
    mesh = meshes.joined(Parallel())
    found, passed = saved.newest(Folder(Path(where)), mesh)
    assert found is not None
    return found.step, passed


def test_all_processes_take_the_same_one_when_a_file_of_one_is_damaged(tmp_path):
    ranks.run(saved_by_several, 2, str(tmp_path))
    newest = max(tmp_path.iterdir())
    damage(newest / "rank-0001.safetensors")
    assert ranks.run(faults_of_several, 2, str(tmp_path)) == [(1, [newest.name])] * 2


def saved_by_several(where: str) -> None:
    mesh = meshes.joined(Parallel())
    saving = Checkpoints(where, [Whole("all", values(0))], mesh, OFTEN)
    for step in (1, 2):
        saving.save(step)
    saving.close()


def test_what_all_hold_is_written_once_and_evenly():
    parts = Whole("all", {"large": torch.zeros(1000), "small": torch.zeros(3, dtype=torch.bfloat16)}).fragments()
    mine = [shared(parts, rank, 3) for rank in range(3)]
    sizes = [sum(fragment.data.nbytes for fragment in each) for each in mine]
    assert sum(sizes) == 4006
    assert max(sizes) - min(sizes) <= 8
    pieces = [[f.start, f.data.numel()] for each in mine for f in each if f.name == "all/large"]
    assert gap((1000,), pieces) is None
    assert sum(count for _, count in pieces) == 1000


# Damage


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lacking(path: Path) -> None:
    """Takes a piece of a tensor out of the manifest, as its writer would have, had it not been there."""
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest["files"][0]["tensors"]["student/weights/b"]["pieces"][0][1] = 10
    path.write_text(json.dumps({**manifest, "sha256": artifacts.digest(manifest)}))


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("rank-0000.safetensors", damage, "rank-0000.safetensors has another sha256 than manifest.json says"),
        ("rank-0000.safetensors", cut_short, "rank-0000.safetensors has 763 bytes, not 766"),
        ("rank-0000.safetensors", Path.unlink, "rank-0000.safetensors is missing"),
        ("manifest.json", Path.unlink, "it has no manifest.json, so its writing was cut off"),
        ("manifest.json", cut_short, "manifest.json is damaged (Unterminated"),
        ("manifest.json", lambda path: path.write_text("{}"), "manifest.json is damaged (it does not have its own"),
        ("manifest.json", lacking, "no file of manifest.json holds element 10 of student/weights/b"),
    ],
)
def test_a_damaged_one_is_said_and_an_older_one_taken(tmp_path, capsys, file, harm, said):
    _, newest = written(tmp_path, 1, 2)
    harm(tmp_path / newest / file)
    step, tensors = restored(tmp_path)
    assert step == 1
    assert same(tensors, values(1))
    assert f"the checkpoint {newest} in {tmp_path} is passed over for an older one: {said}" in capsys.readouterr().out


def test_all_damaged_means_step_zero_and_untouched_tensors(tmp_path):
    for name in written(tmp_path, 1, 2):
        damage(tmp_path / name / "rank-0000.safetensors")
    step, tensors = restored(tmp_path)
    assert step == 0
    assert same(tensors, values(99))


def killed_while_writing(where: str) -> None:
    tensors = values(2)
    saving = checkpoints(where, tensors)
    saving.load()

    class Half(Folder):
        def write(self, name: str, *parts: memoryview) -> str:
            super().write(name, *(part[: len(part) // 2] for part in parts))
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    saving.place = Half(Path(where))
    saving.save(2)
    saving.close()


def test_a_kill_in_the_middle_of_writing_leaves_the_older_one(tmp_path):
    written(tmp_path, 1)
    process = ranks.CONTEXT.Process(target=killed_while_writing, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    step, tensors = restored(tmp_path)
    assert step == 1
    assert same(tensors, values(1))


# Retention


def steps_kept(where: Path | str, *steps: int, **dials) -> list[int]:
    return [saved.step_of(name) for name in written(where, *steps, **dials)]


def test_the_last_and_every_so_many_steps_are_kept(tmp_path):
    assert steps_kept(tmp_path / "a", *range(1, 8)) == [6, 7]
    assert steps_kept(tmp_path / "b", *range(1, 8), keep_last=1, keep_every=3) == [3, 6, 7]


def test_halves_and_damaged_ones_go_and_the_newest_whole_one_stays(tmp_path):
    _, second = written(tmp_path, 4, 9)
    damage(tmp_path / second / "rank-0000.safetensors")
    (tmp_path / "0000000008-0badcafe-0").mkdir()
    (tmp_path / "0000000008-0badcafe-0" / ".rank-0000.safetensors.new").write_text("half")
    assert steps_kept(tmp_path, 5) == [4, 5]
    assert restored(tmp_path)[0] == 5


def test_what_another_process_writes_already_is_not_removed(tmp_path):
    saving = checkpoints(tmp_path, values(1))
    saving.load()
    saving.place.write(f"0000000002-{saving.attempt}-1/rank-0001.safetensors", memoryview(b"next"))
    saving.save(1)
    saving.close()
    assert [saved.step_of(path.name) for path in sorted(tmp_path.iterdir())] == [1, 2]


# The thread


def blocked(saving: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, nothing is written."""
    event, write = threading.Event(), saving.place.write
    monkeypatch.setattr(saving.place, "write", lambda *given: event.wait(60) and write(*given))
    return event


def test_a_save_returns_before_it_is_written_and_what_changes_then_is_not_saved(tmp_path, monkeypatch):
    tensors = values(1)
    saving = checkpoints(tmp_path, tensors)
    event = blocked(saving, monkeypatch)
    saving.save(1)
    assert saving.place.files() == []
    for value in tensors.values():
        value.zero_()
    event.set()
    saving.close()
    step, found = restored(tmp_path)
    assert step == 1
    assert same(found, values(1))


def test_a_save_waits_for_the_last_one_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "PATIENCE_S", 0)
    saving = checkpoints(tmp_path, values(1), keep_last=9)
    for step in range(3):
        saving.save(step)
        event = blocked(saving, monkeypatch)
        threading.Timer(0.2, event.set).start()
    saving.close()
    assert saving.seconds > 0.1
    assert capsys.readouterr().out.count("the last one is still being written") == 1
    assert len(list(tmp_path.iterdir())) == 3


def full(*_) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_at_the_next_save_and_nothing_is_touched(tmp_path, monkeypatch):
    written(tmp_path, 1)
    tensors = values(2)
    saving = checkpoints(tmp_path, tensors)
    with monkeypatch.context() as patched:
        patched.setattr(saving.place, "write", full)
        saving.save(2)
        saving.writer.join()
    with pytest.raises(OSError, match="No space left") as raised:
        saving.save(3)
    assert raised.value.__notes__ == [f"while the checkpoint 0000000002-{saving.attempt}-0 was written to {tmp_path}"]
    assert same(tensors, values(2))
    saving.save(3)
    saving.close()
    assert restored(tmp_path)[0] == 3


def test_a_failure_of_the_last_save_is_said_at_the_end(tmp_path, monkeypatch):
    saving = checkpoints(tmp_path, values(1))
    monkeypatch.setattr(saving.place, "write", full)
    saving.save(1)
    with pytest.raises(OSError, match="No space left"):
        saving.close()


# S3


@pytest.fixture
def bucket():
    with buckets.bucket("trained") as found:
        yield f"{found}/tiny"


def test_s3_gives_back_what_was_saved_and_keeps_the_last(bucket):
    assert steps_kept(bucket, 1, 2, 3) == [2, 3]
    step, tensors = restored(bucket)
    assert step == 3
    assert same(tensors, values(3))


def test_s3_damage_is_found(bucket, capsys):
    newest = written(bucket, 1, 2)[-1]
    name = f"tiny/{newest}/rank-0000.safetensors"
    boto3.client("s3").put_object(Bucket="trained", Key=name, Body=bytes(766))
    assert restored(bucket)[0] == 1
    assert f"{bucket} is passed over for an older one: rank-0000.safetensors has another" in capsys.readouterr().out


def test_s3_takes_a_large_file_in_parts(bucket, monkeypatch):
    monkeypatch.setattr(object_store, "PARTS", TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=2**20))
    data = os.urandom(11 * 2**20)
    where = place.opened(bucket)
    assert where.write("1/file", memoryview(data)) == hashlib.sha256(data).hexdigest()
    assert where.measured("1/file") == (len(data), hashlib.sha256(data).hexdigest())
    assert where.read("1/file", 7 * 2**20 - 3, 7 * 2**20 + 4) == data[7 * 2**20 - 3 : 7 * 2**20 + 4]


def test_small_parts_of_an_object_in_s3_are_few_requests(bucket, monkeypatch):
    monkeypatch.setattr(object_store, "READ_AHEAD", 2**10)
    data = os.urandom(5 * 2**10 + 17)
    where = place.opened(bucket)
    where.write("1/file", memoryview(data))
    asked = []
    monkeypatch.setattr(where, "_get", lambda name, start, stop: asked.append(start) or data[start:stop])
    where.piece.cache_clear()
    for start in range(0, len(data), 100):
        assert where.read("1/file", start, start + 100) == data[start : start + 100]
    assert asked == [0, 1024, 2048, 3072, 4096, 5120]


def s3_by_several(endpoint: str) -> bool:
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    os.environ |= dict(zip(names, (endpoint, "testing", "testing", "us-east-1"), strict=True))
    mesh = meshes.joined(Parallel())
    cut, wanted = (Cut(values(seed), mesh.rank, mesh.world) for seed in (5, 5))
    saving = Checkpoints("s3://trained/several", [cut], mesh, OFTEN)
    saving.save(5)
    saving.close()
    mesh.wait()
    for _, _, data in cut.shards.values():
        data.zero_()
    assert saving.load() == 5
    return all(torch.equal(cut.shards[name][2], wanted.shards[name][2]) for name in SHAPES)


def test_s3_serves_several_processes(monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        given = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", **given).create_bucket(Bucket="trained")
        assert ranks.run(s3_by_several, 2, f"http://{host}:{port}") == [True, True]
    finally:
        server.stop()


def test_a_place_that_is_none_is_a_sentence(bucket):
    with pytest.raises(ValueError, match="nothing can be kept in 'gs://a'; give a local folder or s3://BUCKET/PREFIX"):
        place.opened("gs://a")
    with pytest.raises(ValueError, match="s3://nowhere/a cannot be used: NoSuchBucket"):
        checkpoints("s3://nowhere/a", {}).load()


# Beside


def test_a_part_is_exported_as_a_plain_file(of_four, tmp_path, capsys):
    given = ["weights", "checkpoint", of_four, "--part", "all/weights", "--out", str(tmp_path)]
    assert command.main(given) == 0
    found = load_file(tmp_path / "model.safetensors")
    assert same(found, {"a": values(6)["weights/a"], "b": values(6)["weights/b"]})
    assert not (tmp_path / "config.json").exists()
    assert command.main([*given, "--part", "ema"]) == 2
    assert "allowed are all/exp_avg, all/step, all/weights, cut/exp_avg" in capsys.readouterr().err


def test_trainings_that_share_a_place_are_told_apart():
    out = Path("store/teacher/0123.partial")
    assert OFTEN.place(out) == "store/teacher/0123.partial/.checkpoints"
    assert Checkpointing(to="s3://a/b/").place(out, "causal") == "s3://a/b/teacher/0123/causal"


def test_dials_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="keep_last is 0 and keep_every 0; allowed are at least 1 and at least 0"):
        Teacher(checkpoint=Checkpointing(keep_last=0))
