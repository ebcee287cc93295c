"""How a training ended, said by its processes to the one that launched them. Loads no torch.

torchrun ends with code 1 whatever happened, so the processes of one machine write a verdict into the file that
RELIC_VERDICT names, and `relic launch` ends with its code. The exit codes of relic:

    0    done
    1    a failure
    2    a person's mistake
    3    out of memory
    70   a process hung
    75   stopped by SIGTERM, or by a store that does not answer (EX_TEMPFAIL of sysexits.h): the same command goes on
    130  stopped by Ctrl-C: the same command goes on
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

DONE, FAILURE, MISTAKE, OUT_OF_MEMORY, HUNG, STOPPED = 0, 1, 2, 3, 70, 75
FILE = "RELIC_VERDICT"  # the variable with the file's path; without it nothing is written
RESTART = "TORCHELASTIC_RESTART_COUNT"  # torchrun's: how often it has started this group again


class Stopped(BaseException):
    """What was asked to end does, its work saved. As Ctrl-C it is nothing that a step may take for a failure."""


class Unreachable(ConnectionError):
    """A server does not answer, or not now: the same command goes on another time."""


@dataclass(frozen=True)
class Verdict:
    code: int
    text: str  # one sentence for a person
    asked: bool = False  # whether it ended because it was asked to


def write(code: int, text: str, *, asked: bool = False) -> None:
    """Say how this process ended. The first one counts, for the others often fail of it.

    After a restart the old verdict is void. Of who was asked to end it is the weakest: who survives a failure is asked
    to because of it."""
    if FILE in os.environ:
        with locked(Path(os.environ[FILE])) as path:
            found = current(path)
            if found is None or (found.asked and not asked):
                said = {**asdict(Verdict(code, " ".join(text.split()), asked)), "restart": restart()}
                path.with_suffix(".new").write_text(json.dumps(said))
                path.with_suffix(".new").replace(path)


def begin() -> None:
    """Void what the processes before a restart have said."""
    if FILE in os.environ:
        with locked(Path(os.environ[FILE])) as path:
            if current(path) is None:
                path.unlink(missing_ok=True)


def read(path: Path) -> Verdict | None:
    """The verdict in a file; None where nobody has written one."""
    said = written(path)
    return None if said is None else Verdict(said["code"], said["text"], said["asked"])


def current(path: Path) -> Verdict | None:
    """The verdict of this start of the group, not of one before."""
    said = written(path)
    return read(path) if said is not None and said["restart"] == restart() else None


def written(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def restart() -> int:
    return int(os.environ.get(RESTART, "0"))


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """One process at a time reads and replaces the file."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
