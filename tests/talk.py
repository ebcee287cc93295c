"""A session's stream, message by message, for tests that must see every one of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from relic.serve.client import ask, say
from relic.serve.wire import unpacked


def stream_url(address: str, session: dict[str, Any]) -> str:
    """Where the stream of a session is, for who reaches its server by `address`."""
    return f"{address.replace('http', 'ws', 1)}{session['path']}"


@contextmanager
def follow(address: str, *, key: str = "", **asked: Any) -> Iterator[tuple[dict, ClientConnection]]:
    """A new session and its open stream, after `ready`; from the first example where nothing is asked for."""
    session = ask("POST", f"{address}/v1/sessions", body=asked or {"example": "e0"}, token=key)
    with connect(stream_url(address, session), max_queue=None, proxy=None) as stream:
        say(stream, "hello", token=session["token"])
        hear(stream, "ready")
        yield session, stream


def hear(stream: ClientConnection, kind: str, timeout_s: float = 5.0) -> dict:
    """The next JSON message of a kind; pictures and others pass by."""
    while True:
        message = stream.recv(timeout_s)
        if isinstance(message, str) and json.loads(message)["type"] == kind:
            return json.loads(message)


def see(stream: ClientConnection, timeout_s: float = 5.0) -> tuple[dict, bytes]:
    """The next picture: its header by name, and the JPEG or WebP."""
    while True:
        message = stream.recv(timeout_s)
        if isinstance(message, bytes):
            return unpacked(message)
        assert (said := json.loads(message))["type"] != "ended", said


def closing(stream: ClientConnection) -> tuple[str, int]:
    """The last sentence and the close code."""
    sentence = ""
    try:
        while True:
            message = stream.recv(5)
            if isinstance(message, str) and (said := json.loads(message))["type"] in ("error", "ended"):
                sentence = said["message"]
    except ConnectionClosed as closed:
        return sentence, closed.rcvd.code if closed.rcvd else 1006
