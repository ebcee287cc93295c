"""A visit: a session as a person would play it, measured. It shows whether an export answers, moves and is seen."""

import io
import itertools
import statistics
import time

import numpy as np
from PIL import Image

from relic.serve import client

LEAST_CONTRAST = 1.0  # standard deviation of a picture's grey values, of 255: below it is one flat colour
LEAST_CHANGE = 1.0  # mean difference of two pictures' grey values, of 255: below it nothing moves


def play(
    address: str, *, pictures: int, picture_s: float, key: str = "", export: str = "", wait_s: float = 0.0
) -> dict[str, float]:
    """Walks from the first example, key after key, each held until a picture shows it; then deletes the session.

    `key`, `export` and `wait_s` are those of `client.begin`. Returns the median latency from a key press to its first
    picture, the pictures' rate, and how much they change. A session that is refused, ends, stands still or shows
    nothing is a RuntimeError of one sentence."""
    latencies_ms: list[float] = []  # of every key press
    shown: list[np.ndarray] = []  # every picture
    at: list[float] = []  # when it came
    with client.begin(address, key=key, export=export, wait_s=wait_s) as walk:
        keys = itertools.cycle(client.ask("GET", f"{address}/v1/world")["trained"])
        while len(shown) < pictures:
            receipt, pressed, seen = walk.act(next(keys)), time.monotonic(), 0
            while seen != receipt:
                if time.monotonic() > pressed + picture_s:
                    raise RuntimeError(f"no picture has shown key press {receipt} within {picture_s:g} s")
                frame = next_frame(walk, picture_s)
                seen = frame.receipt
                shown.append(grey(frame.data))
                at.append(time.monotonic())
            latencies_ms.append(1e3 * (at[-1] - pressed))
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


def next_frame(walk: client.Walk, timeout_s: float) -> client.Frame:
    frame = walk.frame(timeout_s)
    if frame is None:
        raise RuntimeError(
            f"the session has ended: {walk.over['message']}" if walk.over else
            f"no picture has come within {timeout_s:g} s"
        )  # fmt: skip
    return frame


def grey(jpeg: bytes) -> np.ndarray:
    """Grey values float32 [H, W] in 0..255."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), np.float32)
