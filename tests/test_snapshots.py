"""Snapshots of walks: what is saved comes back, only to one server, and only as it was written."""

import itertools
import json
import resource
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from buckets import bucket
from fake_world import FakeWalk, FakeWorld

from relic import object_store, place
from relic.serve.access import Access
from relic.serve.snapshots import Snapshots, Unusable
from relic.serve.world import State

IMAGE = np.full((32, 48, 3), 7, np.uint8)
SECRET = b"s" * 32
FACTS = {"principal": "Zoë", "made": 12, "begun": 1.0e9 + 0.1}
STATE = State({"x": torch.arange(6.0), "fp8": torch.ones(3).to(torch.float8_e4m3fn)}, {"seed": 3, "pose": [0.1, 2.0]})


@pytest.fixture(params=["folder", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield tmp_path.as_posix()
        return
    with bucket("walks") as found:
        yield f"{found}/here"


def snapshots(where: str, *, export: str = "e1", secret: bytes = SECRET, lasts_s: float = 60.0) -> Snapshots:
    sign = Access({}, 60.0, secret).sign
    return Snapshots(place.opened(where), export=export, sign=sign, lasts_s=lasts_s)


def taken_on(ours: Snapshots, identity: str) -> State | None:
    found = ours.find(identity)
    assert found is not None
    claimed = ours.claim(found, "one")
    return claimed and claimed[0]


def changed(where: str, name: str, change: Callable[[bytes], bytes]) -> None:
    """Another content of a file of the only snapshot."""
    kept = place.opened(where)
    (found,) = [file for file in kept.files() if file.endswith(name)]
    kept.write(found, memoryview(change(kept.read(found))))


def test_a_place_is_tried_before_it_is_needed_and_left_as_it_was(where, tmp_path):
    place.check(where)
    assert not place.opened(where).files()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"nothing can be kept in .*file: Not a directory; give a folder"):
        place.check(str(tmp_path / "file"))


def test_what_is_saved_comes_back_and_is_gone_when_it_is_removed(where):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    found = snapshots(where).find("e1.walk")
    assert found is not None
    assert found.session == FACTS
    state = taken_on(snapshots(where), "e1.walk")
    assert state is not None
    assert state.facts == STATE.facts
    assert all(torch.equal(state.tensors[name].float(), x.float()) for name, x in STATE.tensors.items())
    assert state.tensors["fp8"].dtype == torch.float8_e4m3fn
    ours.remove(found.folder)
    assert ours.place.files() == []
    assert ours.find("e1.walk") is None


def test_of_two_servers_one_goes_on(where):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    found = ours.find("e1.walk")
    assert found is not None
    assert ours.claim(found, "first") is not None
    assert snapshots(where).claim(found, "second") is None


def test_who_comes_when_all_is_removed_does_not_go_on(where):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    late = ours.find("e1.walk")
    assert late is not None
    ours.remove(late.folder)
    assert ours.claim(late, "late") is None


def test_of_many_at_once_one_goes_on(tmp_path):
    ours = snapshots(tmp_path.as_posix())
    ours.save("e1.walk", STATE, FACTS)
    found, claimed = ours.find("e1.walk"), []
    threads = [threading.Thread(target=lambda: claimed.append(ours.claim(found, "one"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(state is not None for state in claimed) == 1


def test_the_newest_of_a_session_counts(where, monkeypatch):
    ours = snapshots(where)
    clock = itertools.count(2e9, 1.0)
    monkeypatch.setattr("relic.serve.snapshots.time.time", lambda: next(clock))
    for made in (1, 2, 3):
        ours.save("e1.walk", STATE, {"made": made})
    found = ours.find("e1.walk")
    assert found is not None
    assert found.session == {"made": 3}
    assert ours.find("e1.other") is None
    assert ours.find("e1") is None


def test_a_snapshot_goes_with_all_older_ones_of_its_session_and_no_other(where, monkeypatch):
    ours = snapshots(where)
    clock = itertools.count(2e9, 1.0)
    monkeypatch.setattr("relic.serve.snapshots.time.time", lambda: next(clock))
    other = ours.save("e1.walk-2", STATE, FACTS)
    _, second, third = (ours.save("e1.walk", STATE, FACTS) for _ in range(3))
    ours.remove(second)
    assert {name.rpartition("/")[0] for name in ours.place.files()} == {other, third}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("manifest.json", lambda data: data.replace(b'"made": 12', b'"made": 13'), "is not signed by this server's"),
        ("manifest.json", lambda data: data[:-9], "manifest is damaged"),
        ("manifest.json", lambda data: b"[" * 100_000, "manifest is damaged"),
        ("manifest.json", lambda data: b"[]", "is not signed"),
        ("manifest.json", lambda data: b'{"signature": "\\ud800"}', "is not signed"),
        ("manifest.json", lambda data: json.dumps({**json.loads(data), "signature": 1}).encode(), "is not signed"),
        ("state.safetensors", lambda data: data[:-1] + b"\1", "the saved walk is damaged"),
        ("state.safetensors", lambda data: data + b"\0", "the saved walk is damaged"),
    ],
)
def test_what_was_changed_is_refused_with_a_sentence(where, name, change, said):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    changed(where, name, change)
    with pytest.raises(Unusable, match=said):
        taken_on(ours, "e1.walk")


def test_a_snapshot_of_another_session_is_refused(tmp_path):
    ours = snapshots(tmp_path.as_posix())
    ours.save("e1.walk", STATE, FACTS)
    (tmp_path / "e1.walk").rename(tmp_path / "e1.mine")
    with pytest.raises(Unusable, match="is not signed"):
        ours.find("e1.mine")


def test_another_export_and_another_secret_refuse(where):
    snapshots(where).save("e1.walk", STATE, FACTS)
    with pytest.raises(Unusable, match=r"is of another model \(e1\); start another one"):
        snapshots(where, export="e2").find("e1.walk")
    with pytest.raises(Unusable, match="is not signed by this server's secret"):
        snapshots(where, secret=b"t" * 32).find("e1.walk")


def test_what_nobody_came_back_for_is_swept_and_nothing_else(where, monkeypatch):
    ours = snapshots(where)
    ours.place.write("e1.walk/readme", memoryview(b"not a snapshot"))
    ours.place.write("training/000000123/weights", memoryview(b"nor this"))
    ours.save("e1.walk", STATE, FACTS)
    assert ours.sweep() == 0
    later = time.time() + 61
    monkeypatch.setattr("relic.serve.snapshots.time.time", lambda: later)
    ours.save("e1.new", STATE, FACTS)
    assert ours.sweep() == 1
    assert {name.split("/")[0] for name in ours.place.files()} == {"e1.walk", "e1.new", "training"}
    assert ours.find("e1.walk") is None


def test_a_restored_walk_is_the_uninterrupted_one(where):
    def steps(walk: FakeWalk, seed: int) -> list[np.ndarray]:
        rows = np.random.default_rng(seed).random((4, 13))
        return [np.concatenate(part) for part in zip(*walk.step(rows), strict=True)]

    world, ours = FakeWorld(), snapshots(where)
    walk = world.open(IMAGE, "", 0)
    steps(walk, 0)
    ours.save("e1.walk", walk.state(), FACTS)
    state = taken_on(ours, "e1.walk")
    assert state is not None
    restored = FakeWorld().restore(state)
    for seed in (1, 2):
        for one, other in zip(steps(walk, seed), steps(restored, seed), strict=True):
            assert (one == other).all()


def test_what_cannot_be_read_is_not_claimed(where, monkeypatch):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    found = ours.find("e1.walk")
    assert found is not None
    monkeypatch.setattr(ours.place, "read", lambda *_: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(OSError, match="away"):
        ours.claim(found, "one")
    assert taken_on(snapshots(where), "e1.walk") is not None


def test_a_claim_for_which_the_disk_has_no_room_is_none(tmp_path):
    ours = snapshots(tmp_path.as_posix())
    ours.save("e1.walk", STATE, FACTS)
    found = ours.find("e1.walk")
    assert found is not None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(OSError, match="too large"):
            ours.take(found, "one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ours.take(found, "another") is not None


def test_a_claim_that_is_given_back_and_that_of_a_dead_server_are_void(where, monkeypatch):
    ours = snapshots(where)
    ours.save("e1.walk", STATE, FACTS)
    found = ours.find("e1.walk")
    assert found is not None
    claim = ours.take(found, "one")
    assert claim is not None
    assert ours.take(found, "other") is None
    ours.give_back(claim)
    assert ours.take(found, "other") is not None
    assert ours.take(found, "third") is None
    later = time.time() + 16
    monkeypatch.setattr("relic.serve.snapshots.time.time", lambda: later)
    assert ours.take(found, "third") is not None
    assert ours.take(found, "fourth") is None


def test_parts_of_memory_are_read_as_one_file():
    file = object_store.Memory([memoryview(b"abc"), memoryview(b""), memoryview(b"defgh")])
    assert [file.read(5), file.read(1), file.read(), file.read(1)] == [b"abcde", b"f", b"gh", b""]


def test_no_session_is_called_as_a_path(tmp_path):
    assert snapshots(tmp_path.as_posix()).find("..") is None


def test_a_walk_is_saved_and_read_without_a_second_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("relic.serve.snapshots.READ", 2**20)
    ours, data = snapshots(tmp_path.as_posix()), torch.ones(2**24)  # 64 MiB
    tracemalloc.start()
    ours.save("e1.walk", State({"x": data}, {}), FACTS)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.reset_peak()
    state = taken_on(ours, "e1.walk")
    assert tracemalloc.get_traced_memory()[1] < 2**22  # beside the tensors, which are torch's own
    assert state is not None
    assert torch.equal(state.tensors["x"], data)
    tracemalloc.stop()
