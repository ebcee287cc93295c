"""`relic serve`: takes the port, loads an export, warms it and answers until a signal comes."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from relic import place
from relic.serve import engine, logs
from relic.serve.access import Access, read_keys, read_secret
from relic.serve.api import build
from relic.serve.config import Serve
from relic.serve.connections import bounded
from relic.serve.listener import address, bind
from relic.serve.scheduler import Scheduler
from relic.serve.snapshots import Snapshots
from relic.serve.transfer import Transfer

MOST_ASKING = 256  # connections beside those of streams
CLOSE_S = 5  # for connections to end after the last session


def main(cfg: Serve) -> None:
    """Serves the export that `cfg` names. The port is taken before the model loads: a port in use is said at once."""
    signal.signal(signal.SIGTERM, stop)  # process 1 of a container does not hear it by itself
    logs.configure(cfg.log_format)
    with bind(cfg.host, cfg.port) as listener:
        access = Access(read_keys(cfg), cfg.token_s, read_secret(cfg.token_secret))
        if cfg.snapshots:
            place.opened(cfg.snapshots).files()  # a place that cannot be used is said before anything loads
        loaded = engine.load(cfg)
        print(f"the world of {loaded.world.recipe} is open at {address(listener)}   (Ctrl-C closes it)", flush=True)
        make_server(loaded, cfg, access).run(sockets=[listener])


def stop(number: int, frame: FrameType | None) -> None:
    """Ends a server that still loads."""
    raise KeyboardInterrupt


def make_server(loaded: engine.Engine, cfg: Serve, access: Access) -> "Server":
    transfer = Transfer(Scheduler(loaded, cfg), snapshots(loaded.world.export, cfg, access))
    return Server(build(loaded, cfg, access, transfer), transfer, cfg)


def snapshots(export: str, cfg: Serve, access: Access) -> Snapshots | None:
    if not cfg.snapshots:
        return None
    return Snapshots(place.opened(cfg.snapshots), export=export, sign=access.sign, lasts_s=cfg.session_s + cfg.lease_s)


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first lets the sessions come to their end; SIGINT and a second signal do not wait."""

    def __init__(self, app: FastAPI, transfer: Transfer, cfg: Serve):
        super().__init__(uvicorn.Config(
            app, http=bounded(cfg.most_sockets + MOST_ASKING),
            ws="websockets-sansio", ws_max_size=4 * cfg.message_bytes, ws_per_message_deflate=False,
            proxy_headers=False, server_header=False, access_log=False, log_level="warning",
            timeout_graceful_shutdown=CLOSE_S, log_config=None,
        ))  # fmt: skip
        self.transfer, self.scheduler, self.drain_s = transfer, transfer.scheduler, cfg.drain_s
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.loop is None:
            raise KeyboardInterrupt
        self.loop.call_soon_threadsafe(self.close, sig == signal.SIGTERM)

    def close(self, gently: bool) -> None:
        """Drains, then exits; called again, exits at once."""
        if self.closing is not None:
            self.closing.cancel()
            gently = False
        self.closing = asyncio.get_running_loop().create_task(self.drain(gently))

    async def drain(self, gently: bool) -> None:
        await self.transfer.drain(self.drain_s if gently else 0.0, save=gently)
        await asyncio.sleep(0.2)  # the last sentences reach their pages
        self.should_exit = True
