"""Trainings that only end in some way, for tests of what launches them: a script for torchrun, a command for Ray.

`fake_training.py HOW FOLDER`; every start leaves a file in FOLDER, named by restart and rank."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from relic import verdict

SAVE_S = 3.0
KILLED_S = 1.0  # after the start, which Ray Train does not repeat
WAIT_S = 20.0  # longer than anybody waits for


def command(args: list[str]) -> int:
    how, folder = args[0], Path(args[1])
    rank = int(os.environ["RANK"])
    starts = len(list(folder.glob(f"start-*-{rank}")))
    (folder / f"start-{starts}-{rank}").write_text(os.environ["WORLD_SIZE"])
    verdict.begin()
    first = starts == 0 and "killed once" in how
    if "mistake" in how and not first:
        verdict.write(verdict.MISTAKE, "the batch is 3;\n it must be even")
        return verdict.MISTAKE
    if rank == 1 and (how == "killed" or first):
        time.sleep(KILLED_S)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "save":
        signal.signal(signal.SIGTERM, save)
    if how in ("save", "wait", "killed") or first:
        (folder / f"ready-{rank}").touch()
        time.sleep(WAIT_S)
    print(f"rank {rank} is done", flush=True)
    return 0


def save(number: int, frame: FrameType | None) -> None:
    """As a training does that was told to stop."""
    time.sleep(SAVE_S)
    verdict.write(verdict.STOPPED, "saved at step 7", asked=True)
    sys.exit(verdict.STOPPED)


def together(args: list[str]) -> int:
    """On Ray, where the process group is there already: every rank adds its number."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(float(os.environ["RANK"]))
    dist.all_reduce(total)
    Path(args[1], f"sum-{os.environ['RANK']}").write_text(f"{total.item():g} of {os.environ['WORLD_SIZE']}")
    return command(args)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
