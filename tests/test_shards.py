import json
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
import safetensors.torch
import samples
import torch

from relic import artifacts, stores
from relic.data import loader, shards
from relic.data.cache import Cache
from relic.data.shards import JOURNAL, Damaged, LocalShards, RemoteShards, open_shards, read, read_index
from relic.mistakes import UserError
from relic.model import config


def index(out) -> list[dict]:
    return read_index(out)["samples"]


def test_a_sample_is_read_back_as_it_was_written(tmp_path):
    samples.write(tmp_path, [[0, 1], [2]])
    for number, entry in enumerate(index(tmp_path)):
        expected, found = samples.sample(number)[1], read(LocalShards(tmp_path), entry)
        assert found.keys() == expected.keys()
        assert all(
            found[name].dtype == value.dtype and (found[name] == value).all() for name, value in expected.items()
        )


def test_shards_close_at_their_size_and_hold_whole_batches(tmp_path):
    length = samples.write(tmp_path / "one", [[0]]).entries[0]["length"]
    writer = samples.write(tmp_path / "many", [[0, 1], [2, 3], [4]], shard_bytes=2 * length)
    assert [(e["shard"], e["offset"]) for e in writer.entries] == [
        ("shard-00000.bin", 0), ("shard-00000.bin", length),
        ("shard-00001.bin", 0), ("shard-00001.bin", length), ("shard-00002.bin", 0),
    ]  # fmt: skip
    assert (tmp_path / "many/shard-00001.bin").stat().st_size == 2 * length


def test_a_member_is_a_safetensors_file_of_its_own(tmp_path):
    entry = samples.write(tmp_path, [[0, 1]]).entries[1]
    data = (tmp_path / entry["shard"]).read_bytes()[entry["offset"] : entry["offset"] + entry["length"]]
    assert safetensors.torch.load(data)["poses"].shape == (13, 4, 4)


@pytest.mark.parametrize("shard_bytes", [1, 3000, 10**6])
@pytest.mark.parametrize("torn", ["nothing", "shard", "shard and journal"])
def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path, shard_bytes, torn):
    batches = [[0, 1], [2], [3, 4], [5]]
    samples.write(tmp_path / "whole", batches, shard_bytes)
    out = tmp_path / "killed"
    out.mkdir()
    killed = shards.Writer(out, shard_bytes)
    for batch in batches[:2]:
        killed.append([samples.sample(number) for number in batch])
    if torn != "nothing":
        with killed.path.open("ab") as file:
            file.write(b"half a sample")
    if torn == "shard and journal":
        with (out / JOURNAL).open("ab") as file:
            file.write(b'[{"id": "walk-3", "off')
    resumed = shards.Writer(out, shard_bytes)
    assert resumed.num_batches == 2
    samples.write(out, batches[2:], shard_bytes)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_shard_shorter_than_its_journal_is_refused(tmp_path):
    writer = samples.write(tmp_path, [[0]])
    with writer.path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"shard-00000\.bin has 100 bytes but its journal counts \d+"):
        shards.Writer(tmp_path, 10**6)


def test_a_shard_cut_short_is_named_with_what_is_there(tmp_path):
    entry = samples.write(tmp_path, [[0, 1, 2]]).entries[2]
    with (tmp_path / entry["shard"]).open("r+b") as file:
        file.truncate(entry["offset"] + 10)
    with pytest.raises(
        ValueError, match=rf"shard-00000\.bin: sample walk-2 should have {entry['length']} bytes .* 10 are"
    ):
        read(LocalShards(tmp_path), entry)


def test_a_changed_byte_is_named_with_both_digests(tmp_path):
    entry = samples.write(tmp_path, [[0, 1, 2]]).entries[1]
    with (tmp_path / entry["shard"]).open("r+b") as file:
        file.seek(entry["offset"] + entry["length"] - 1)
        file.write(b"\x55")
    with pytest.raises(
        ValueError, match=rf"shard-00000\.bin: sample walk-1 .* has sha256 \w{{64}} .* says {entry['sha256']}"
    ):
        read(LocalShards(tmp_path), entry)
    read(LocalShards(tmp_path), index(tmp_path)[2])  # its neighbours are whole


