"""`relic serve`: takes the port, loads an export, warms it and answers until a signal comes."""

import asyncio
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from relic import place
from relic.serve import engine, logs, ranks, worker
from relic.serve.access import Access, read_keys, read_secret
from relic.serve.api import build
from relic.serve.config import Serve
from relic.serve.listener import address, bind, settings
from relic.serve.scheduler import Scheduler
from relic.serve.snapshots import Snapshots
from relic.serve.transfer import Transfer, hanging
from relic.serve.world import Engine

MOST_ASKING = 256  # connections beside those of streams
LAST_S = 2.0  # for callers to take the last sentence, after which they are cut off


def main(cfg: Serve) -> None:
    """Serves the export that `cfg` names. The port is taken before the model loads: a port in use is said at once."""
    signal.signal(signal.SIGTERM, stop)  # process 1 of a container does not hear it by itself
    logs.configure(cfg.log_format)
    with bind(cfg.host, cfg.port) as listener:
        access = Access(read_keys(cfg), cfg.token_s, read_secret(cfg.token_secret))
        if cfg.snapshots:
            place.check(cfg.snapshots)
        loaded: Engine
        if cfg.gpus == 1:
            loaded, followers = engine.load(cfg, engine.choose_device(cfg.device)), None
        else:
            loaded, followers = ranks.lead(cfg)
        logs.announce(cfg.log_format, f"the world of {loaded.world.recipe}", address(listener))
        server = make_server(loaded, cfg, access)
        if followers:
            followers.lost = server.give_up
        server.run(sockets=[listener])
        if server.lost:
            ranks.give_up(server.lost)  # the engine's thread may wait for the lost one for ever
        if followers and not followers.end(server.scheduler.worker.thread.shutdown):
            os._exit(1)  # the engine's thread may wait for a rank that hangs
        if hanging() or worker.hanging():
            os._exit(0)  # Python would wait for the threads of the store's client, and for the engine's


def stop(number: int, frame: FrameType | None) -> None:
    """Ends a server that still loads."""
    raise KeyboardInterrupt


def make_server(loaded: Engine, cfg: Serve, access: Access) -> "Server":
    transfer = Transfer(Scheduler(loaded, cfg), snapshots(loaded.world.export, cfg, access))
    return Server(build(loaded, cfg, access, transfer), transfer, cfg)


def snapshots(export: str, cfg: Serve, access: Access) -> Snapshots | None:
    if not cfg.snapshots:
        return None
    return Snapshots(place.opened(cfg.snapshots), export=export, sign=access.sign, lasts_s=cfg.session_s + cfg.lease_s)


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first lets the sessions come to their end; SIGINT and a second signal do not wait."""

    def __init__(self, app: ASGIApp, transfer: Transfer, cfg: Serve):
        super().__init__(settings(app, most=cfg.most_sockets + MOST_ASKING, message_bytes=cfg.message_bytes))
        self.transfer, self.scheduler, self.drain_s = transfer, transfer.scheduler, cfg.drain_s
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing: asyncio.Task | None = None
        self.lost = ""  # what the server cannot go on without

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

    def give_up(self, sentence: str) -> None:
        """Ends all walks and the server; from any thread."""
        self.lost = sentence
        if self.loop is None:
            ranks.give_up(sentence)
        self.loop.call_soon_threadsafe(self.fail)

    def fail(self) -> None:
        self.scheduler.worker.fault = self.lost
        for session in list(self.scheduler.sessions.values()):
            self.scheduler.finish(session, "failed", "the server has lost a part of its model; start another walk")
        self.close(False)

    async def drain(self, gently: bool) -> None:
        await self.transfer.drain(self.drain_s if gently else 0.0, save=gently)
        await asyncio.sleep(0.2)  # the last sentences reach their pages
        until = time.monotonic() + LAST_S
        while unread := [one for one in self.server_state.connections if one.transport.get_write_buffer_size()]:
            if time.monotonic() > until:
                for one in unread:
                    one.transport.abort()  # closing would wait until all is read
                break
            await asyncio.sleep(0.05)
        self.should_exit = True
