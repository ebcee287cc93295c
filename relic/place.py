"""Where checkpoints and snapshots lie: a folder, or a prefix in S3 (object_store.py), with the few verbs they need.

A file's name is FOLDER/FILE. What `write` gives a name to is whole.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol

from relic.artifacts import MANIFEST, sync_folder
from relic.mistakes import UserError

PIECE = 2**24  # bytes that are hashed and written at once


class Place(Protocol):
    uri: str

    def files(self, under: str = "") -> list[str]:
        """All that is there, or that is in a folder."""

    def write(self, name: str, *parts: memoryview) -> str:
        """Writes one file of all the parts; the sha256 of what was written."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes: ...

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """A small file that is not there yet; False when it is. Of several writers one gets True."""

    def measured(self, name: str) -> tuple[int, str]:
        """Bytes and sha256 of a file, all of which is read."""

    def remove(self, folder: str) -> None:
        """The manifest first, so that a folder in which something is missing never has one."""


def opened(uri: str) -> Place:
    """The place at a local path or an s3://bucket/prefix."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Folder(Path(uri).expanduser())
    if scheme != "s3" or not rest.strip("/"):
        raise UserError(f"nothing can be kept in {uri!r}; give a local folder or s3://BUCKET/PREFIX")
    try:
        from relic.object_store import S3Folder
    except ModuleNotFoundError as error:
        raise UserError(f"s3:// needs {error.name}; install the extra: pip install 'relic[s3]'") from error
    return S3Folder(rest.strip("/"))


def check(uri: str) -> None:
    """Writes a file and removes it: a place that cannot be used is said before anything is to be kept there."""
    where, folder = opened(uri), f"check-{secrets.token_hex(8)}"
    try:
        where.write(f"{folder}/file", memoryview(b""))
        where.remove(folder)
    except OSError as error:
        raise UserError(f"nothing can be kept in {uri}: {error.strerror}; give a folder that may be written") from error


class Folder:
    """A local folder, or one that several machines share."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.uri = self.root.as_posix()

    def files(self, under: str = "") -> list[str]:
        found = (Path(folder) / name for folder, _, names in os.walk(self.root / under) for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def write(self, name: str, *parts: memoryview) -> str:
        path = self.root / name
        beside = path.with_name(f".{path.name}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        try:
            with beside.open("wb") as file:
                for part in parts:
                    for at in range(0, len(part), PIECE):
                        file.write(part[at : at + PIECE])
                        found.update(part[at : at + PIECE])
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        sync_folder(path.parent)
        return found.hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)

    def write_if_absent(self, name: str, data: bytes) -> bool:
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def measured(self, name: str) -> tuple[int, str]:
        with (self.root / name).open("rb") as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self, folder: str) -> None:
        (self.root / folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.root / folder, ignore_errors=True)
        for parent in (self.root / folder).relative_to(self.root).parents[:-1]:
            with contextlib.suppress(OSError):  # another folder is in it, or another process has removed it
                (self.root / parent).rmdir()
