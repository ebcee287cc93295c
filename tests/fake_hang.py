"""The command `relic`, in which rank 1 sleeps for ever in its third replay, unless the group was started again: a
script for torchrun."""

import itertools
import os
import sys
import time
from typing import Any

from relic import __main__ as command
from relic import verdict
from relic.train import replay


def hang() -> None:
    calls, backward = itertools.count(1), replay.backward

    def hanging(*given: Any) -> None:
        if next(calls) == 3:
            time.sleep(600)
        backward(*given)

    replay.backward = hanging  # type: ignore[assignment]


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and verdict.restart() == 0:
        hang()
    sys.exit(command.main(sys.argv[1:]))
