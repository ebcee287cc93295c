"""Indexed shards: the format in which samples of latents are kept, written once and read at random.

A shard is safetensors files one behind the other; index.json says of every sample which shard holds it, at which byte,
how many bytes and with which sha256, beside what a sampler wants to know without opening it (length, caption, shares of
the actions). A sample is read by one ranged read, from a file or from S3, and checked before it is parsed. Nothing in a
reader has a state: where a training is, is its step, and `sampler.indices` says which samples that step takes, on any
number of machines. So resuming is exact by construction, and a changed world size takes the same global batches.

Why not a library. Samples are few and large (317 frames at 480x832 are 16 MB of latents), so what streaming formats
fight, a request for every small record, does not arise.
- WebDataset reads tars in sequence; it has no exact resume, its maintainer's advice is to resample.
- MosaicML Streaming pins transformers < 5 and numpy < 2.2 and has rested since 2025.
- LitData comes nearest (0.2.76 of September 2026, looked at in its code): an index, ranged reads, and since lately a
  resume that keeps its order when workers or ranks change. Against it: the place in the data is still a state that a
  checkpoint must carry and that must fit seed, shuffle and folder, with a long history of repairs (its issues 24, 213,
  263, 316, 363, 760, 770), where ours is the step; it weighs data sets but not samples, so balanced actions would need
  a sampler of our own anyway, and weighted data sets resume on the same topology only; chunks and items have no digest,
  so a damaged one is parsed, not named; it brings torchvision, tifffile and obstore and 16,000 lines of streaming. It
  would save this file, and cost the purity of the sampler.

The writer keeps a journal of one line a batch, written and synced behind the batch's bytes. A killed call cuts the
shard back to what the journal vouches for and goes on, and its shards are, bit by bit, those of a call left alone.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from relic import artifacts, stores
from relic.data.cache import Cache

INDEX = "index.json"
JOURNAL = ".journal.jsonl"  # hidden: not part of the finished artifact


class Writer:
    """Appends batches of samples to shards in `out`. `num_batches` says how many are there, from killed calls too."""

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self.out, self.shard_bytes = out, shard_bytes
        self.entries: list[dict] = []
        self.num_batches, self.shard, self.offset = 0, 0, 0
        journal = out / JOURNAL
        whole = journal.read_bytes().rpartition(b"\n")[0] if journal.is_file() else b""
        for line in whole.splitlines():
            self._count(json.loads(line))
        self._cut(journal, len(whole) + bool(whole))
        self._cut(self.path, self.offset)

    @property
    def path(self) -> Path:
        """The shard that is open for the next batch."""
        return self.out / f"shard-{self.shard:05d}.bin"

    def append(self, samples: list[tuple[dict, dict[str, Tensor]]]) -> None:
        """Write the samples of a batch, each the facts for the index and its tensors; on disk when this returns."""
        entries, members, offset = [], [], self.offset
        for facts, tensors in samples:
            member = safetensors.torch.save(tensors)
            where = {"shard": self.path.name, "offset": offset, "length": len(member)}
            entries.append({**facts, **where, "sha256": hashlib.sha256(member).hexdigest()})
            members.append(member)
            offset += len(member)
        self._append(self.path, b"".join(members))
        self._append(self.out / JOURNAL, json.dumps(entries).encode() + b"\n")
        self._count(entries)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write index.json with `facts` on top."""
        artifacts.write_json(self.out / INDEX, {**facts, "samples": self.entries})

    def _count(self, entries: list[dict]) -> None:
        self.entries += entries
        self.num_batches += 1
        self.offset = entries[-1]["offset"] + entries[-1]["length"]
        if self.offset >= self.shard_bytes:
            self.shard, self.offset = self.shard + 1, 0

    @staticmethod
    def _append(path: Path, data: bytes) -> None:
        try:
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    @staticmethod
    def _cut(path: Path, length: int) -> None:
        found = path.stat().st_size if path.is_file() else 0
        if found < length:
            raise ValueError(f"{path} has {found} bytes but its journal counts {length}; remove {path.parent}")
        if found > length:
            os.truncate(path, length)


def read_index(folder: Path) -> dict:
    """index.json of a samples artifact."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder} has no {INDEX}; a samples artifact of shard or join is needed")
    return artifacts.read_json(path)


class Damaged(ValueError):
    """A sample's bytes are not those of the index: gone, cut short or changed."""


