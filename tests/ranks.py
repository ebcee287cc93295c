"""Functions run by several processes that meet over gloo, for tests.

A server that has imported everything once forks the processes, so that a test does not wait for imports."""

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks_preload"])


def run(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 240.0) -> list[Any]:
    """What `function(*args)`, of a module's top level, returns in each of `world` processes, by rank."""
    queue, processes = started(function, world, args)
    found: dict[int, Any] = {}
    patience = 5.0
    try:
        while len(found) < world:
            rank, found[rank] = pickle.loads(queue.get(timeout=timeout_s))
            if isinstance(found[rank], Failure):
                patience = 0.0  # the others wait for it
                raise AssertionError(f"rank {rank} of {world}:\n{found[rank].text}")
    finally:
        for process in processes:
            process.join(patience)
            process.kill()
    return [found[rank] for rank in range(world)]


def ended(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 60.0) -> list[int | None]:
    """The exit codes of `world` processes that call `function(*args)`, by rank; None of one that has not ended."""
    _, processes = started(function, world, args)
    until = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def started(function: Callable[..., Any], world: int, args: tuple) -> tuple[Any, list[Any]]:
    """A queue, of each rank and what it returns, and the processes that fill it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.Queue()
    ranks = range(world)
    processes = [CONTEXT.Process(target=_work, args=(queue, function, rank, world, port, args)) for rank in ranks]
    for process in processes:
        process.start()
    return queue, processes


class Failure:
    def __init__(self, text: str):
        self.text = text


def _work(queue: Any, function: Callable[..., Any], rank: int, world: int, port: int, args: tuple) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        found = function(*args)
    except Exception:
        found = Failure(traceback.format_exc())
    queue.put(pickle.dumps((rank, found)))  # by value: the sender may end before a tensor's memory is taken
    if dist.is_initialized() and not isinstance(found, Failure):
        dist.barrier()
        dist.destroy_process_group()
