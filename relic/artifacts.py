"""Content-addressed artifacts: a folder of files under STORE/STEP/KEY, in a local folder or in S3, manifest last.

A key is a digest of what an artifact is made from (step, version, parameters, keys of the inputs), so a finished one is
never made again and a pipeline's keys are known before anything runs. Work happens in KEY.partial, which outlives a
kill: the next call goes on in it. An artifact is there when its manifest.json is; the manifest names every file with
its size and sha256, and `verify` compares them. In S3 the same layout is worked on in a local mirror and uploaded.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from relic.mistakes import UserError

MANIFEST = "manifest.json"
KEY_LENGTH = 20  # hexadecimal digits

# Files that are whole or not there


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    with naming(path), writing(path, sync=sync) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one. Without `sync` that holds until the
    machine fails, which is enough for what is checked when it is read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failure of the file system tells of this file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. JSON has no NaN: a figure that is not finite becomes null."""
    write_bytes(path, (json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it is damaged or cut short") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """sha256 of a JSON value's canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# Names


def key(step: str, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> str:
    """The key of what a step makes. An input counts by its step and key, not by where its store is."""
    names = {name: ["/".join(split(uri)[1:]) for uri in uris] for name, uris in inputs.items()}
    return digest({"step": step, "version": version, "parameters": parameters, "inputs": names})[:KEY_LENGTH]


def split(uri: str) -> tuple[str, str, str]:
    """(store, step, key) of an artifact's URI."""
    parts = uri.rstrip("/").rsplit("/", 2)
    if len(parts) < 3 or len(parts[2]) != KEY_LENGTH:
        raise UserError(f"{uri!r} is not an artifact; it must be STORE/STEP/KEY with a key of {KEY_LENGTH} digits")
    return parts[0], parts[1], parts[2]


def cache_folder() -> Path:
    """Where artifacts of an s3:// store are worked on and kept: $RELIC_CACHE, or ~/.cache/relic."""
    return Path(os.environ.get("RELIC_CACHE") or Path.home() / ".cache" / "relic").absolute()


def uri_of(folder: Path) -> str:
    """The URI of a local artifact folder that `fetch` gave."""
    folder, mirrored = folder.absolute(), cache_folder() / "s3"
    return f"s3://{folder.relative_to(mirrored).as_posix()}" if folder.is_relative_to(mirrored) else folder.as_posix()


# In a folder


class LocalStore:
    """Artifacts in a folder: ROOT/STEP/KEY, with KEY.partial while it is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.local = self

    def folder(self, step: str, key: str) -> Path:
        return self.root / step / key

    def partial(self, step: str, key: str) -> Path:
        return self.root / step / f"{key}.partial"

    def uri(self, step: str, key: str) -> str:
        return self.folder(step, key).as_posix()

    def manifest(self, step: str, key: str) -> dict | None:
        """The manifest of a finished artifact, or None."""
        path = self.folder(step, key) / MANIFEST
        return read_json(path) if path.is_file() else None

    def publish(self, step: str, key: str) -> None:
        """A local artifact is seen as soon as it is renamed."""

    def read(self, step: str, key: str, name: str, sha256: str = "") -> bytes:
        """A file of a finished artifact; its sha256 is of the manifest, which itself has none."""
        return (self.folder(step, key) / name).read_bytes()

    def download(self, step: str, key: str, manifest: dict) -> Path:
        return self.folder(step, key)

    def check(self) -> None:
        """Write a small file and remove it; OSError where that is refused."""
        self.root.mkdir(parents=True, exist_ok=True)
        place = self.root / f".check.{os.getpid()}"
        write_bytes(place, b"relic")
        place.unlink()

    @contextlib.contextmanager
    def working(self, step: str, key: str) -> Iterator[Path]:
        """The working folder of an artifact, for one process at a time; the lock of a dead process is free."""
        partial = self.partial(step, key)
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = partial.with_suffix(".lock")
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting: another process is making {step}/{key}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if self.manifest(step, key) is None:
                if (partial / MANIFEST).is_file():  # killed between the manifest and the rename
                    partial.rename(self.folder(step, key))
                else:
                    partial.mkdir(exist_ok=True)
            yield partial
            if self.manifest(step, key) is not None:
                lock.unlink(missing_ok=True)

    def commit(self, step: str, key: str, manifest: dict) -> dict:
        """Finish KEY.partial: the manifest comes last, then the rename.

        Names starting with a dot are what a killed call goes on from. They are no part of the artifact, and go last:
        a kill at any moment leaves either them or the artifact."""
        partial, folder = self.partial(step, key), self.folder(step, key)
        paths = [p for p in sorted(partial.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(partial))]
        paths = [path for path in paths if path != partial / MANIFEST]
        files = {}
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        finished = {**manifest, "files": files}
        write_json(partial / MANIFEST, finished)
        partial.rename(folder)
        sync_folder(folder.parent)
        _remember(folder, files)
        for path in [p for p in folder.rglob(".*") if p.exists()]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return finished


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare sizes and sha256. A file that was verified before and has the same size and time is not hashed again."""
    beside = folder.with_name(f"{folder.name}.verified")
    known = json.loads(beside.read_bytes()) if beside.is_file() else {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; the manifest lists it with {expected['bytes']} bytes")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} bytes; the manifest says {expected['bytes']}")
        if known.get(name) != _stamp(path) and (found := sha256(path)) != expected["sha256"]:
            raise UserError(f"{path} has sha256 {found}; the manifest says {expected['sha256']}")
    if set(known) != set(files) or any(known[name] != _stamp(folder / name) for name in files):
        _remember(folder, files)


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _remember(folder: Path, files: Mapping[str, Any]) -> None:
    try:
        write_json(folder.with_name(f"{folder.name}.verified"), {name: _stamp(folder / name) for name in files})
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # what may only be read is hashed every time
            raise


class Stopwatch:
    """Seconds of work on an artifact, summed over interrupted calls in a small file of the working folder."""

    def __init__(self, folder: Path, every_s: float = 2.0) -> None:
        self.path, self.every_s = folder / ".seconds", every_s
        self.before = float(self.path.read_text()) if self.path.is_file() else 0.0
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def tick(self) -> None:
        if time.monotonic() - self.saved > self.every_s:
            self.save()

    def save(self) -> None:
        self.saved = time.monotonic()
        with contextlib.suppress(OSError):  # a disk that is full is said by what needs it
            write_bytes(self.path, f"{self.seconds:.3f}".encode())


def discard(folder: Path) -> None:
    """Remove a folder and what is remembered of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.verified").unlink(missing_ok=True)
