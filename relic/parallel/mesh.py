"""Who is who: the processes that torchrun started, as data-parallel groups of sequence-parallel neighbours.

Rank r is number r mod `sequence` of data-parallel group r div `sequence`. The processes of a group see the same samples
and draw the same noise; each group takes an equal part of every batch. One process needs no process group at all, and
every method then gives back what it is given.
"""

import datetime
import os
import platform
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import relic
from relic.parallel.config import Parallel
from relic.parallel.sequence import ALONE, Sequence, Ulysses

PATIENCE = 3  # times `timeout_s`: for the first step, which compiles, and for what is done between steps
GIVING_UP = 2 * PATIENCE  # when a collective ends by itself: later than the watchdog, which says more


class Mesh:
    """The processes of a training. `sequence` is what a model's tokens and heads are shared by."""

    def __init__(self, cfg: Parallel | None = None, *, rank: int = 0, world: int = 1, device: str = ""):
        """Of processes that have joined (`joined`), which all make it at the same time; by default of this one."""
        cfg = cfg or Parallel()
        if world % cfg.sequence:
            raise ValueError(f"sequence is {cfg.sequence}; it must divide the {world} processes")
        self.cfg, self.rank, self.world, self.founded = cfg, rank, world, False
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.groups = world // cfg.sequence  # data-parallel
        self.group = rank // cfg.sequence
        self.sequence: Sequence = ALONE
        if cfg.sequence > 1:
            ranks = [list(range(first, first + cfg.sequence)) for first in range(0, world, cfg.sequence)]
            mine, _ = dist.new_subgroups_by_enumeration(ranks, timeout=patience(cfg))
            self.sequence = Ulysses(mine)

    @property
    def zero(self) -> int:
        """ZeRO's stage; one process has nothing to cut."""
        return self.cfg.zero if self.world > 1 else 0

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The places of a global batch that this process's group takes."""
        if batch % self.groups:
            raise ValueError(
                f"a batch of {batch} samples cannot be shared by {self.groups} groups of {self.cfg.sequence} "
                "process(es); the number of groups must divide it"
            )
        share = batch // self.groups
        return range(self.group * share, (self.group + 1) * share)

    def pieces(self, batch: int) -> list[range]:
        """`rows`, as many at a time as may be worked on at once."""
        rows = self.rows(batch)
        size = self.cfg.samples or len(rows)
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def share(self, piece: Collection[int], batch: int) -> float:
        """What a piece's mean counts in that of `rows`."""
        return len(piece) / len(self.rows(batch))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.world == 1:
            return values.detach()
        values = values.detach().clone()
        dist.all_reduce(values)
        return values / self.world

    def reduced(self, module: nn.Module, loss: Tensor) -> Tensor:
        """The mean loss [] of all processes; the module's gradients become means too."""
        self.average([p.grad for p in module.parameters() if p.grad is not None])
        return self.mean(loss)

    def average(self, tensors: list[Tensor]) -> None:
        """Each tensor's mean over all processes, in place; sent some `bucket` numbers at a time."""
        if self.world == 1:
            return
        for bucket in buckets(tensors, self.cfg.bucket):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.world
            for tensor, averaged in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(averaged.view_as(tensor))

    def said_by_all(self, value: Any) -> list[Any]:
        """What every process says, by rank. Waits for all."""
        if self.world == 1:
            return [value]
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, value)
        return said

    def said_by_first(self, value: Any) -> Any:
        """What rank 0 says. Waits for it."""
        said = [value]
        if self.world > 1:
            dist.broadcast_object_list(said, 0, device=torch.device(self.device))
        return said[0]

    def leave(self) -> None:
        """When all is done: the processes part, in order."""
        if self.world > 1:
            dist.barrier()
            if self.founded:
                dist.destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


def patience(cfg: Parallel) -> datetime.timedelta:
    """How long a collective waits for everyone."""
    return datetime.timedelta(seconds=GIVING_UP * cfg.timeout_s)


def gpu_memory() -> int:
    """Bytes of this process's GPU; 0 where there is none."""
    return (
        torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if torch.cuda.is_available() else 0
    )


def buckets(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Tensors of one precision, as many together as have at most `size` numbers."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > size or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def joined(cfg: Parallel) -> Mesh:
    """The mesh of the processes that torchrun started this one among; of this one alone where it did not.

    ValueError where the address is taken or cannot be reached."""
    world, rank, local = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    device = f"cuda:{local}" if cuda else "cpu"
    if world <= 1:
        return Mesh(cfg, device=device)
    found = not dist.is_initialized()  # Ray Train has done it
    if found:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            dist.init_process_group(
                "nccl" if cuda else "gloo", timeout=patience(cfg),
                device_id=torch.device(device) if cuda else None,
            )  # fmt: skip
        except (OSError, dist.DistNetworkError, dist.DistStoreError) as error:
            raise ValueError(
                f"process {rank} of {world} cannot meet the others at {address}: {error}; "
                "the port must be free on rank 0's machine and reachable from all"
            ) from error
    mesh = Mesh(cfg, rank=rank, world=world, device=device)
    mesh.founded = found
    versions = mesh.said_by_all((relic.__version__, torch.__version__, platform.python_version()))
    if len(set(versions)) > 1:
        other = next(r for r, version in enumerate(versions) if version != versions[0])
        raise ValueError(
            f"relic, torch and Python are {', '.join(versions[0])} in process 0 and {', '.join(versions[other])} in "
            f"process {other}; all processes must have the same"
        )
    return mesh
