"""Artifacts in S3: STEP/KEY/manifest.json, and every file under STEP/KEY/SHA256/NAME. So two writers of one key never
overwrite each other's files, and the manifest, written once with `If-None-Match: *`, decides whose are read.

Checkpoints, and the snapshots of walks, need less: `S3Folder`.

Needs the extra `s3` (boto3, which finds credentials and AWS_ENDPOINT_URL by itself)."""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from urllib3.exceptions import HTTPError

from relic.artifacts import MANIFEST, LocalStore, cache_folder, discard, verify
from relic.mistakes import UserError
from relic.verdict import Unreachable

READ_AHEAD = 2**23  # bytes that are fetched for what is smaller
PARTS = TransferConfig(multipart_chunksize=2**26)  # of 10,000 at most: 640 GB an object
FAILURES = (ClientError, BotoCoreError, S3UploadFailedError, RetriesExceededError, HTTPError)  # what boto3 raises
REFUSALS = ("NoSuchBucket", "AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")
LATER = (
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "ExpiredToken",
)  # answers that change by themselves, as 429 and 5xx do


class S3Store:
    """A bucket and prefix, with a local mirror in which artifacts are made and kept."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.bucket, _, self.prefix = place.partition("/")
        self.local = LocalStore(cache_folder() / "s3" / place)
        self.client = client()

    def uri(self, step: str, key: str) -> str:
        return f"s3://{self.place}/{step}/{key}"

    def name(self, *parts: str) -> str:
        return "/".join(part for part in (self.prefix, *parts) if part)

    def manifest(self, step: str, key: str) -> dict | None:
        """The manifest of a finished artifact, or None."""
        try:
            return json.loads(self.read(step, key, MANIFEST))
        except FileNotFoundError:
            return None

    def read(self, step: str, key: str, name: str, sha256: str = "") -> bytes:
        """A file of a finished artifact; its sha256 is of the manifest, which itself has none."""
        found = self.name(*(part for part in (step, key, sha256, name) if part))
        with said(self.uri(step, key)):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=found)["Body"].read()
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404"):
                    raise FileNotFoundError(f"{self.uri(step, key)} has no {name}") from error
                raise

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """Put an object that is not there yet; False when it is."""
        return write_if_absent(self.client, self.bucket, name, data)

    def publish(self, step: str, key: str) -> None:
        """Upload the mirror's artifact, manifest last. Who comes second takes the first's and drops its own."""
        folder = self.local.folder(step, key)
        manifest = self.local.manifest(step, key)
        if manifest is None:
            raise UserError(f"{folder} is not finished; only a finished artifact is uploaded to {self.uri(step, key)}")
        with said(self.uri(step, key)):
            for name, fact in manifest["files"].items():
                self.upload(folder / name, self.name(step, key, fact["sha256"], name), fact["bytes"])
            data = (folder / MANIFEST).read_bytes()
            if not self.write_if_absent(self.name(step, key, MANIFEST), data) and self.manifest(step, key) != manifest:
                discard(folder)

    def check(self) -> None:
        """Put a small object and delete it; one sentence where that is refused."""
        name = self.name(f".check.{os.getpid()}")
        with said(f"s3://{self.place}"):
            self.client.put_object(Bucket=self.bucket, Key=name, Body=b"relic")
            self.client.delete_object(Bucket=self.bucket, Key=name)

    def upload(self, path: Path, name: str, size: int) -> None:
        """Upload a file, unless an interrupted call has done it."""
        try:
            if self.client.head_object(Bucket=self.bucket, Key=name)["ContentLength"] == size:
                return
        except ClientError as error:
            if code_of(error) not in ("404", "NoSuchKey"):
                raise
        self.client.upload_file(str(path), self.bucket, name)

    def download(self, step: str, key: str, manifest: dict) -> Path:
        """The mirror's folder of an artifact; files that are missing come, verified, before it gets its name."""
        folder = self.local.folder(step, key)
        if self.local.manifest(step, key) == manifest:
            return folder
        with self.local.working(step, key):
            if self.local.manifest(step, key) == manifest:  # another process has fetched it meanwhile
                return folder
            arriving = folder.with_name(f"{key}.arriving")
            arriving.mkdir(parents=True, exist_ok=True)
            with said(self.uri(step, key)):
                for name, fact in manifest["files"].items():
                    path = arriving / name
                    if not path.is_file() or path.stat().st_size != fact["bytes"]:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        self.client.download_file(self.bucket, self.name(step, key, fact["sha256"], name), str(path))
            try:
                verify(arriving, manifest["files"])
            except UserError:
                discard(arriving)  # so that the next call asks for all of it again
                raise
            (arriving / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
            discard(folder)
            shutil.rmtree(self.local.partial(step, key), ignore_errors=True)
            arriving.rename(folder)
            arriving.with_name(f"{arriving.name}.verified").replace(folder.with_name(f"{key}.verified"))
        return folder


class S3Folder:
    """A prefix in a bucket as a place of checkpoints or snapshots (place.py); an object is whole, or not there."""

    def __init__(self, place: str) -> None:
        self.uri = f"s3://{place}"
        self.bucket, _, self.prefix = place.partition("/")
        self.client = client()
        self.reading = threading.Lock()
        self.piece = functools.lru_cache(maxsize=8)(self._piece)

    def name(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def files(self, under: str = "") -> list[str]:
        """All that is there, or that is in a folder."""
        prefix = self.name(f"{under}/" if under else "")
        with said(self.uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            found = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return sorted(key.removeprefix(self.name("")) for key in found)

    def write(self, name: str, *parts: memoryview) -> str:
        """Writes one object of all the parts; the sha256 of what was written."""
        found = hashlib.sha256()
        for part in parts:
            found.update(part)
        with said(self.uri):
            self.client.upload_fileobj(Memory(parts), self.bucket, self.name(name), Config=PARTS)
        return found.hexdigest()

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """False when it is there."""
        with said(self.uri):
            return write_if_absent(self.client, self.bucket, self.name(name), data)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Small parts of an object come out of larger pieces: a checkpoint has thousands, each a request otherwise."""
        if stop is None or stop - start >= READ_AHEAD:
            return self._get(name, start, stop)
        first, last = start // READ_AHEAD, (stop - 1) // READ_AHEAD
        with self.reading:
            data = b"".join(self.piece(name, at) for at in range(first, last + 1))
        return data[start - first * READ_AHEAD : stop - first * READ_AHEAD]

    def _piece(self, name: str, at: int) -> bytes:
        return self._get(name, at * READ_AHEAD, (at + 1) * READ_AHEAD)

    def _get(self, name: str, start: int, stop: int | None) -> bytes:
        with said(self.uri):
            asked = f"bytes={start}-{'' if stop is None else stop - 1}"
            return self.client.get_object(Bucket=self.bucket, Key=self.name(name), Range=asked)["Body"].read()

    def measured(self, name: str) -> tuple[int, str]:
        """Bytes and sha256 of an object, all of which is read."""
        size, found = 0, hashlib.sha256()
        with said(self.uri):
            for data in self.client.get_object(Bucket=self.bucket, Key=self.name(name))["Body"].iter_chunks(2**20):
                size += len(data)
                found.update(data)
        return size, found.hexdigest()

    def remove(self, folder: str) -> None:
        """The manifest first, so that a folder in which something is missing never has one."""
        names = self.files(folder)
        with said(self.uri):
            for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
                self.client.delete_object(Bucket=self.bucket, Key=self.name(name))

    def clear(self) -> None:
        """Delete all that is there."""
        for folder in {name.rpartition("/")[0] for name in self.files()}:
            self.remove(folder)


class Memory(io.RawIOBase):
    """Parts of memory as one file, without a copy."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self.parts = deque(parts)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer but at the end: boto3 takes a short read for the end."""
        at = 0
        while self.parts and at < len(buffer):
            piece, rest = self.parts[0][: len(buffer) - at], self.parts[0][len(buffer) - at :]
            buffer[at : at + len(piece)] = piece
            at += len(piece)
            if len(rest):
                self.parts[0] = rest
            else:
                self.parts.popleft()
        return at


def write_if_absent(client: Any, bucket: str, name: str, data: bytes) -> bool:
    """Put an object that is not there yet; False when it is."""
    for attempt in range(3):
        try:
            client.put_object(Bucket=bucket, Key=name, Body=data, IfNoneMatch="*")
            return True
        except ClientError as error:
            if code_of(error) == "PreconditionFailed":
                return False
            if code_of(error) != "ConditionalRequestConflict" or attempt == 2:  # two writers in the same moment
                raise
    return False


def client() -> Any:
    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


@contextlib.contextmanager
def said(uri: str) -> Iterator[None]:
    """Says in words what boto3 raises."""
    try:
        yield
    except FAILURES as error:
        raise refusal(uri, error) from error


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def answer_in(error: BaseException | None) -> ClientError | None:
    """The store's answer behind what boto3 raises, which of an upload is another error."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__ or error.__context__
    return error


def refusal(uri: str, error: Exception) -> Exception:
    """One sentence: a bucket that is not there or not ours is a person's mistake, what may be answered another time is
    `Unreachable`, any other answer a failure."""
    answer = answer_in(error)
    code = "" if answer is None else code_of(answer)
    if code in REFUSALS:
        return UserError(f"{uri} cannot be used: {code}; give a bucket that exists and that you may use")
    if isinstance(error, ParamValidationError):
        return UserError(f"{uri} cannot be used: {error}")
    status = 500 if answer is None else answer.response["ResponseMetadata"]["HTTPStatusCode"]
    if status >= 500 or status == 429 or code in LATER:
        return Unreachable(f"{uri} cannot be reached: {error}")
    return OSError(f"{uri} is refused: {error}")
