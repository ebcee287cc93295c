"""A folder of copies of what lies in S3, of bounded size, which the processes of a machine share.

A copy is read without a lock: it is there whole or not at all, and who reads it checks it. It is written under one, by
which a count of the bytes is kept: a copy that would pass the bound makes the oldest used leave first, a tenth of the
bound at least, so that the folder is seldom listed. The count comes before the copy: after a kill it is too high at
most, and the next listing puts it right.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from relic import artifacts

COUNT = ".bytes"
LOCK = ".lock"


class Cache:
    """Copies by name in `folder`, of at most `max_bytes` in all."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def read(self, name: str) -> bytes | None:
        """A copy, which is now the one last used; None where there is none."""
        try:
            with (self.folder / name).open("rb") as file:
                os.utime(file.fileno())
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a copy, unless it is larger than the bound."""
        if len(data) > self.max_bytes:
            return
        with self._locked():
            count = self._count() + len(data)
            if count > self.max_bytes:
                count = self._make_room(min(self.max_bytes - len(data), self.max_bytes * 9 // 10)) + len(data)
            artifacts.write_bytes(self.folder / COUNT, str(count).encode())
            artifacts.write_bytes(self.folder / name, data, sync=False)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:  # opened anew, so that threads lock each other out as well
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _count(self) -> int:
        path = self.folder / COUNT
        return int(path.read_bytes()) if path.is_file() else 0

    def _make_room(self, most: int) -> int:
        """Remove the oldest used until at most `most` bytes are left, and what killed writers left; the bytes."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name in (COUNT, LOCK):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process has just thrown it away
                if entry.name.startswith("."):  # half a copy: nobody else writes now
                    os.unlink(entry.path)
                else:
                    found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= most:
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left
