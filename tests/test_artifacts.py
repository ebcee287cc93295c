import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import moto
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError
from botocore.response import StreamingBody
from urllib3.exceptions import ProtocolError, SSLError

from relic import artifacts, stores
from relic.artifacts import LocalStore
from relic.mistakes import UserError
from relic.verdict import Unreachable

KEY = "0123456789abcdef0123"
FACTS = {"step": "grow", "version": 1, "key": KEY, "parameters": {}, "inputs": {}, "summary": {}, "seconds": 1.0}


def make(store: LocalStore, text: str = "grown", key: str = KEY) -> Path:
    """A finished artifact of two files."""
    with store.working("grow", key) as out:
        (out / "deep").mkdir()
        (out / "deep" / "a.txt").write_text(text)
        (out / "b.bin").write_bytes(bytes(1000))
        store.commit("grow", key, {**FACTS, "key": key})
    return store.folder("grow", key)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    stores.fetch.cache_clear()
    return LocalStore(tmp_path / "store")


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("RELIC_CACHE", str(tmp_path / "one"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    stores.fetch.cache_clear()
    stores._s3_store.cache_clear()
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="walks")
        yield stores.open_store("s3://walks/tiny")
    stores._s3_store.cache_clear()


# Files


def test_written_json_reads_back_and_nan_becomes_null(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {"x": [1.5, float("nan")], "é": ("t",)})
    assert artifacts.read_json(tmp_path / "a.json") == {"x": [1.5, None], "é": ["t"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        artifacts.write_json(path, 2)
    assert artifacts.read_json(path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_json_that_was_cut_short_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"clips": [')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON .* damaged or cut short"):
        artifacts.read_json(tmp_path / "a.json")


# Keys


def test_key_depends_on_step_version_parameters_and_inputs() -> None:
    base = ("grow", 1, {"rate": 1}, {"seeds": [f"/s/count/{KEY}"]})
    others = [
        ("shrink", *base[1:]), ("grow", 2, *base[2:]), ("grow", 1, {"rate": 2}, base[3]),
        ("grow", 1, {"rate": 1}, {"seeds": [f"/s/count/{KEY[::-1]}"]}), ("grow", 1, {"rate": 1}, {}),
    ]  # fmt: skip
    keys = {artifacts.key(*values) for values in (base, *others)}
    assert len(keys) == 6
    assert all(len(key) == artifacts.KEY_LENGTH for key in keys)


def test_key_is_the_same_wherever_the_store_is() -> None:
    here, there = (artifacts.key("grow", 1, {}, {"a": [f"{root}/count/{KEY}"]}) for root in ("/tmp/x", "s3://b/p"))
    assert here == there


def test_what_is_no_artifact_uri_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'/tmp/walks' is not an artifact; it must be STORE/STEP/KEY"):
        stores.fetch("/tmp/walks")


def test_unknown_store_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'gs://walks' is not allowed; give a local folder or s3://BUCKET/PREFIX"):
        stores.open_store("gs://walks")


# Finishing and fetching


def test_artifact_is_there_only_after_commit(store: LocalStore) -> None:
    with store.working("grow", KEY) as out:
        (out / "a.txt").write_text("a")
        assert store.manifest("grow", KEY) is None
        with pytest.raises(UserError, match=r"is not a finished artifact: it has no manifest\.json"):
            stores.fetch(store.uri("grow", KEY))
        store.commit("grow", KEY, FACTS)
    assert stores.fetch(store.uri("grow", KEY)) == store.folder("grow", KEY)


def test_manifest_lists_every_file_but_hidden_ones(store: LocalStore) -> None:
    with store.working("grow", KEY) as out:
        (out / "a.txt").write_text("abc")
        (out / ".checkpoints" / "1").mkdir(parents=True)
        (out / ".checkpoints" / "1" / "manifest.json").write_text("{}")
        store.commit("grow", KEY, FACTS)
    manifest = stores.read_manifest(store.uri("grow", KEY))
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["files"] == {"a.txt": {"bytes": 3, "sha256": abc}}
    assert sorted(path.name for path in store.folder("grow", KEY).iterdir()) == ["a.txt", "manifest.json"]


def test_changed_file_is_found_and_named(store: LocalStore) -> None:
    folder = make(store)
    (folder / "deep" / "a.txt").write_text("grawn")
    with pytest.raises(UserError, match=r"deep/a\.txt has sha256 \w{64}; the manifest says \w{64}"):
        stores.fetch(store.uri("grow", KEY))


def test_file_cut_short_is_found_and_named(store: LocalStore) -> None:
    folder = make(store)
    os.truncate(folder / "b.bin", 900)
    with pytest.raises(UserError, match=r"b\.bin has 900 bytes; the manifest says 1000"):
        stores.fetch(store.uri("grow", KEY))


def test_missing_file_is_found_and_named(store: LocalStore) -> None:
    (make(store) / "b.bin").unlink()
    with pytest.raises(UserError, match=r"b\.bin is missing; the manifest lists it with 1000 bytes"):
        stores.fetch(store.uri("grow", KEY))


def test_unchanged_files_are_hashed_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store)
    monkeypatch.setattr(artifacts, "sha256", lambda path: pytest.fail(f"{path} was hashed again"))
    assert stores.fetch(store.uri("grow", KEY)).is_dir()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_store_that_may_only_be_read_is_read(store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (folder := make(store)).with_name(f"{KEY}.verified").unlink()

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(artifacts, "write_bytes", refuse)
    assert stores.fetch(store.uri("grow", KEY)) == folder


def test_uri_of_a_fetched_folder_is_its_uri(store: LocalStore) -> None:
    make(store)
    assert artifacts.uri_of(stores.fetch(store.uri("grow", KEY))) == store.uri("grow", KEY)


# Kills and races


def test_working_folder_outlives_a_kill_and_its_lock_does_not(store: LocalStore) -> None:
    script = (
        "import os, signal; from pathlib import Path; from relic.artifacts import LocalStore\n"
        f"with LocalStore(Path({str(store.root)!r})).working('grow', {KEY!r}) as out:\n"
        "    (out / 'half').write_text('done'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with store.working("grow", KEY) as out:
        assert (out / "half").read_text() == "done"


def test_killed_between_manifest_and_rename_is_finished_at_the_next_call(store: LocalStore) -> None:
    folder = make(store)
    folder.rename(store.partial("grow", KEY))
    with store.working("grow", KEY):
        assert store.manifest("grow", KEY) is not None
    assert folder.is_dir()


def test_two_writers_work_one_after_the_other(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with store.working("grow", KEY):
            order.append("second" if store.manifest("grow", KEY) else "second found nothing")

    with store.working("grow", KEY) as out:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
        (out / "a").write_text("a")
        store.commit("grow", KEY, FACTS)
    thread.join()
    assert order == ["first", "second"]
    assert "waiting: another process is making grow/" in capsys.readouterr().out


def test_seconds_add_up_over_interrupted_calls(tmp_path: Path) -> None:
    first = artifacts.Stopwatch(tmp_path)
    first.started -= 100
    first.save()
    assert 100 <= artifacts.Stopwatch(tmp_path).seconds < 101


# S3


def test_s3_gives_back_what_was_published(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3.local)
    s3.publish("grow", KEY)
    monkeypatch.setenv("RELIC_CACHE", str(tmp_path / "another machine"))
    stores._s3_store.cache_clear()
    folder = stores.fetch(f"s3://walks/tiny/grow/{KEY}")
    assert (folder / "deep" / "a.txt").read_text() == "grown"
    assert folder.is_relative_to(tmp_path / "another machine")
    assert artifacts.uri_of(folder) == f"s3://walks/tiny/grow/{KEY}"


def test_s3_one_file_is_read_without_the_others_and_verified(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3.local)
    s3.publish("grow", KEY)
    uri = f"s3://walks/tiny/grow/{KEY}"
    monkeypatch.setattr(s3, "download", lambda *_: pytest.fail("all of it came"))
    assert stores.read(uri, "deep/a.txt") == b"grown"
    assert stores.read(uri, artifacts.MANIFEST) == (s3.local.folder("grow", KEY) / artifacts.MANIFEST).read_bytes()
    with pytest.raises(UserError, match=r"has no deep/b\.txt; did you mean 'deep/a\.txt'"):
        stores.read(uri, "deep/b.txt")
    monkeypatch.setattr(s3, "read", lambda *_: artifacts.LocalStore.read(s3.local, *_) + b"!")
    monkeypatch.setattr(s3, "manifest", s3.local.manifest)
    with pytest.raises(UserError, match=r"deep/a\.txt has sha256 \w{64}; the manifest says"):
        stores.read(uri, "deep/a.txt")


def test_s3_manifest_comes_last(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3.local)
    monkeypatch.setattr(s3, "write_if_absent", lambda name, data: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        s3.publish("grow", KEY)
    names = [found["Key"] for found in s3.client.list_objects_v2(Bucket="walks")["Contents"]]
    assert len(names) == 2
    assert s3.manifest("grow", KEY) is None


def test_s3_second_writer_takes_the_first_ones(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3.local, "first")
    s3.publish("grow", KEY)
    monkeypatch.setenv("RELIC_CACHE", str(tmp_path / "two"))
    stores._s3_store.cache_clear()
    other = stores.open_store("s3://walks/tiny")
    make(other.local, "second")
    other.publish("grow", KEY)
    assert (stores.fetch(other.uri("grow", KEY)) / "deep" / "a.txt").read_text() == "first"


def test_s3_manifest_is_never_written_twice(s3) -> None:
    assert s3.write_if_absent("a", b"first")
    assert not s3.write_if_absent("a", b"second")
    assert s3.client.get_object(Bucket="walks", Key="a")["Body"].read() == b"first"


def test_s3_damage_is_found_on_arrival(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3.local)
    s3.publish("grow", KEY)
    name = next(o["Key"] for o in s3.client.list_objects_v2(Bucket="walks")["Contents"] if o["Key"].endswith("a.txt"))
    s3.client.put_object(Bucket="walks", Key=name, Body=b"grawn")
    monkeypatch.setenv("RELIC_CACHE", str(tmp_path / "two"))
    stores._s3_store.cache_clear()
    with pytest.raises(UserError, match=r"deep/a\.txt has sha256 \w{64}; the manifest says"):
        stores.fetch(f"s3://walks/tiny/grow/{KEY}")


def test_s3_bucket_that_is_not_there_is_a_sentence(s3) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere/grow/.* cannot be used: NoSuchBucket"):
        stores.open_store("s3://nowhere").manifest("grow", KEY)


def answered(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (EndpointConnectionError(endpoint_url="http://s3"), Unreachable),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), Unreachable),
        (SSLError("cut"), Unreachable),
        (answered("SlowDown", 503), Unreachable),
        (answered("RequestTimeout", 400), Unreachable),
        (answered("AccessDenied", 403), UserError),
        (answered("InvalidRequest", 400), OSError),
    ],
)
def test_s3_that_does_not_answer_now_is_told_from_a_refusal(
    raised: Exception, becomes: type, s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise raised

    make(s3.local)
    for name in ("head_object", "get_object", "put_object"):
        monkeypatch.setattr(s3.client, name, fails)
    for use in (lambda: s3.manifest("grow", KEY), lambda: s3.publish("grow", KEY), s3.check):
        with pytest.raises(becomes, match=r"^s3://walks/tiny") as said:
            use()
        assert type(said.value) is becomes


def test_s3_that_hangs_up_within_a_file_is_away(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut:
        def read(self, amount: int | None = None) -> bytes:
            raise ProtocolError("reset")

    monkeypatch.setattr(s3.client, "get_object", lambda **_: {"Body": StreamingBody(Cut(), 3)})
    with pytest.raises(Unreachable, match=r"cannot be reached: .*reset"):
        s3.manifest("grow", KEY)


@pytest.mark.parametrize(
    ("code", "status", "becomes"), [("AccessDenied", 403, UserError), ("SlowDown", 503, Unreachable)]
)
def test_s3_that_refuses_an_upload_says_why(
    code: str, status: int, becomes: type, s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise answered(code, status)

    make(s3.local)
    monkeypatch.setattr(s3.client, "put_object", fails)  # boto3 makes another error of it
    with pytest.raises(becomes, match=rf"s3://walks/tiny/grow/{KEY} cannot be .*{code}"):
        s3.publish("grow", KEY)


def test_manifest_is_plain_json(store: LocalStore) -> None:
    manifest = json.loads((make(store) / "manifest.json").read_text())
    assert set(manifest) == {*FACTS, "files"}
