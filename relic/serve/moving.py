"""Emptying a replica that drains: its walks move, one by one, to where there is room for them.

The replica saves a walk and tells its caller, who connects again and is led to a server of the same export; that one
restores the walk. So room is counted before a walk is told to move, with those that are on their way.
"""

import asyncio
import logging
import time

import httpx

from relic.serve.access import ROUTER, Access
from relic.serve.config import Router
from relic.serve.fleet import Fleet, Replica, RouterMetrics

logger = logging.getLogger("relic.serve.router")

LOOK_S = 0.1  # between two looks whether a walk has left
MOVE_S = 60.0  # for a walk to be saved
ON_THE_WAY_S = 5.0  # how long a slot is kept for a walk that has left
AGAIN_S = 5.0  # before a server is emptied again after something has failed


class Mover:
    def __init__(self, cfg: Router, access: Access, fleet: Fleet, metrics: RouterMetrics):
        self.cfg, self.access, self.fleet, self.metrics = cfg, access, fleet, metrics
        self.emptying: dict[Replica, asyncio.Task[None]] = {}
        self.on_the_way: dict[str, float] = {}  # session -> until when a slot is kept for it

    async def run(self) -> None:
        """Empties whoever drains, until cancelled."""
        try:
            while True:
                for replica in self.fleet.replicas.values():
                    if replica.draining and replica.sessions and replica not in self.emptying:
                        self.emptying[replica] = asyncio.create_task(self.empty(replica))
                for replica in [one for one in self.emptying if one.gone.is_set()]:
                    self.emptying.pop(replica).cancel()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self.emptying.values():
                task.cancel()

    async def empty(self, replica: Replica) -> None:
        """Tries again where something fails that nobody has thought of."""
        while not replica.gone.is_set():
            try:
                return await self.move_each(replica)
            except Exception:
                logger.exception("the walks of %s cannot be moved", replica.name)
                await asyncio.sleep(AGAIN_S)

    async def move_each(self, replica: Replica) -> None:
        tried: set[str] = set()  # what could not be saved comes again after the others
        while not replica.gone.is_set():
            if not replica.sessions or self.room(replica) < 1:
                await asyncio.sleep(self.cfg.ask_s)
                continue
            tried = tried if replica.sessions - tried else set()
            identity = min(replica.sessions - tried)
            tried.add(identity)
            try:
                answer = await self.fleet.http.post(
                    f"http://{replica.address}/v1/sessions/{identity}/move",
                    headers={"authorization": f"Bearer {self.access.issue(ROUTER)}"},
                )
            except httpx.HTTPError as error:
                logger.warning("%s does not answer to move: %s", replica.name, type(error).__name__)
                await asyncio.sleep(self.cfg.ask_s)
                continue
            if answer.status_code == 409:  # it has nowhere to save a walk: its walks end there
                logger.info("%s keeps its walks: %s", replica.name, answer.text[:200])
                return
            if answer.status_code == 202:
                self.on_the_way[identity] = time.monotonic() + MOVE_S + ON_THE_WAY_S
                self.metrics.moved.inc()
                await self.until_left(identity, replica)
                self.on_the_way[identity] = time.monotonic() + ON_THE_WAY_S
            else:  # it has ended, or is only arriving
                await asyncio.sleep(LOOK_S)
                await self.fleet.ask(replica)

    async def until_left(self, identity: str, replica: Replica) -> None:
        until = time.monotonic() + MOVE_S
        while identity in replica.sessions and not replica.gone.is_set() and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            await self.fleet.ask(replica)

    def room(self, replica: Replica) -> int:
        """Slots for walks of this replica's export elsewhere."""
        now = time.monotonic()
        self.on_the_way = {
            identity: until for identity, until in self.on_the_way.items()
            if until > now and self.fleet.listed(identity) in (None, replica)
        }  # fmt: skip
        others = self.fleet.by_load(replica.export, but=[replica])
        return sum(max(0, one.room) for one in others) - len(self.on_the_way)