class Source(Protocol):
    """Where the shards of an artifact are."""

    uri: str

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a file, fewer where it ends before."""

    def forget(self, name: str, offset: int, length: int) -> None:
        """Throw away the copy of such bytes, where one is kept."""


class LocalShards:
    """Shards in a folder, which may be read while others do."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            with open(f"{self.uri}/{name}", "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            raise Damaged(f"{self.uri}/{name} is missing; the index names it") from None

    def forget(self, name: str, offset: int, length: int) -> None:
        """A file is no copy."""


class RemoteShards:
    """Shards of an artifact in S3 by ranged reads, so that no more is fetched than is asked for, and that once as long
    as `cache` has room for it."""

    def __init__(self, uri: str, cache: Cache | None = None) -> None:
        from relic.object_store import S3Store

        root, self.step, self.key = artifacts.split(uri)
        self.uri, self.store, self.cache = uri, S3Store(root.removeprefix("s3://")), cache
        self.files = stores.read_manifest(uri)["files"]

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name not in self.files:
            raise Damaged(f"{self.uri}/{name} is missing; the index names it")
        if self.cache is None:
            return self._fetch(name, offset, length)
        copy = self._copy(name, offset, length)
        if (found := self.cache.read(copy)) is None:
            found = self._fetch(name, offset, length)
            self.cache.write(copy, found)
        return found

    def forget(self, name: str, offset: int, length: int) -> None:
        if self.cache is not None:
            self.cache.remove(self._copy(name, offset, length))

    def _copy(self, name: str, offset: int, length: int) -> str:
        """The copy's name: by the file's content, so that artifacts that share it share its copies."""
        return f"{self.files[name]['sha256']}-{offset}-{length}"

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        from relic.object_store import code_of, said

        where = self.store.name(self.step, self.key, self.files[name]["sha256"], name)
        span = f"bytes={offset}-{offset + length - 1}"
        with said(f"{self.uri}/{name}"):
            try:
                return self.store.client.get_object(Bucket=self.store.bucket, Key=where, Range=span)["Body"].read()
            except ClientError as error:
                if code_of(error) == "InvalidRange":
                    return b""  # the object ends before
                if code_of(error) == "NoSuchKey":
                    raise Damaged(f"{self.uri}/{name} is missing; the manifest names it") from error
                raise


def open_shards(uri: str, cache: Cache | None = None) -> Source:
    """The shards of an artifact at a local path or s3:// URI; of the latter by its local mirror where that is whole."""
    if not uri.startswith("s3://"):
        return LocalShards(Path(uri))
    root, step, key = artifacts.split(uri)
    mirror = stores.open_store(root).local
    return RemoteShards(uri, cache) if mirror.manifest(step, key) is None else LocalShards(mirror.folder(step, key))


def read(source: Source, entry: dict, *, retries: int = 0, pause_s: float = 0.0) -> dict[str, Tensor]:
    """The tensors of a sample, checked against its entry in the index before they are parsed.

    A read that fails is tried again after `pause_s`, then after twice as long, and so on. At last: Damaged where other
    bytes are there, OSError where the store cannot be reached."""
    for attempt in range(retries):
        try:
            return safetensors.torch.load(whole(source, entry))
        except (Damaged, OSError):
            time.sleep(pause_s * 2**attempt)
    return safetensors.torch.load(whole(source, entry))


def whole(source: Source, entry: dict) -> bytes:
    """The bytes of a sample; Damaged, and what is kept of them forgotten, where they are not those of the index."""
    name, first, length = entry["shard"], entry["offset"], entry["length"]
    member = source.read(name, first, length)
    what = f"{source.uri}/{name}: sample {entry['id']}"
    if len(member) != length:
        source.forget(name, first, length)
        raise Damaged(
            f"{what} should have {length} bytes from byte {first} on but {len(member)} are there; "
            "the shard is cut short"
        )
    if (found := hashlib.sha256(member).hexdigest()) != entry["sha256"]:
        source.forget(name, first, length)
        raise Damaged(
            f"{what} ({length} bytes from byte {first} on) has sha256 {found} but the index says {entry['sha256']}; "
            "the shard is damaged"
        )
    return member
