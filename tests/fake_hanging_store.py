"""`relic serve` with a stand-in for the model and a store that hangs, in a thread that Python waits for."""

import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

from fake_world import FakeWorld

from relic.serve import app, client, engine
from relic.serve.config import Serve
from relic.serve.snapshots import Snapshots


def hang(self: Snapshots, *_: Any) -> str:
    return ThreadPoolExecutor(1).submit(time.sleep, 120).result() or ""


def walk(address: str) -> None:
    with client.begin(address, wait_s=20) as begun:
        signal.raise_signal(signal.SIGTERM)
        list(begun.frames())
        print("ended", begun.over, flush=True)


if __name__ == "__main__":
    engine.load = lambda cfg, device: FakeWorld()  # type: ignore[assignment,return-value]
    Snapshots.save = hang  # type: ignore[assignment]
    bound = app.bind

    def bind(host: str, port: int) -> Any:
        listener = bound(host, port)
        Thread(target=walk, args=[app.address(listener)], daemon=True).start()
        return listener

    app.bind = bind
    app.main(Serve(run="fake", port=0, save_s=0.2, **json.loads(sys.argv[1])))
