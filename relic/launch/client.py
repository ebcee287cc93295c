"""A caller of the session API (docs/serving.md), and a whole session as a person would play it."""

import io
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from relic.serve.config import HEADER

LEAST_CONTRAST = 1.0  # standard deviation of a picture's grey values, of 255: below it is one flat colour
LEAST_CHANGE = 1.0  # mean difference of two pictures' grey values, of 255: below it nothing moves
KEY = "RELIC_API_KEY"  # the variable with the API key of the deployment's own session
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
    with connect(session["url"], max_queue=None, proxy=None) as stream:
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
    """The next picture: its header by name, and the JPEG."""
    while True:
        message = stream.recv(timeout_s)
        if isinstance(message, bytes):
            version, flags, size, sequence, receipt, made, sent, *pose = HEADER.unpack_from(message)
            header = {"version": version, "flags": flags, "sequence": sequence, "receipt": receipt, "made": made,
                      "sent": sent, "pose": pose}  # fmt: skip
            return header, message[size:]
        if (said := json.loads(message))["type"] == "ended":
            raise RuntimeError(f"the session has ended: {said['message']}")


def play(
    place: str, *, pictures: int, picture_s: float, key: str = "", export: str = "", wait_s: float = 0.0
) -> dict[str, float]:
    """Walks from the first example, key after key, each held until a picture shows it; then deletes the session.

    `key`, `export` and `wait_s` are those of `follow`. Returns the median latency from a key press to its first
    picture, the pictures' rate, and how much they change. A session that is refused, ends, stands still or shows
    nothing is a RuntimeError of one sentence."""
    latencies_ms: list[float] = []  # of every key press
    shown: list[np.ndarray] = []  # every picture
    at: list[float] = []  # when it came
    with follow(place, key=key, export=export, wait_s=wait_s) as (session, stream):
        keys = itertools.cycle(ask("GET", f"{place}/v1/world")["trained"])
        while len(shown) < pictures:
            seq, receipt, pressed = len(latencies_ms) + 1, 0, time.monotonic()
            say(stream, "action", seq=seq, keys=[next(keys)])
            while receipt != seq:
                if time.monotonic() > pressed + picture_s:
                    raise RuntimeError(f"no picture has shown key press {seq} within {picture_s:g} s")
                header, jpeg = next_picture(stream, picture_s)
                receipt = header["receipt"]
                shown.append(grey(jpeg))
                at.append(time.monotonic())
            latencies_ms.append(1e3 * (at[-1] - pressed))
        ask("DELETE", f"{place}/v1/sessions/{session['id']}", token=session["token"])
        hear(stream, "ended")
    contrast = float(shown[-1].std())
    change = float(np.abs(shown[-1] - shown[len(shown) // 2]).mean())
    if contrast < LEAST_CONTRAST:
        raise RuntimeError(f"the last picture is one flat colour: its contrast is {contrast:.2f} of 255")
    if change < LEAST_CHANGE:
        raise RuntimeError(f"the pictures do not move: half of the session changes them by {change:.2f} of 255")
    return {
        "latency_p50_ms": round(statistics.median(latencies_ms), 1), "pictures": len(shown),
        "pictures_per_s": round((len(at) - 2) / (at[-1] - at[1]), 2), "change": round(change, 2),
    }  # fmt: skip


def next_picture(stream: ClientConnection, timeout_s: float) -> tuple[dict, bytes]:
    try:
        return see(stream, timeout_s)
    except TimeoutError as error:
        raise RuntimeError(f"no picture has come within {timeout_s:g} s") from error


def grey(jpeg: bytes) -> np.ndarray:
    """Grey values float32 [H, W] in 0..255."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), np.float32)
