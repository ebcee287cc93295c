"""A visit: a session as a person would play it, measured. It shows whether an export answers, moves and is seen."""

import io
import itertools
import statistics
import time

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection

from relic.serve.talk import ask, follow, hear, say, see

LEAST_CONTRAST = 1.0  # standard deviation of a picture's grey values, of 255: below it is one flat colour
LEAST_CHANGE = 1.0  # mean difference of two pictures' grey values, of 255: below it nothing moves


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
