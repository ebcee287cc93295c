"""Stores of artifacts, a local folder or a prefix in S3, and what is read of an artifact, each by its URI."""

import functools
import hashlib
from pathlib import Path
from typing import Protocol

from relic.artifacts import MANIFEST, LocalStore, split, verify
from relic.mistakes import UserError, allowed


class Store(Protocol):
    """Where artifacts live. `local` is the store itself or the mirror in which its artifacts are worked on."""

    local: LocalStore

    def uri(self, step: str, key: str) -> str: ...
    def manifest(self, step: str, key: str) -> dict | None: ...
    def publish(self, step: str, key: str) -> None: ...
    def read(self, step: str, key: str, name: str, sha256: str = "") -> bytes: ...
    def download(self, step: str, key: str, manifest: dict) -> Path: ...
    def check(self) -> None: ...


def open_store(uri: str) -> Store:
    """The store at a local path or an s3://bucket/prefix."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(Path(uri).expanduser().absolute())
    if scheme != "s3" or not rest.strip("/"):
        raise UserError(f"store {uri!r} is not allowed; give a local folder or s3://BUCKET/PREFIX")
    return _s3_store(rest.strip("/"))


@functools.cache
def _s3_store(place: str) -> Store:
    try:
        from relic.object_store import S3Store
    except ModuleNotFoundError as error:
        raise UserError(f"s3:// needs {error.name}; install the extra: pip install 'relic[s3]'") from error
    return S3Store(place)


@functools.cache
def fetch(uri: str) -> Path:
    """The local folder of an artifact, every file verified against the manifest."""
    root, step, key = split(uri)
    manifest = read_manifest(uri)
    folder = open_store(root).download(step, key, manifest)
    verify(folder, manifest["files"])
    return folder


def read_manifest(uri: str) -> dict:
    """The manifest of a finished artifact."""
    root, step, key = split(uri)
    manifest = open_store(root).manifest(step, key)
    if manifest is None:
        raise UserError(f"{uri} is not a finished artifact: it has no {MANIFEST}")
    return manifest


def read(uri: str, name: str) -> bytes:
    """One file of a finished artifact, without the others, verified against the manifest; or the manifest itself."""
    root, step, key = split(uri)
    files = read_manifest(uri)["files"]
    if name == MANIFEST:
        return open_store(root).read(step, key, name)
    if name not in files:
        raise UserError(f"{uri} has no {name}; {allowed(name, list(files))}")
    data = open_store(root).read(step, key, name, files[name]["sha256"])
    if (found := hashlib.sha256(data).hexdigest()) != files[name]["sha256"]:
        raise UserError(f"{uri}/{name} has sha256 {found}; the manifest says {files[name]['sha256']}")
    return data