def test_a_shard_that_is_gone_is_named(tmp_path):
    entry = samples.write(tmp_path, [[0]]).entries[0]
    (tmp_path / entry["shard"]).unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.bin is missing"):
        read(LocalShards(tmp_path), entry)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no index\.json"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"samples": []})[:5])
    with pytest.raises(ValueError, match="not valid JSON"):
        read_index(tmp_path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[str]:
    """The URI of a samples artifact in a pretended S3."""
    moto = pytest.importorskip("moto", reason="needs moto to pretend S3")
    import boto3

    place = tmp_path_factory.mktemp("cache")
    settings = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "RELIC_CACHE": str(place),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        store, key = stores.open_store(f"s3://bucket/{place.name}"), "0" * artifacts.KEY_LENGTH
        with store.local.working("shard", key) as out:
            samples.write(out, [[0, 1], [2]])
            store.local.commit("shard", key, {"step": "shard", "key": key})
            store.publish("shard", key)
        yield store.uri("shard", key)


@pytest.fixture
def remote(stored) -> tuple[str, list[dict]]:
    """The URI and the index's entries, with nothing of it on this machine."""
    stores.fetch.cache_clear()
    mirror = stores.fetch(stored)
    entries = index(mirror)
    artifacts.discard(mirror)
    return stored, entries


def test_samples_in_s3_are_read_by_range(remote, monkeypatch):
    uri, entries = remote
    source, asked = open_shards(uri), []
    get = source.store.client.get_object
    monkeypatch.setattr(source.store.client, "get_object", lambda **kw: asked.append(kw["Range"]) or get(**kw))
    assert torch.equal(read(source, entries[1])["latents"], samples.sample(1)[1]["latents"])
    assert asked == [f"bytes={entries[1]['offset']}-{entries[1]['offset'] + entries[1]['length'] - 1}"]


def test_samples_in_s3_are_read_from_the_mirror_where_it_is_whole(remote):
    uri, _ = remote
    stores.fetch.cache_clear()
    mirror = stores.fetch(uri)
    assert open_shards(uri).uri == str(mirror)


def test_joined_samples_in_s3_are_loaded_without_fetching_their_artifacts(remote, tmp_path):
    uri, entries = remote
    artifacts.write_json(
        tmp_path / "index.json", {"latent_shape": samples.SHAPE, "samples": [{**e, "artifact": uri} for e in entries]}
    )
    latents = loader.load([tmp_path], config.Transformer()).batch([2, 0, 1, 2], num_latents=2).latents
    assert latents[:, 0, 0, 0, 0].tolist() == [2, 0, 1, 2]
    assert len(list((artifacts.cache_folder() / "samples").glob("*-*"))) == 3
    _, step, key = artifacts.split(uri)
    assert not stores.open_store(uri.removesuffix(f"/{step}/{key}")).local.folder(step, key).exists()


@pytest.fixture
def cached(remote, tmp_path, monkeypatch) -> tuple[RemoteShards, list[dict], Mock]:
    """The shards with a cache, the index's entries, and what is asked of S3 from now on."""
    uri, entries = remote
    source = RemoteShards(uri, Cache(tmp_path, 10**6))
    asked = Mock(wraps=source.store.client.get_object)
    monkeypatch.setattr(source.store.client, "get_object", asked)
    return source, entries, asked


def test_a_sample_in_s3_is_fetched_once_for_all_processes_of_a_machine(cached, tmp_path):
    source, entries, asked = cached
    first = [read(source, entries[number])["latents"] for number in (0, 1, 0)]
    other = RemoteShards(source.uri, Cache(tmp_path, 10**6))
    other.store = None  # it has all it needs
    assert torch.equal(read(other, entries[0])["latents"], first[0])
    assert torch.equal(first[2], first[0])
    assert asked.call_count == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"\x55", lambda data: data[:100], lambda data: b""])
