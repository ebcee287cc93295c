"""The pace of a walk's pictures: when they are shown, when chunks begin, what is dropped."""

import itertools
from concurrent.futures import Future

import numpy as np
import pytest

from relic.serve.pace import Made, Pace


def made(count: int) -> list[Made]:
    return [(Future(), np.eye(4)) for _ in range(count)]


def chunk(pace: Pace, *at: float, since: float = 0.0) -> list[Made]:
    """A chunk of four pictures that come in equal parts at those times."""
    parts = [made(4 // len(at)) for _ in at]
    pace.begin([0] * 4, since=since)
    for part, now in zip(parts, at, strict=True):
        pace.add(part, now=now, made_ms=0.0)
    pace.finish(at[-1])
    return [*itertools.chain(*parts)]


def test_pictures_are_shown_at_the_worlds_rate():
    pace = Pace(16.0, 0.0)
    chunk(pace, 1.0)
    assert pace.next(0.9) is None
    shown = [pace.next(1.0 + k / 16) for k in range(4)]
    assert [picture and picture.sequence for picture in shown] == [0, 1, 2, 3]
    assert pace.next(9.0) is None


def test_the_first_pictures_are_due_while_the_chunk_is_still_made():
    pace = Pace(16.0, 0.0)
    chunk(pace, 1.0, 1.05)
    assert [picture.due for picture in pace.queue] == [1 + k / 16 for k in range(4)]


def test_a_part_that_comes_late_is_shown_at_once():
    pace = Pace(16.0, 0.0)
    chunk(pace, 1.0, 1.5)
    assert [picture.due for picture in pace.queue] == [1.0, 1 + 1 / 16, 1.5, 1.5 + 1 / 16]


def test_a_chunk_never_starts_while_more_than_one_waits():
    pace = Pace(16.0, 0.0)
    pace.lead_s = 9.0
    chunk(pace, 0.0)
    assert pace.shown_until - pace.starts_at() == 4 / 16


def test_a_fast_engine_starts_late_so_that_keys_are_fresh():
    pace = Pace(16.0, 0.0)
    pace.lead_s = 0.01
    chunk(pace, 0.0)
    assert pace.starts_at() == pytest.approx(4 / 16 - 0.0125 - 1 / 16)


def test_a_chunk_starts_for_its_first_pictures_not_for_its_last():
    pace = Pace(16.0, 0.0)
    for _ in range(30):
        start = pace.starts_at()
        chunk(pace, start + 0.05, start + 0.10)
    assert pace.lead_s == pytest.approx(0.05)
    assert pace.turnaround_s == pytest.approx(0.10)
    assert pace.interval_s == 1 / 16


def test_a_slow_engine_spreads_its_pictures_evenly():
    pace = Pace(16.0, 0.0)
    for step in range(20):
        chunk(pace, float(step))
    assert np.diff([picture.due for picture in pace.queue]) == pytest.approx(0.25, abs=0.01)


def test_time_asleep_is_not_the_engines():
    pace = Pace(16.0, 0.0)
    for step in range(4):
        chunk(pace, step / 4)
    chunk(pace, 60.1, since=60.0)
    assert pace.turnaround_s < 0.3


def test_when_nobody_takes_pictures_the_oldest_are_dropped_and_not_encoded():
    pace = Pace(16.0, 0.0)
    chunks = [chunk(pace, step / 4) for step in range(5)]
    assert [picture.sequence for picture in pace.queue] == list(range(12, 20))
    assert pace.num_dropped == 12
    assert [encoded.cancelled() for encoded, _ in itertools.chain(*chunks)] == [True] * 12 + [False] * 8


def test_a_chunk_must_bring_all_its_pictures():
    pace = Pace(16.0, 0.0)
    pace.begin([1, 2, 3], since=0.0)
    pace.add(made(2), now=0.0, made_ms=0.0)
    with pytest.raises(AssertionError, match="1 pictures too few"):
        pace.finish(0.0)
