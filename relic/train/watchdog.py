"""Notices that a training hangs, on one process or many, says where each stands, and ends all of them, so that torchrun
starts the group anew.

In every process a thread looks on. The training loop only sets numbers: which step has begun (`beat`), and in which
`Phase` it is. Through a store of their own, which the main threads never wait for, the threads tell each other. When no
step ends for `timeout_s`, the first thread that notices asks all others for their stacks, names the processes that had
not come to the point where the rest waits, and each ends with code HUNG.

Python code can be stuck so that no thread of its process runs, in a library that keeps the interpreter's lock, and
rank 0, where the store lies, can be gone without a word. `faulthandler` needs neither: its own timer, which is set
anew at every look, then writes the stacks and ends the process.
"""

import contextlib
import datetime
import enum
import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch.distributed as dist

from relic import verdict
from relic.parallel.mesh import PATIENCE, Mesh

ANSWER_S = 5.0  # in which a process that can answer does
SHOWN = 4  # stacks beside its own that a process prints


class Phase(enum.IntEnum):
    LOADS = 0
    COMPUTES = 1
    WAITS = 2

    @property
    def words(self) -> str:
        return ("waits for data", "computes", "may wait for the others")[self]


class Stand(NamedTuple):
    """How far a process has come."""

    step: int  # that has begun
    meetings: int  # how often it has come, in this step, to where it may wait for the others
    phase: Phase

    @property
    def is_at(self) -> tuple[int, int]:
        return self.step, self.meetings


