"""One model on several GPUs of a pod: rank 0 talks to the network, the others do what it does.

The model's tokens and heads are shared by Ulysses (parallel/sequence.py): each process keeps the memory of its own
heads, and all of them make the same latents. So a follower needs no orders but the calls of the engine themselves: the
leader says each to the others (gloo, over the loopback) and then makes it, as they do. Pictures are the leader's alone.
Where the leader fails in a call of which the others know no failure, they wait for its rest: it says nothing more.

Not by torchrun: on SIGTERM its agent ends all processes within 30 s, and a server that drains needs minutes. The leader
starts the followers itself. They end with it: by its word, by a lost connection, or by the kernel (Linux) when it dies;
and when one of them ends, the leader is told why it cannot go on.
"""

import contextlib
import ctypes
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from relic.model import weights
from relic.model.codec import Stream
from relic.parallel import sequence
from relic.parallel.sequence import Ulysses
from relic.serve import engine, export
from relic.serve.config import Serve
from relic.serve.decoding import Pictures
from relic.serve.engine import Student, StudentWalk
from relic.serve.world import State

IDLE = datetime.timedelta(days=365)  # between two calls
PATIENCE_S = 5.0  # for the others to end
PLACE = "RELIC_SERVE_RANK"  # rank, world and port, of a follower
PR_SET_PDEATHSIG = 1
LOOPBACK = "127.0.0.1"


class Undecoded:
    """A follower's decoder, which makes no pictures."""

    at_once, seconds, finite = True, 0.0, True

    def start(self, stream: Stream, latents: Tensor, poses: Tensor) -> Pictures:
        return iter(())


class Together:
    """The processes of a model: what rank 0 says, all of them hear."""

    def __init__(self, rank: int, world: int, store: dist.Store, device: torch.device):
        self.rank, self.world = rank, world
        if device.type == "cuda":
            torch.cuda.set_device(device)
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        self.model = dist.new_group(backend=backend)
        self.control = dist.new_group(backend="gloo", timeout=IDLE)

    def say(self, *message: Any) -> tuple:
        """What rank 0 gives, at all ranks."""
        said = [message]
        dist.broadcast_object_list(said, src=0, group=self.control)
        return said[0]

    def share(self, student: Student) -> None:
        """ValueError where the model's heads cannot be shared equally."""
        sequence.share(student.model, Ulysses(self.model))

    def gather(self, state: State) -> list[dict[str, Tensor]]:
        """All ranks' tensors, at rank 0."""
        found = [b""] * self.world
        dist.gather_object(save(state.tensors), found if self.rank == 0 else None, dst=0, group=self.control)
        return [load(data) for data in found if data]


class Leader:
    """The engine of rank 0: a `Student` whose calls the others make too."""

    def __init__(self, student: Student, together: Together):
        self.student, self.together = student, together
        self.world, self.warm_chunks = student.world, student.warm_chunks
        self.num_walks = 0
        self.gone = deque[int]()  # numbers of walks that nobody holds any more
        self.fault = ""  # why the others are elsewhere

    @property
    def free_bytes(self) -> int | None:
        return self.student.free_bytes

    def open(self, image: np.ndarray, caption: str, seed: int) -> "LedWalk":
        return self.lead("open", self.number(), image, caption, seed)

    def restore(self, state: State) -> "LedWalk":
        return self.lead("restore", self.number(), save(state.tensors), state.facts)

    def check(self) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        self.student.check()

    def number(self) -> int:
        self.num_walks += 1
        return self.num_walks

    def lead(self, call: str, number: int, *given: Any) -> "LedWalk":
        self.say(call, number, *given)
        with self.in_step():
            return LedWalk(self, number, made(self.student, self.together, call, *given))

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """What the others do too; a ValueError refuses it at all of them, a FloatingPointError is of what all made."""
        try:
            yield
        except (ValueError, FloatingPointError):
            raise
        except Exception as error:
            self.fault = f"the first process of the model has left the others: {type(error).__name__}: {error}"
            raise

    def forget(self, number: int) -> None:
        """The others hear with the next call that nobody holds this walk any more; from any thread."""
        self.gone.append(number)

    def say(self, *message: Any) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        gone = [self.gone.popleft() for _ in range(len(self.gone))]
        self.together.say(gone, *message)

    def close(self) -> None:
        if not self.fault:
            self.say("end", 0)


