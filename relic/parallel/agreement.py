"""What all processes decide together once a step, such as to stop or to save: a flag that one of them sets is set for
all of them, at the same step."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from relic.parallel.mesh import Mesh


class Asked(NamedTuple):
    said: Tensor  # int32 [flags], on the host
    there: torch.cuda.Event | None  # when it has come there


class Agreement:
    """`agreed` is called by all processes at every step, always with as many flags.

    With `late`, which CUDA wants, an answer is that to the question of the step before: it has come by then, so that
    the host waits for no device."""

    def __init__(self, mesh: Mesh, *, late: bool):
        self.mesh, self.late = mesh, late and mesh.world > 1
        self.asked: Asked | None = None
        self.answered: tuple[bool, ...] = ()

    def agreed(self, flags: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which flags any process has set. One process is answered at once."""
        if self.mesh.world == 1:
            return flags
        asked = self._ask(flags)
        if not self.late:
            return _read(asked)
        before, self.asked = self.asked, asked
        said = (False,) * len(flags) if before is None else _read(before)
        # what was answered at the last step was asked once more before anybody could act on it
        again = self.answered or (False,) * len(flags)
        self.answered = tuple(now and not then for now, then in zip(said, again, strict=True))
        return self.answered

    def _ask(self, flags: tuple[bool, ...]) -> Asked:
        on_cuda = torch.device(self.mesh.device).type == "cuda"
        said = torch.tensor(flags, dtype=torch.int32, pin_memory=on_cuda).to(self.mesh.device, non_blocking=True)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        there = torch.cuda.Event() if on_cuda else None
        said = said.to("cpu", non_blocking=True)  # into pinned memory
        if there is not None:
            there.record()
        return Asked(said, there)


def _read(asked: Asked) -> tuple[bool, ...]:
    if asked.there is not None:
        asked.there.synchronize()
    return tuple(bool(flag) for flag in asked.said.tolist())
