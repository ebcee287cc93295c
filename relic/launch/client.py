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
direct = build_opener(ProxyHandler({}))  # a server of this machine is not reached through a proxy


def ask(method: str, url: str, *, body: Any = None, token: str = "", timeout_s: float = 10.0) -> Any:
    """The JSON answer to a request; None where there is none."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = Request(url, method=method, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            data = answer.read()
    except HTTPError as error:
        raise RuntimeError(f"{method} {url} is answered by {error.code}: {error.read().decode()}") from error
    return json.loads(data) if data else None


@contextmanager
def follow(place: str, **asked: Any) -> Iterator[tuple[dict, ClientConnection]]:
    """A new session and its open stream, after `ready`; from the first example where nothing is asked for."""
    start = asked or {"example": ask("GET", f"{place}/v1/world")["examples"][0]["id"]}
    session = ask("POST", f"{place}/v1/sessions", body=start)
    with connect(session["url"], max_queue=None, proxy=None) as stream:
        say(stream, "hello", token=session["token"])
        hear(stream, "ready")
        yield session, stream


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


def play(place: str, *, pictures: int, picture_s: float) -> dict[str, float]:
    """Walks from the first example, key after key, each held until a picture shows it; then deletes the session.

    Returns the median latency from a key press to its first picture, the pictures' rate, and how much they change. A
    session that is refused, ends, stands still or shows nothing is a RuntimeError of one sentence."""
    keys = itertools.cycle(ask("GET", f"{place}/v1/world")["trained"])
    latencies_ms: list[float] = []  # of every key press
    shown: list[np.ndarray] = []  # every picture
    at: list[float] = []  # when it came
    with follow(place) as (session, stream):
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