def test_a_damaged_copy_is_thrown_away_and_fetched_again(cached, tmp_path, damage):
    source, entries, asked = cached
    expected = read(source, entries[0])["latents"]
    (copy,) = tmp_path.glob("*-*")
    whole = copy.read_bytes()
    copy.write_bytes(damage(whole))
    with pytest.raises(Damaged, match="sample walk-0"):
        read(source, entries[0])
    assert not copy.exists()
    copy.write_bytes(damage(whole))
    assert torch.equal(read(source, entries[0], retries=1)["latents"], expected)
    assert copy.read_bytes() == whole
    assert asked.call_count == 2


class Unsteady:
    """Shards that fail as told, a read at a time, and then no more."""

    uri = "unsteady"

    def __init__(self, folder, failures: list[Exception | bytes]) -> None:
        self.shards, self.failures = LocalShards(folder), failures

    def read(self, name: str, offset: int, length: int) -> bytes:
        failure = self.failures.pop(0) if self.failures else self.shards.read(name, offset, length)
        if isinstance(failure, Exception):
            raise failure
        return failure

    forget = LocalShards.forget


def test_reads_that_fail_are_tried_again_after_longer_and_longer_pauses(tmp_path, monkeypatch):
    (entry,) = samples.write(tmp_path, [[0]]).entries
    pauses: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", pauses.append)
    failures = [OSError("reset by peer"), b"cut", bytes(entry["length"])]
    assert read(Unsteady(tmp_path, [*failures]), entry, retries=3, pause_s=0.5).keys() >= {"latents"}
    assert pauses == [0.5, 1.0, 2.0]
    with pytest.raises(Damaged, match=r"unsteady/shard-00000\.bin: sample walk-0 .* the shard is damaged"):
        read(Unsteady(tmp_path, [*failures]), entry, retries=2)


def test_a_persons_mistake_is_not_tried_again(tmp_path):
    (entry,) = samples.write(tmp_path, [[0]]).entries
    source = Unsteady(tmp_path, [UserError("s3://bucket cannot be used: AccessDenied")])
    with pytest.raises(UserError):
        read(source, entry, retries=3, pause_s=60)


def test_an_object_that_is_gone_is_damage_and_a_store_that_fails_is_not(remote, monkeypatch):
    from botocore.exceptions import ReadTimeoutError

    uri, entries = remote
    source = open_shards(uri)
    with monkeypatch.context() as patch:
        patch.setattr(source, "key", "1" * artifacts.KEY_LENGTH)
        with pytest.raises(Damaged, match=r"shard-00000\.bin is missing"):
            read(source, entries[0])

    def fails(**_):
        raise ReadTimeoutError(endpoint_url="http://store")

    monkeypatch.setattr(source.store.client, "get_object", fails)
    with pytest.raises(OSError, match=r"shard-00000\.bin cannot be reached: Read timeout"):
        read(source, entries[0])


@pytest.mark.parametrize(("offset", "there"), [(0, r"[1-9]\d+"), (10**9, "0")])
def test_an_object_cut_short_in_s3_is_named(remote, offset, there):
    uri, entries = remote
    with pytest.raises(ValueError, match=rf"{uri}/shard-00000\.bin: sample walk-0 .* but {there} are there"):
        read(open_shards(uri), {**entries[0], "offset": offset, "length": 10**8})


def test_a_shard_that_the_manifest_in_s3_does_not_name_is_refused(remote):
    uri, entries = remote
    with pytest.raises(ValueError, match=r"shard-00009\.bin is missing"):
        read(open_shards(uri), {**entries[0], "shard": "shard-00009.bin"})
