"""Functions run by several processes that meet over gloo, for tests.

A server that has imported everything once forks the processes, so that a test does not wait for imports."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks_preload"])


def run(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 240.0) -> list[Any]:
    """What `function(*args)`, of a module's top level, returns in each of `world` processes, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_work, args=(queue, function, rank, world, port, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
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
