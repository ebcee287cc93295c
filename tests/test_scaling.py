"""Bytes sent and held, measured in processes, beside the plan of the same dials: within 15 %."""

import json
from pathlib import Path
from typing import Any

import figures
import pytest
import ranks
import scaling
import sent
import steps
import torch

from relic.parallel.config import Parallel

CPU = torch.device("cpu")
SIZE = steps.sizes("cpu")
RESULT = figures.ROOT / "benchmarks/results/scaling.json"
CASES = {
    "gradients averaged, tokens shared": scaling.Case(
        training="teacher", processes=2, parallel=Parallel(sequence=2, bucket=SIZE.bucket)
    ),
    "gradients cut, replayed": scaling.Case(
        training="distill", processes=2, parallel=Parallel(zero=2, bucket=SIZE.bucket)
    ),
    "weights cut": scaling.Case(training="teacher", processes=2, parallel=Parallel(zero=3, bucket=SIZE.bucket)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_says_what_processes_send_and_hold(name: str) -> None:
    case = CASES[name]
    found = scaling.row(case, SIZE, ranks.run(steps.counted, 2, case.training, SIZE, case.parallel), CPU)
    assert found.planned_sent_bytes == pytest.approx(found.sent_bytes, rel=0.15)
    assert found.planned_peak_bytes == pytest.approx(found.peak_bytes, rel=0.15)


def collectives() -> list[float]:
    """Bytes sent in an all-reduce, an all-gather, an all-to-all and a barrier of two processes."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    x, found = torch.zeros(100), []
    with sent.Sent() as counter:
        for call in (
            lambda: dist.all_reduce(x),
            lambda: dist.all_gather([x.clone(), x.clone()], x),
            lambda: dist.all_to_all_single(torch.empty_like(x), x),
            dist.barrier,
        ):
            before = counter.bytes
            call()
            found.append(counter.bytes - before)
    return found


def test_collectives_are_counted_as_rings_send_them() -> None:
    assert ranks.run(collectives, 2) == [[400, 400, 200, 0]] * 2


def test_alone_nothing_is_sent_and_a_save_is_timed() -> None:
    case = scaling.Case(training="teacher", processes=1, parallel=Parallel())
    found = scaling.row(case, SIZE, [steps.measured(case.training, SIZE, case.parallel)], CPU)
    assert found.sent_bytes == found.planned_sent_bytes == 0
    assert found.checkpoint_s
    assert found.step_s
    assert found.planned_peak_bytes == pytest.approx(found.peak_bytes, rel=0.15)


def test_the_committed_rows_are_within_what_is_promised() -> None:
    rows: list[dict[str, Any]] = json.loads(Path(RESULT).read_text())["rows"]
    assert {(row["processes"], row["zero"], row["sequence"]) for row in rows} >= {
        (processes, zero, sequence)
        for processes in (2, 4) for zero in range(4) for sequence in (1, 2, 4) if sequence <= processes
    }  # fmt: skip
    for row in rows:
        for name in ("sent_bytes", "peak_bytes"):
            assert row[f"planned_{name}"] == pytest.approx(row[name], rel=0.15), row
