"""The port of a server: connections that ask for nothing do not stay, and there are never too many."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from fake_world import FakeWorld, Place, serving
from test_api import OTHER

from relic.serve import app, listener
from relic.serve.listener import Bounded, address, bind

HEAD_S = 0.2
UPGRADE = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {22 * 'A'}=="
TEXT, CLOSE, PING, PONG, PART = 129, 136, 137, 138, 0  # kinds of frames, as they are on the wire


@contextlib.contextmanager
def looking(patch: pytest.MonkeyPatch, head_s: float) -> Iterator[Place]:
    """A server that takes 5 connections and looks at each every `head_s`."""
    patch.setattr(app, "MOST_ASKING", 4)
    patch.setattr(listener, "HEAD_S", head_s)
    with serving(FakeWorld(), sockets=1) as found:
        yield found


@pytest.fixture
def hasty(monkeypatch) -> Iterator[Place]:
    with looking(monkeypatch, HEAD_S) as found:
        yield found


@pytest.fixture
def place(monkeypatch) -> Iterator[Place]:
    with looking(monkeypatch, 60.0) as found:
        yield found


def dial(place: Place, said: bytes = b"", source: tuple[str, int] | None = None) -> socket.socket:
    host, port = place.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), source_address=source)
    line.settimeout(5)
    line.sendall(said)
    return line


def is_closed(line: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return line.recv(1) == b""
    return True


def ask(line: socket.socket) -> None:
    line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        part = line.recv(4096)
        if not part:
            raise ConnectionError("it is closed")
        answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK")


def full(place: Place, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Five connections, all that there may be."""
    lines = [stack.enter_context(dial(place)) for _ in range(5)]
    while len(place.server.server_state.connections) < 5:
        time.sleep(0.01)
    return lines


def send_for(line: socket.socket, seconds: float, part: bytes) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        line.sendall(part)
        time.sleep(0.001)


def frame(kind: int, said: bytes = b"") -> bytes:
    """A frame of a WebSocket, masked with zeros; the last of its message unless `kind` is less than 128."""
    return bytes([kind, 128 + len(said), 0, 0, 0, 0]) + said


def upgraded(place: Place, path: str = "/v1/sessions/x/stream") -> socket.socket:
    """A WebSocket that has not said hello, and takes little at a time."""
    line = dial(place, f"GET {path} HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n\r\n".encode())
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert line.recv(12) == b"HTTP/1.1 101"
    return line


def unread(place: Place) -> list[int]:
    """Bytes that wait for each caller to take them."""
    return [one.transport.get_write_buffer_size() for one in place.server.server_state.connections]


def when(fact: Callable[[], bool]) -> bool:
    """Whether it becomes so within five seconds."""
    until = time.monotonic() + 5
    while not fact() and time.monotonic() < until:
        time.sleep(0.01)
    return fact()


def test_what_is_written_leaves_at_once() -> None:
    async def no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(met, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                answer = await found
                writer.close()
                return answer

    assert asyncio.run(no_delay())


def test_an_address_is_one_that_a_browser_takes() -> None:
    with bind("0.0.0.0", 0) as everywhere:
        assert address(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"


def test_a_host_without_an_address_is_said() -> None:
    with pytest.raises(ValueError, match="host is 'no such host', which has no address"):
        bind("no such host", 0)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_connection_that_asks_for_nothing_is_closed(hasty, said):
    began = time.monotonic()
    with dial(hasty, said) as line:
        assert is_closed(line)
        assert time.monotonic() - began > HEAD_S / 2


def test_a_body_that_still_comes_when_it_is_refused_is_not_read_for_ever(hasty):
    head = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with dial(hasty, head.encode()) as line:
        assert line.recv(12) == b"HTTP/1.1 415"
        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            send_for(line, 50 * HEAD_S, b"1000\r\n" + bytes(0x1000) + b"\r\n")


def test_who_takes_nothing_of_its_answers_is_closed(hasty):
    with dial(hasty, 200 * b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"):
        state, until = hasty.server.server_state, time.monotonic() + 50 * HEAD_S
        while (state.connections or not state.total_requests) and time.monotonic() < until:
            time.sleep(0.01)
        assert state.total_requests < 200
        assert not state.connections


def test_a_body_in_a_flood_of_small_parts_is_cut_off(place):
    head = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with dial(place, head.encode()) as line, pytest.raises(OSError, match=r"reset|[Pp]ipe"):
        send_for(line, 5, 50 * b"1\r\nx\r\n")


@pytest.mark.parametrize("kind", [TEXT, PING, PONG, PART])
def test_a_stream_in_a_flood_of_frames_is_cut_off(place, kind):
    with upgraded(place) as line:
        line.sendall(frame(1) if kind == PART else b"")
        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            send_for(line, 5, 50 * frame(kind))


@pytest.fixture
def deaf(place, monkeypatch) -> Iterator[socket.socket]:
    """A WebSocket that has pinged 20,000 times and reads nothing."""
    monkeypatch.setattr(listener, "FRAMES_PER_S", 1e6)
    monkeypatch.setattr(listener, "HEAD_S", HEAD_S)
    with upgraded(place) as line:
        line.sendall(20_000 * frame(PING, bytes(125)))
        assert when(lambda: max(unread(place)) > 0)
        yield line


def test_who_pings_and_does_not_read_fills_no_memory(place, deaf):
    deaf.sendall(20_000 * frame(PING, bytes(125)))
    time.sleep(0.2)
    assert max(unread(place)) < 1 << 17


def test_who_does_not_take_the_end_of_a_stream_is_cut_off(place, deaf):
    deaf.sendall(frame(CLOSE))
    assert when(lambda: not place.server.server_state.connections)


def test_one_that_has_asked_since_the_last_look_stays(place):
    with dial(place) as line:
        ask(line)
        (one,) = place.server.server_state.connections
        assert isinstance(one, Bounded)
        before = one.cycle
        ask(line)
        one.loop.call_soon_threadsafe(one.look, before, 0)
        ask(line)
        one.loop.call_soon_threadsafe(one.look, one.cycle, 0)
        assert is_closed(line)


def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_are_served(place):
    with contextlib.ExitStack() as stack:
        lines = full(place, stack)
        assert is_closed(stack.enter_context(dial(place)))
        ask(lines[0])


def test_who_has_most_connections_loses_one_to_another_caller(place):
    with contextlib.ExitStack() as stack:
        lines = full(place, stack)
        others = [stack.enter_context(dial(place, source=OTHER)) for _ in range(3)]
        ask(others[0])
        ask(others[1])
        assert is_closed(others[2])  # it would have as many as the first caller
        assert sum(answers(line) for line in lines) == 3


def answers(line: socket.socket) -> bool:
    try:
        ask(line)
    except ConnectionError:
        return False
    return True
