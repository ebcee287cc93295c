"""The session API's calls (docs/serving.md): requests and their answers, messages and pictures. Loads no torch."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from websockets.sync.client import ClientConnection, connect

from relic.serve.config import HEADER

KEY = "RELIC_API_KEY"  # the variable with an API key, of `relic play` and of a deployment's own session
PASSING = (429, 503)  # answers of a server that is full, warming up or closing
RETRY_S = 1.0
direct = build_opener(ProxyHandler({}))  # a server of this machine is not reached through a proxy


class Answered(RuntimeError):
    """A request that the server refuses."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def ask(method: str, url: str, *, body: Any = None, token: str = "", timeout_s: float = 10.0) -> Any:
    """The JSON answer to a request; None where there is none."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = Request(url, method=method, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            data = answer.read()
    except HTTPError as error:
        said = f"{method} {url} is answered by {error.code}: {error.read().decode()}"
        raise Answered(error.code, said) from error
    return json.loads(data) if data else None


@contextmanager
def follow(
    place: str, *, key: str = "", export: str = "", wait_s: float = 0.0, **asked: Any
) -> Iterator[tuple[dict, ClientConnection]]:
    """A new session and its open stream, after `ready`; from the first example where nothing is asked for.

    `key` is an API key; `export` is the key of the export that must be walked in, where that is not given at once."""
    session = admitted(place, asked, key=key, export=export, until=time.monotonic() + wait_s)
    with connect(stream_url(place, session), max_queue=None, proxy=None) as stream:
        say(stream, "hello", token=session["token"])
        hear(stream, "ready")
        yield session, stream


def admitted(place: str, asked: dict[str, Any], *, key: str, export: str, until: float) -> dict[str, Any]:
    """A new session. Behind a Service a server that is closing may still be asked, people may have taken all places,
    and for a moment nobody may answer: that is waited for."""
    while True:
        try:
            start = asked or {"example": ask("GET", f"{place}/v1/world")["examples"][0]["id"]}
            session = ask("POST", f"{place}/v1/sessions", body=start, token=key)
            if export in ("", session["export"]):
                return session
            ask("DELETE", f"{place}/v1/sessions/{session['id']}", token=session["token"])
            refused: Exception = RuntimeError(f"{place} serves the export {session['export']}, not {export}")
        except (Answered, OSError) as error:
            if isinstance(error, Answered) and error.status not in PASSING:
                raise
            refused = error
        if time.monotonic() > until:
            raise refused
        time.sleep(RETRY_S)


def say(stream: ClientConnection, kind: str, **values: Any) -> None:
    stream.send(json.dumps({"type": kind, **values}))


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
        if (said := json.loads(message))["type"] == "ended":
            raise RuntimeError(f"the session has ended: {said['message']}")


def unpacked(message: bytes) -> tuple[dict, bytes]:
    version, flags, size, sequence, receipt, made, sent, *pose = HEADER.unpack_from(message)
    header = {"version": version, "flags": flags, "sequence": sequence, "receipt": receipt, "made": made,
              "sent": sent, "pose": pose}  # fmt: skip
    return header, message[size:]


def stream_url(place: str, session: dict[str, Any]) -> str:
    """Where the stream of a session is, for who reaches its server by `place`."""
    scheme, host = urlsplit(place)[:2]
    return f"{'wss' if scheme == 'https' else 'ws'}://{host}{session['path']}"