class Watchdog:
    """Made by all processes at the same time. Looks on from `start` to `close`; its files lie in `folder`, if any."""

    def __init__(self, mesh: Mesh, *, folder: Path | None, stalled_s: float):
        """`stalled_s`: a wait for data that is longer is said while it lasts."""
        self.mesh, self.timeout_s, self.stalled_s = mesh, mesh.cfg.timeout_s, stalled_s
        self.look_s = min(1.0, self.timeout_s / 20)
        self.name = f"rank {mesh.rank} on {socket.gethostname()}"
        self.path = None if folder is None else folder / f"rank-{mesh.rank:05d}.stack"
        self.file: TextIO = open(self.path, "a+") if self.path else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.store = None if mesh.world == 1 else opened(mesh)
        self.stand, self.patience_s = Stand(0, 0, Phase.COMPUTES), PATIENCE * self.timeout_s
        self.moved = self.changed = time.monotonic()  # when a step ended, and when the phase began
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name="watchdog")

    def start(self) -> None:
        self.moved = self.changed = time.monotonic()
        self._arm(self.patience_s)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        if self.path and not self.path.stat().st_size:
            self.path.unlink()

    def beat(self, step: int, *, anew: bool = False) -> None:
        """A step has ended and `step` begins; `anew`: one of another kind, which may have to be compiled."""
        self.stand = Stand(step, 0, Phase.COMPUTES)
        self.moved = self.changed = time.monotonic()
        self.patience_s = self.timeout_s * (PATIENCE if anew else 1)  # last, for the thread may look in between

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        self.enter(phase)
        yield
        self.enter(Phase.COMPUTES)

    def enter(self, phase: Phase) -> None:
        self.changed = time.monotonic()
        self.stand = Stand(self.stand.step, self.stand.meetings + (phase is Phase.WAITS), phase)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """What all processes do within takes up to PATIENCE times `timeout_s`; who is ready waits for the others."""
        before, self.patience_s = self.patience_s, PATIENCE * self.timeout_s
        self.moved = time.monotonic()
        yield
        self.mesh.wait()
        self.moved = time.monotonic()
        self.patience_s = before

    def _work(self) -> None:
        said_of = 0.0
        while not self.over.wait(self.look_s):
            self._arm(self.patience_s)
            now, since = time.monotonic(), self.changed
            if self.stand.phase is Phase.LOADS and now - since > self.stalled_s and said_of != since:
                said_of = since
                print(f"warning: {self.name} has waited for data for {now - since:.0f} s", file=sys.stderr, flush=True)
            if now - self.moved > self.patience_s or self._called():
                self._end()

    def _arm(self, seconds: float) -> None:
        """Without another call by then, the process ends, whatever this thread does."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.file)

    def _called(self) -> bool:
        """Tells the others where this process stands; whether one of them has noticed that all hang."""
        if self.store is None:
            return False
        try:
            self.store.set(f"stand/{self.mesh.rank}", " ".join(str(int(part)) for part in self.stand))
            return self.store.check(["noticed"])
        except dist.DistError:  # rank 0 is gone: torchrun sees that, and if it does not, the time runs out here
            self.store = None
            return False

    def _end(self) -> None:
        self._arm(4 * ANSWER_S)
        stack = self._stack()
        try:
            said = self._asked(stack)
        except dist.DistError as error:
            said = f"rank 0, which would know where the others stand, does not answer: {error}"
        self.file.write(f"\n{time.strftime('%F %T')} {said}\n\n")
        self.file.flush()
        print(f"error: {self.name}, step {self.stand.step}: {said}\n\nIts stack:\n{stack}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        verdict.write(verdict.HUNG, said)
        os._exit(verdict.HUNG)

    def _stack(self) -> str:
        """Of all threads, which is also written to the file, behind those of earlier calls."""
        start = self.file.seek(0, os.SEEK_END)
        faulthandler.dump_traceback(self.file, all_threads=True)
        self.file.seek(start)
        return self.file.read()

    def _asked(self, stack: str) -> str:
        """What there is to say of all processes; gives the others the time to hear of it."""
        said = f"no step has ended for {time.monotonic() - self.moved:.3g} s (timeout_s is {self.timeout_s:g})"
        if self.store is None:
            return f"{said}; it {self.stand.phase.words}"
        mine, ranks = self.mesh.rank, range(self.mesh.world)
        is_first = self.store.add("noticed", 1) == 1
        self.store.set(f"stack/{mine}", stack)
        if not is_first:
            with contextlib.suppress(dist.DistError):  # it took too long or has ended; so does this one
                self.store.wait(["said"], datetime.timedelta(seconds=2 * ANSWER_S))
            return "another process has noticed that no step ends"
        until = time.monotonic() + ANSWER_S
        while not all(self.store.check([f"stack/{rank}"]) for rank in ranks) and time.monotonic() < until:
            time.sleep(0.05)
        stands = {rank: self._stand_of(rank) for rank in ranks}
        silent = {rank for rank in ranks if not self.store.check([f"stack/{rank}"])}
        late = [rank for rank in behind(stands, silent) if rank != mine]
        stacks = [f"The stack of rank {rank}:\n{self.store.get(f'stack/{rank}').decode()}" for rank in late[:SHOWN]]
        self.store.set("said", "")
        return "\n\n".join([f"{said}; {blamed(stands, silent)}", *stacks])

    def _stand_of(self, rank: int) -> Stand | None:
        """Where a process stood when its thread last looked; None before that."""
        assert self.store is not None
        if not self.store.check([f"stand/{rank}"]):
            return None
        step, meetings, phase = map(int, self.store.get(f"stand/{rank}").decode().split())
        return Stand(step, meetings, Phase(phase))


def opened(mesh: Mesh) -> Any:
    """A store in rank 0's process, at a free port; all processes open it at the same time."""
    host, wait = os.environ["MASTER_ADDR"], datetime.timedelta(seconds=mesh.cfg.timeout_s)
    if mesh.is_first:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        mesh.said_by_first(store.port)
        return store
    port = mesh.said_by_first(None)
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)


def behind(stands: dict[int, Stand | None], silent: set[int]) -> list[int]:
    """Of the ranks that answer those that the others may be waiting for: the least far; none when all are as far."""
    places = {rank: stand.is_at if stand else (-1, 0) for rank, stand in stands.items() if rank not in silent}
    least = min(places.values())
    return [rank for rank, place in places.items() if place == least] if len(set(places.values())) > 1 else []


def blamed(stands: dict[int, Stand | None], silent: set[int]) -> str:
    """One line on who holds up whom; of `silent` ranks the threads do not answer either."""
    words = {rank: f"{at.phase.words} in step {at.step}" if at else "has not begun" for rank, at in stands.items()}
    said = [f"rank {rank} is stuck or gone: it does not answer, and when last seen it {words[rank]}" for rank in silent]
    said += [f"rank {rank} holds up the others: it {words[rank]}" for rank in behind(stands, silent)]
    return "; ".join(said) or f"all ranks stand at the same point: rank 0 {words[0]}"
