"""Bodies of requests: bounded in size, in time and in number."""

import contextlib
import json
import socket

import httpx
import pytest
from fake_world import FakeWorld, Place, serving
from test_api import post

from relic.serve import asking, limits

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


def status_of(line: socket.socket) -> int:
    return int(line.recv(4096).split()[1])


def test_a_body_that_does_not_come_is_given_up(place, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.2)
    answer = b""
    with slow(place) as line:
        while not answer.endswith(b"}"):
            answer += line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not come within 0.2 s" in answer


def test_many_slow_bodies_are_not_read_at_a_time(place, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 1.0)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(slow(place)) for _ in range(asking.MOST_BODIES + 1)]
        assert status_of(lines[-1]) == 503
        assert [status_of(line) for line in lines[:-1]] == [408] * asking.MOST_BODIES
    assert post(place).status_code == 201


@pytest.mark.parametrize(
    "body", ["[" * 5000, '{"a":' * 5000, "nul", '"\ud800"', '{"seed": 1e999}', '{"seed": %s}' % ("9" * 9000)]
)
def test_a_body_that_hurts_is_a_sentence(place, body):
    data = body.encode("utf-8", "surrogatepass")
    answer = httpx.post(f"{place}/v1/sessions", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(json.loads(answer.content)["error"]) < 400
