"""Rates and counts: what is let through, what is not, and that nothing grows with the number of callers."""

import pytest

from relic.serve.access import Refused
from relic.serve.limits import FLOOD_S, MOST_KNOWN, Bucket, Creates, Messages, Sockets


def test_a_bucket_lets_through_its_most_at_once_and_its_rate_from_then_on():
    bucket = Bucket(2.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert sum(bucket.take(step / 100) == 0 for step in range(1, 1001)) == 20


def test_a_quiet_bucket_never_holds_more_than_its_most():
    bucket = Bucket(2.0, 3.0, 0.0)
    assert [bucket.take(1e6) for _ in range(4)] == [0, 0, 0, 0.5]


def test_who_asks_too_often_for_walks_hears_when_to_come_again_and_others_do_not():
    creates = Creates(2.0)
    creates.take("ann", 0.0)
    creates.take("ann", 0.0)
    with pytest.raises(Refused, match="allowed are 2 a minute") as error:
        creates.take("ann", 0.0)
    assert (error.value.status, error.value.retry_after_s) == (429, 30.0)
    creates.take("bob", 0.0)
    creates.take("ann", 30.0)


def test_the_rates_of_many_callers_take_bounded_memory():
    creates = Creates(1.0)
    for number in range(MOST_KNOWN + 100):
        creates.take(str(number), 0.0)
    assert len(creates.buckets) == MOST_KNOWN


def flood(per_s: float, seconds: float) -> tuple[int, int, float | None]:
    """(read, sentences, when it was closed) of messages that come at a rate of 100 a second, allowed are 10."""
    messages, read, told = Messages(10.0, 0.0), 0, 0
    for step in range(int(seconds * per_s)):
        try:
            read += messages.take(step / per_s)
        except ValueError:
            told += 1
        except Refused:
            return read, told, step / per_s
    return read, told, None


def test_messages_within_the_rate_are_all_read():
    assert flood(9.0, 100.0) == (900, 0, None)


def test_messages_over_the_rate_are_dropped_with_a_sentence_a_second_and_then_the_stream_ends():
    read, told, closed = flood(100.0, 60.0)
    assert closed is not None
    assert FLOOD_S < closed < FLOOD_S + 1
    assert abs(read - 10 - 10 * closed) <= 1
    assert told == pytest.approx(closed, abs=1)


def test_a_burst_now_and_then_is_forgiven():
    messages, told = Messages(10.0, 0.0), 0
    for burst in range(20):
        for _ in range(15):
            try:
                messages.take(3.0 * burst)
            except ValueError:
                told += 1
    assert told == 20


def test_half_of_the_streams_may_be_silent():
    sockets = Sockets(4)
    with sockets.place(), sockets.place():
        with sockets.silence():
            sockets.check()
            with sockets.silence(), pytest.raises(Refused, match="2 streams are open already, 2 of them without"):
                sockets.check()
        with sockets.place(), sockets.place(), pytest.raises(Refused, match="4 streams are open"):
            sockets.check()
    assert (sockets.open, sockets.silent) == (0, 0)
