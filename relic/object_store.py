"""Artifacts in S3: STEP/KEY/manifest.json, and every file under STEP/KEY/SHA256/NAME. So two writers of one key never
overwrite each other's files, and the manifest, written once with `If-None-Match: *`, decides whose are read.

Needs the extra `s3` (boto3, which finds credentials and AWS_ENDPOINT_URL by itself)."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from relic.artifacts import MANIFEST, LocalStore, cache_folder, discard, verify
from relic.mistakes import UserError

REFUSALS = ("NoSuchBucket", "AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class S3Store:
    """A bucket and prefix, with a local mirror in which artifacts are made and kept."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.bucket, _, self.prefix = place.partition("/")
        self.local = LocalStore(cache_folder() / "s3" / place)
        self.client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))

    def uri(self, step: str, key: str) -> str:
        return f"s3://{self.place}/{step}/{key}"

    def name(self, *parts: str) -> str:
        return "/".join(part for part in (self.prefix, *parts) if part)

    def manifest(self, step: str, key: str) -> dict | None:
        """The manifest of a finished artifact, or None."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.name(step, key, MANIFEST))
            return json.loads(answer["Body"].read())
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None
            raise refusal(self.uri(step, key), error) from error
        except BotoCoreError as error:
            raise refusal(self.uri(step, key), error) from error

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """Put an object that is not there yet; False when it is."""
        for attempt in range(3):
            try:
                self.client.put_object(Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if code_of(error) == "PreconditionFailed":
                    return False
                if code_of(error) != "ConditionalRequestConflict" or attempt == 2:  # two writers in the same moment
                    raise
        return False

    def publish(self, step: str, key: str) -> None:
        """Upload the mirror's artifact, manifest last. Who comes second takes the first's and drops its own."""
        folder = self.local.folder(step, key)
        manifest = self.local.manifest(step, key)
        if manifest is None:
            raise UserError(f"{folder} is not finished; only a finished artifact is uploaded to {self.uri(step, key)}")
        try:
            for name, fact in manifest["files"].items():
                self.upload(folder / name, self.name(step, key, fact["sha256"], name), fact["bytes"])
            data = (folder / MANIFEST).read_bytes()
            if not self.write_if_absent(self.name(step, key, MANIFEST), data) and self.manifest(step, key) != manifest:
                discard(folder)
        except (ClientError, BotoCoreError) as error:
            raise refusal(self.uri(step, key), error) from error

    def check(self) -> None:
        """Put a small object and delete it; one sentence where that is refused."""
        name = self.name(f".check.{os.getpid()}")
        try:
            self.client.put_object(Bucket=self.bucket, Key=name, Body=b"relic")
            self.client.delete_object(Bucket=self.bucket, Key=name)
        except (ClientError, BotoCoreError) as error:
            raise refusal(f"s3://{self.place}", error) from error

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
            try:
                for name, fact in manifest["files"].items():
                    path = arriving / name
                    if not path.is_file() or path.stat().st_size != fact["bytes"]:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        self.client.download_file(self.bucket, self.name(step, key, fact["sha256"], name), str(path))
            except (ClientError, BotoCoreError) as error:
                raise refusal(self.uri(step, key), error) from error
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


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def refusal(uri: str, error: Any) -> Exception:
    """One sentence: a bucket that is not there or not ours is a person's mistake, a network that fails is not."""
    if isinstance(error, ClientError) and code_of(error) in REFUSALS:
        return UserError(f"{uri} cannot be used: {code_of(error)}; give a bucket that exists and that you may use")
    return OSError(f"{uri} cannot be reached: {error}")
