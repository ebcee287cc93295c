"""Work on a Ray cluster, by Ray Data: its results come back in order and are those of one process, bit for bit.

A piece of work is a function of its item alone, so any worker may do it. A worker that dies is replaced and its piece
done again. Items and results travel through Ray's object store: workers need relic, of this version, and no disk of
ours. A worker computes on as many threads as this process would, for sums depend on that; OMP_NUM_THREADS=1 gives the
most workers. Bits are equal where the machines have the same kind of processor, or of GPU."""

import contextlib
import functools
import logging
import os
import pickle
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from relic.mistakes import UserError

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise UserError(f"--ray needs {error.name}; install the extra: pip install 'relic[ray]'") from error

CONNECT_S = 5.0
READERS = 2  # items read at once
ATTEMPTS = 4  # at a piece whose worker dies; Ray Data alone would try for ever


def results(
    make: Callable[..., Callable[[Any], Any]], given: tuple, items: Sequence[Any], *,
    address: str, read: Callable[[Any], Any] | None = None, gpu: bool = False, here: bool = False,
) -> Iterator[Any]:  # fmt: skip
    """`make(*given)(read(item))` of every item in order. `read` runs on this machine, the rest where there is room.

    `make` is called once a worker. `gpu` gives every worker a GPU if the cluster has any; `here` keeps the workers on
    this machine, whose disk they read. What a worker raises is raised here."""
    if not items:
        return
    with connected(address):
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        this_machine = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        threads, gpus = torch.get_num_threads(), int(gpu and ray.cluster_resources().get("GPU", 0) > 0)
        place = this_machine if here else {}
        room = room_for(threads, gpus, place.get("ray.io/node-id", ""))
        if not room:
            raise UserError(
                f"no machine of the Ray cluster {address!r} has the {threads} CPUs that a worker takes, one a thread; "
                "OMP_NUM_THREADS=1 makes it one"
            )
        attempts = ray.remote(Attempts).options(num_cpus=0, label_selector=this_machine).remote(ATTEMPTS)
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        data: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        if read is not None:
            few = ray.data.TaskPoolStrategy(size=READERS)
            data = data.map(functools.partial(mapped, read), compute=few, num_cpus=0, label_selector=this_machine)
        worker: Any = Worker  # built by Ray, from the arguments that follow
        data = data.map(
            worker, fn_constructor_args=(make, given, threads, attempts), num_cpus=threads, num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=room), label_selector=place,
        )  # fmt: skip
        for row in data.iter_rows():
            yield value_of(row)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """In a cluster: the one that this process is in already, or else the one of the address until the end."""
    if ray.is_initialized():
        yield
        return
    host, colon, port = address.rpartition(":")
    if address not in ("local", "auto") and not (colon and port.isdigit() and "://" not in host):
        raise UserError(f"--ray is {address!r}; it must be HOST:PORT, auto or local")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if colon:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    except OSError as error:
        raise UserError(f"there is no Ray cluster at {address!r} that this machine is part of: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def room_for(threads: int, gpus: int, machine: str = "") -> int:
    """How many workers fit on the cluster's machines, or on the one of an id."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and machine in ("", node["NodeID"])]
    fits = [(has.get("CPU", 0) // threads, has.get("GPU", 0) // gpus if gpus else torch.inf) for has in found]
    return int(sum(min(fit) for fit in fits))


class Attempts:
    """Counts how often each piece was begun, in a process of its own that outlives workers."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.begun = allowed, Counter[int]()

    def begin(self, number: int) -> str:
        """Empty, or why a piece may not be begun again."""
        if self.begun[number] == self.allowed:
            return f"piece {number} has ended its worker {self.allowed} times; is memory short?"
        self.begun[number] += 1
        return ""


class Worker:
    """What Ray Data builds in each of its processes."""

    def __init__(self, make: Callable[..., Any], given: tuple, threads: int, attempts: Any) -> None:
        torch.set_num_threads(threads)
        self.make, self.given, self.attempts = make, given, attempts

    @functools.cached_property
    def work(self) -> Callable[[Any], Any]:
        """Made by the first piece, so that what goes wrong is said and counted with it."""
        return self.make(*self.given)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return mapped(lambda item: self.begun(row["number"])(item), row)

    def begun(self, number: int) -> Callable[[Any], Any]:
        if refusal := ray.get(self.attempts.begin.remote(number)):
            raise RuntimeError(refusal)
        return self.work


def mapped(function: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row with function(item) in its item's place, or with what was raised; a row that failed before stays."""
    if row.get("error"):
        return row
    try:
        return {"number": row["number"], "error": b"", "item": pickle.dumps(function(pickle.loads(row["item"])))}
    except Exception as error:  # said where a person reads it
        return {"number": row["number"], "error": pickle.dumps((error, traceback.format_exc())), "item": b""}


def value_of(row: dict[str, Any]) -> Any:
    """What a worker made, or raised."""
    if row["error"]:
        error, trace = pickle.loads(row["error"])
        raise error from RuntimeError(f"on a worker of Ray:\n{trace}")
    return pickle.loads(row["item"])
