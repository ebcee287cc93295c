"""What the router costs a stream: frames a second through it and without it, its CPU time a frame, and what it adds to
the way of a picture.

    python benchmarks/router.py --json

A source that makes no pictures, but sends the same bytes again and again, stands for the servers; it, the router and
the readers are a process each, on loopback. Paced, every stream has 16 frames a second and the delay is from the
source's clock to the reader's; unpaced, the source sends as fast as it is read.
"""

import argparse
import asyncio
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import uvicorn
from measure import ROOT, facts, write
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from relic.serve.access import Access
from relic.serve.listener import address, bind

CASES = ((1, 10_000), (8, 10_000), (8, 100_000))  # streams, and bytes of a frame
SECRET = b"a secret of the benchmark's own that is long enough"
CLOCK = struct.Struct("<d")  # before the bytes of a frame: when it was sent
FPS = 16.0
UNPACED_FRAMES = 16_000
PACED_S = 6.0


def source() -> None:
    """A server that says it has all streams, and sends what their hello asks for."""
    sessions = [f"s{number}" for number in range(max(streams for streams, _ in CASES))]

    async def replica(request: Request) -> JSONResponse:
        said = {"process": "1", "name": "source", "ready": True, "draining": False, "export": ""}
        return JSONResponse({**said, "slots": len(sessions), "active": len(sessions), "sessions": sessions})

    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        asked = json.loads(await socket.receive_text())
        data, began = os.urandom(asked["bytes"]), time.monotonic()
        for number in range(asked["frames"]):
            if asked["fps"]:
                await asyncio.sleep(began + number / asked["fps"] - time.monotonic())
            await socket.send_bytes(CLOCK.pack(time.monotonic()) + data)
        await socket.close()

    routes = [Route("/v1/replica", replica), WebSocketRoute("/v1/sessions/{identity}/stream", stream)]
    with bind("127.0.0.1", 0) as listener:
        print(f"is open at {address(listener)}", flush=True)
        config = uvicorn.Config(Starlette(routes=routes), ws="websockets-sansio", ws_per_message_deflate=False,
                                log_level="warning")  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def started(*line: str) -> Iterator[tuple[int, str]]:
    """The process of a server and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, *line], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            yield process.pid, process.stdout.readline().split("is open at ")[1].split()[0]
        finally:
            process.kill()


async def read(address: str, number: int, frames: int, num_bytes: int, fps: float) -> list[float]:
    """The delay in ms of each frame of a stream."""
    url = f"{address.replace('http', 'ws')}/v1/sessions/s{number}/stream"
    token = Access({}, 60.0, SECRET).issue(f"s{number}")
    async with connect(url, proxy=None, compression=None, max_size=None, max_queue=4) as stream:
        said = {"type": "hello", "token": token, "frames": frames, "bytes": num_bytes, "fps": fps}
        await stream.send(json.dumps(said))
        delays = [1e3 * (time.monotonic() - sent_at(message)) async for message in stream]
    assert len(delays) == frames
    return delays


def sent_at(message: str | bytes) -> float:
    assert isinstance(message, bytes), message
    return CLOCK.unpack_from(message)[0]


async def read_all(address: str, streams: int, frames: int, num_bytes: int, fps: float) -> tuple[list[float], float]:
    """The delays of all streams' frames, and frames a second together."""
    began = time.monotonic()
    found = await asyncio.gather(*(read(address, number, frames, num_bytes, fps) for number in range(streams)))
    return list(chain.from_iterable(found)), streams * frames / (time.monotonic() - began)


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    streams: int
    frame_bytes: int
    direct_frames_per_s: float  # of all streams together, unpaced
    routed_frames_per_s: float
    router_cpu_us: float  # a frame
    direct_delay_ms: tuple[float, float]  # p50 and p95, paced
    routed_delay_ms: tuple[float, float]


def measured(streams: int, num_bytes: int, direct: str, routed: str, router: int) -> Row:
    frames = UNPACED_FRAMES // streams
    _, direct_rate = asyncio.run(read_all(direct, streams, frames, num_bytes, 0.0))
    before = cpu_s(router)
    _, routed_rate = asyncio.run(read_all(routed, streams, frames, num_bytes, 0.0))
    used_us = 1e6 * (cpu_s(router) - before) / (streams * frames)
    delays = [
        asyncio.run(read_all(address, streams, round(PACED_S * FPS), num_bytes, FPS))[0] for address in (direct, routed)
    ]
    (direct_50, direct_95), (routed_50, routed_95) = (np.percentile(one, (50, 95)).round(2).tolist() for one in delays)
    return Row(
        streams, num_bytes, round(direct_rate), round(routed_rate), round(used_us, 1), (direct_50, direct_95),
        (routed_50, routed_95),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="store_true", help="be the source")
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    if given.source:
        source()
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder, started(__file__, "--source") as (_, direct):
        secret = Path(folder) / "secret"
        secret.write_bytes(SECRET)
        line = ("-m", "relic", "router", "--replicas", direct.removeprefix("http://"), "--port", "0", "--token-secret")
        with started(*line, str(secret)) as (router, routed):
            for streams, num_bytes in CASES:
                rows.append(measured(streams, num_bytes, direct, routed, router))
                print(rows[-1], flush=True)
    if given.json:
        write(given.json, facts(torch.device("cpu")), rows)


if __name__ == "__main__":
    main()
