"""Work for workers of Ray in tests: a module of its own, so that they import nothing else of the tests."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def dies(mark: Path, factory: Callable[..., Any], *given: Any) -> Callable[[Any], Any]:
    """What `factory` makes, but that the worker is killed in the middle while there is a mark, which goes."""
    work = factory(*given)

    def mortal(item: Any) -> Any:
        done = work(item)
        if mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return mortal


def squares(factor: int) -> Callable[[int], tuple[int, int]]:
    if not factor:
        raise ValueError("factor is 0; it must be more")

    def square(number: int) -> tuple[int, int]:
        if number < 0:
            raise ValueError(f"{number} is negative; allowed is 0 or more")
        return factor * number**2, torch.get_num_threads()

    return square
