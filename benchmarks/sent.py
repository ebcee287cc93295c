"""Bytes that a process sends, of every collective that reaches torch.distributed: DeepSpeed's too.

As a ring of n processes sends: of B bytes, 2 (n - 1) / n B for an all-reduce; (n - 1) / n B for an all-gather or a
reduce-scatter to or from B in all, and for an all-to-all, a broadcast or a reduce of B."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(TorchDispatchMode):
    """Adds up the bytes that this process sends, as a ring sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes += sent(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))


def sent(collective: str, args: Sequence[Any]) -> float:
    """Bytes that one process sends in a collective with torch's arguments."""
    if collective == "barrier":
        return 0
    groups = (x for x in args if isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type()))
    n = dist.ProcessGroup.unbox(next(groups)).size()
    first, second = (sum(x.nbytes for x in ([of] if isinstance(of, Tensor) else of) if isinstance(x, Tensor))
                     for of in (args[0], args[1] if isinstance(args[1], list | Tensor) else []))  # fmt: skip
    return {
        "allreduce_": lambda: 2 * (n - 1) / n * first,
        "allgather_": lambda: (n - 1) * second,
        "_allgather_base_": lambda: (n - 1) * second,
        "_reduce_scatter_base_": lambda: (n - 1) * first,
        "reduce_scatter_": lambda: (n - 1) * first,
        "alltoall_base_": lambda: (n - 1) / n * second,
        "broadcast_": lambda: (n - 1) / n * first,
        "reduce_": lambda: (n - 1) / n * first,
    }[collective]()