class LedWalk:
    """A walk of the leader, with a number by which the others know theirs."""

    def __init__(self, leader: Leader, number: int, walk: StudentWalk):
        self.leader, self.number, self.walk = leader, number, walk
        weakref.finalize(self, leader.forget, number)

    @property
    def num_actions(self) -> int:
        return self.walk.num_actions

    def storage(self) -> dict[int, int]:
        return self.walk.storage()

    def most_bytes(self, *, points: int, every: int) -> int:
        return self.walk.most_bytes(points=points, every=every)

    @property
    def decode_s(self) -> float:
        return self.walk.decode_s

    def step(self, actions: np.ndarray) -> Pictures:
        self.leader.say("step", self.number, actions)
        return self.pictures(actions)

    def pictures(self, actions: np.ndarray) -> Pictures:
        """The chunk is made to its end, as the others make it, though a reader stops before."""
        with self.leader.in_step():
            made = self.walk.step(actions)
            try:
                for latent in made:  # noqa: UP028, for `yield from` would close it
                    yield latent
            finally:
                for _ in made:
                    pass

    def branch(self) -> "LedWalk":
        number = self.leader.number()
        self.leader.say("branch", self.number, number)
        with self.leader.in_step():
            return LedWalk(self.leader, number, self.walk.branch())

    def state(self) -> State:
        self.leader.say("state", self.number)
        with self.leader.in_step():
            own = self.walk.state()
            every = self.leader.together.gather(own)
        tensors = {f"{rank}.{name}": x for rank, found in enumerate(every) for name, x in found.items()}
        return State(tensors, own.facts)


def made(student: Student, together: Together, call: str, *given: Any) -> StudentWalk:
    """A walk that begins at every rank."""
    if call == "open":
        return student.open(*given)
    data, facts = given
    return student.restore(State(engine.under(str(together.rank), load(data)), facts))


def obey(student: Student, together: Together) -> None:
    """A follower's life."""
    walks: dict[int, StudentWalk] = {}
    student.decoder = Undecoded()
    while True:
        gone, call, number, *given = together.say()
        for old in gone:
            walks.pop(old, None)
        if call == "end":
            return
        if call in ("open", "restore"):
            with contextlib.suppress(ValueError):  # a state that no rank can go on from; the leader says so
                walks[number] = made(student, together, call, *given)
        elif call == "branch":
            walks[given[0]] = walks[number].branch()
        elif call == "step":
            for _ in walks[number].step(*given):
                pass
        else:
            together.gather(walks[number].state())


# --- their beginning and their end ----------------------------------------------------------------------------------


class Followers:
    """The other processes, and one thread that sees them end."""

    def __init__(self, cfg: Serve, port: int):
        dials = json.dumps(asdict(cfg))
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "relic.serve.ranks"], stdin=subprocess.PIPE, text=True, start_new_session=True,
                env={**os.environ, PLACE: f"{rank} {cfg.gpus} {port}"},
            )
            for rank in range(1, cfg.gpus)
        ]  # fmt: skip
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(dials)
            process.stdin.close()
        self.ending = False
        self.goodbye: Callable[[], None] = lambda: None
        self.lost: Callable[[str], object] = give_up  # called with a sentence when one has ended before its time
        for rank, process in enumerate(self.processes, 1):
            threading.Thread(target=self._wait, args=(rank, process), daemon=True).start()

    def _wait(self, rank: int, process: subprocess.Popen) -> None:
        code = process.wait()
        if not self.ending:
            self.lost(f"rank {rank} of the model has ended with exit code {code}")

    def kill(self) -> None:
        self.ending = True
        for process in self.processes:
            process.kill()
            process.wait()

    def end(self, last: Callable[[], object] = lambda: None) -> bool:
        """Says goodbye after the `last` call, and waits for them; False where one did not hear it and was killed: that
        call may not come back either."""
        self.ending, heard = True, True
        threading.Thread(target=lambda: (last(), self.goodbye()), daemon=True).start()
        for process in self.processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                heard = False
        return heard


def give_up(sentence: str) -> NoReturn:
    """Ends this process, from any thread: while it loads it waits for the others in torch, which hears of no end."""
    print(f"relic: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


def lead(cfg: Serve) -> tuple[Leader, Followers]:
    """The engine of a pod of `cfg.gpus` processes, and the others of them."""
    device = engine.choose_device(cfg.device)
    folder = export.folder_of(cfg)  # here once, not by all of them at the same time
    heads = weights.read_config(folder / "student", "transformer").heads
    if heads % cfg.gpus:
        raise ValueError(f"gpus is {cfg.gpus}; it must divide the model's {heads} heads")
    listener = socket.create_server((LOOPBACK, 0))  # torch's own would be open to other machines
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        LOOPBACK, port, cfg.gpus, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    followers = Followers(cfg, store.port)
    try:
        together = Together(0, cfg.gpus, store, own_device(device, 0))
        leader = Leader(loaded(cfg, together, own_device(device, 0)), together)
    except BaseException:
        followers.kill()
        raise
    followers.goodbye = leader.close
    return leader, followers


def loaded(cfg: Serve, together: Together, device: torch.device) -> Student:
    student = engine.load(cfg, device)
    together.share(student)
    return student


def own_device(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", rank) if device.type == "cuda" else device


def follow() -> None:
    """A follower, from its beginning to its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cfg = Serve(**json.load(sys.stdin))
    rank, world, port = map(int, os.environ[PLACE].split())
    device = own_device(engine.choose_device(cfg.device), rank)
    together = Together(rank, world, dist.TCPStore(LOOPBACK, port, world), device)
    obey(loaded(cfg, together, device), together)
    dist.destroy_process_group()


if __name__ == "__main__":
    follow()
