"""Connections that ask for nothing do not stay, and there are never too many."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from fake_world import FakeWorld, Place, serving

from relic.serve import app, connections

HEAD_S = 0.2


@pytest.fixture
def place(monkeypatch) -> Iterator[Place]:
    monkeypatch.setattr(app, "MOST_ASKING", 4)
    monkeypatch.setattr(app, "bounded", lambda most: connections.bounded(most, HEAD_S))
    with serving(FakeWorld(), sockets=1) as found:
        yield found


def dial(place: Place, said: bytes = b"") -> socket.socket:
    host, port = place.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    line.settimeout(5)
    line.sendall(said)
    return line


def is_closed(line: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return line.recv(1) == b""
    return True


def send_for(line: socket.socket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        line.sendall(b"1000\r\n" + bytes(0x1000) + b"\r\n")
        time.sleep(0.001)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_connection_that_asks_for_nothing_is_closed(place, said):
    with dial(place, said) as line:
        began = time.monotonic()
        assert is_closed(line)
        assert HEAD_S / 2 < time.monotonic() - began < 10 * HEAD_S


def test_a_body_that_still_comes_when_it_is_refused_is_not_read_for_ever(place):
    head = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with dial(place, head.encode()) as line:
        assert line.recv(12) == b"HTTP/1.1 415"
        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            send_for(line, 20 * HEAD_S)


def test_one_that_asks_now_and_then_stays(place):
    with dial(place) as line:
        for _ in range(6):
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += line.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            time.sleep(HEAD_S / 2)


def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_are_served(place):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(dial(place)) for _ in range(5)]
        time.sleep(0.05)
        assert is_closed(stack.enter_context(dial(place)))
        lines[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert lines[0].recv(15) == b"HTTP/1.1 200 OK"
