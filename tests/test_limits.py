"""Rates and counts: what is let through, what is not, and that nothing grows with the number of callers."""

import contextlib
import select
import socket
import time

import httpx
import pytest
from fake_world import FakeWorld, Place, serving
from test_api import OTHER

from relic.serve import limits
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


def refusal(sockets: Sockets, caller: str) -> str:
    try:
        sockets.check(caller)
    except Refused as error:
        return error.sentence.partition(";")[0]
    return ""


def test_one_caller_opens_half_of_the_streams_and_others_the_rest():
    sockets = Sockets(4)
    with sockets.open.hold("ann"), sockets.open.hold("ann"):
        assert refusal(sockets, "ann") == "2 streams are open already, 0 of them without a hello, 2 of them yours"
        with sockets.open.hold("bob"):
            assert not refusal(sockets, "bob")
            with sockets.open.hold("cat"):
                assert refusal(sockets, "dan").startswith("4 streams are open already")
    assert not sockets.open.held


def test_half_of_the_streams_may_be_silent_and_of_these_half_one_callers():
    sockets = Sockets(8)
    with sockets.silent.hold("ann"), sockets.silent.hold("ann"):
        assert "2 of them without a hello" in refusal(sockets, "ann")
        assert not refusal(sockets, "bob")
        with sockets.silent.hold("bob"), sockets.silent.hold("cat"):
            assert "4 of them without a hello" in refusal(sockets, "dan")


# --- bodies ---------------------------------------------------------------------------------------------------------


HEAD = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture(scope="module")
def place():
    with serving(FakeWorld(), slots=3, sessions_each=3, image_bytes=1000) as found:
        yield found


def slow(place: Place) -> socket.socket:
    """A request whose body does not come."""
    host, port = place.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=5)
    line.sendall(HEAD.encode())
    return line


def test_a_body_that_does_not_come_is_given_up(place, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.2)
    answer = b""
    with slow(place) as line:
        while not answer.endswith(b"}"):
            answer += line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not come within 0.2 s" in answer


def test_one_callers_slow_bodies_keep_nobody_else_out(place):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(slow(place)) for _ in range(limits.MOST_BODIES // 2 + 1)]
        ((refused,), _, _) = select.select(lines, [], [], 5)
        answer = b""
        while not answer.endswith(b"}"):
            answer += refused.recv(4096)
        assert b"4 bodies are on their way already, 4 of them yours" in answer
        with httpx.Client(transport=httpx.HTTPTransport(local_address=OTHER[0])) as other:
            assert other.post(f"{place}/v1/sessions", json={"example": "e0"}).status_code == 201


def test_a_caller_who_leaves_within_a_body_is_no_failure_of_the_server(place, caplog):
    tasks = place.server.server_state.tasks
    with slow(place):
        while not tasks:
            time.sleep(0.01)
    while tasks:
        time.sleep(0.01)
    assert "ClientDisconnect" not in caplog.text
