"""The replicas behind a router: which there are, what each says of itself, and who has which session.

A router knows nothing but what it was told a moment ago: every name is resolved and every replica asked once a second
(GET /v1/replica). So a router that is started again, or a second one, knows as much as the first. What is kept beside
is where a session was seen last, for the sentence about a server that has died.

A replica leaves in one of three ways. It drains: it says so, and its sessions go elsewhere. It dies: a connection is
refused, or it is silent for `dead_s`; its sessions are lost. Its name loses its address: that alone means nothing, for
a cluster takes a pod's address away as soon as the pod is told to end, while people still walk on it. Nor does silence
while callers keep the router itself out of breath.
"""

import asyncio
import contextlib
import errno
import logging
import random
import socket
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator

import httpx
from prometheus_client import generate_latest

from relic.serve.access import PREFIX, ROUTER, Access, Refused
from relic.serve.config import Router
from relic.serve.metrics import Counted

logger = logging.getLogger("relic.serve.router")

DIED = "the server of this walk has died; start another one"
ANSWER_S = 2.0  # for a replica to say how it is
TURNS = 10  # of the event loop, about what it takes to ask and hear
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}  # no connection for want of ours
MOST_HOMES = 1 << 16  # sessions whose last server is remembered


class Replica:
    """A server at an address, as it last described itself."""

    def __init__(self, address: str, now: float):
        self.address, self.heard = address, now
        self.process = self.name = self.export = ""
        self.ready = self.draining = False
        self.slots = 0
        self.sessions: set[str] = set()
        self.coming = 0  # sessions that were sent there and are not answered yet
        self.gone = asyncio.Event()  # it answers no more
        self.complaint = ""  # why its answer was no description

    @property
    def load(self) -> float:
        return (len(self.sessions) + self.coming) / max(1, self.slots)

    @property
    def room(self) -> int:
        return self.slots - len(self.sessions) - self.coming


class RouterMetrics(Counted):
    """The counters of a router, of its replicas among them."""

    def __init__(self) -> None:
        super().__init__("relic_router_refusals")
        self.known = self._gauge("relic_router_replicas", "Servers that answer")
        self.ready = self._gauge("relic_router_replicas_ready", "Servers that take new walks")
        self.sessions = self._gauge("relic_router_sessions", "Walks of a server", "replica", "address")
        self.slots = self._gauge("relic_router_slots", "Slots of a server", "replica", "address")
        self.streams = self._gauge("relic_router_streams_open", "Streams that go through")
        self.messages = self._counter("relic_router_messages", "Messages passed on to callers")
        self.moved = self._counter("relic_router_moved", "Walks told to move to another server")
        self.lost = self._counter("relic_router_lost", "Walks of servers that have died")

    def show(self, replicas: Iterable[Replica]) -> bytes:
        """All of it in the exposition format; a replica that has gone has no series left."""
        known = [one for one in replicas if one.name]
        self.known.set(len(known))
        self.ready.set(sum(one.ready for one in known))
        self.sessions.clear()
        self.slots.clear()
        for one in known:
            self.sessions.labels(one.name, one.address).set(len(one.sessions))
            self.slots.labels(one.name, one.address).set(one.slots)
        return generate_latest(self.registry)


class Fleet:
    def __init__(self, cfg: Router, access: Access, metrics: RouterMetrics):
        self.cfg, self.access, self.metrics = cfg, access, metrics
        self.http = httpx.AsyncClient(timeout=ANSWER_S, trust_env=False, limits=httpx.Limits(keepalive_expiry=2.0))
        self.replicas: dict[str, Replica] = {}  # by address
        self.homes: OrderedDict[str, Replica] = OrderedDict()  # session -> who had it last, newest last
        self.complaints: dict[str, str] = {}  # by address, said once: a server that loads is buried and met again
        self.asking: asyncio.Task[None] | None = None

    # --- looking --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks again and again, until cancelled. A resolver that hangs holds no question up."""
        await asyncio.gather(self.keep_resolving(), self.keep_asking())

    async def keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(self.cfg.ask_s)
            await self.resolve()

    async def keep_asking(self) -> None:
        while True:
            await asyncio.sleep(self.cfg.ask_s)
            await self.ask_all()

    async def resolve(self) -> None:
        """Takes new addresses in. Old ones stay until nobody answers there."""
        known = set(self.replicas)
        for name, port in self.cfg.addresses:
            with contextlib.suppress(socket.gaierror):  # a Service without a ready pod has no address
                found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
                for family, _, _, _, (ip, *_) in found:
                    host = f"[{ip}]" if family == socket.AF_INET6 else ip
                    known.add(place := f"{host}:{port}")
                    self.replicas.setdefault(place, Replica(place, time.monotonic()))
        self.complaints = {place: why for place, why in self.complaints.items() if place in known}

    async def ask_all(self) -> None:
        """Asks every replica; who calls meanwhile waits for the same answers."""
        if self.asking is None or self.asking.done():
            self.asking = asyncio.create_task(self.ask_each())
        await asyncio.shield(self.asking)

    async def ask_each(self) -> None:
        await asyncio.gather(*(self.ask(replica) for replica in list(self.replicas.values())))

    async def ask(self, replica: Replica) -> None:
        if replica.gone.is_set():
            return
        try:
            answer = await self.description(replica)
            if answer.status_code == 200:
                self.hear(replica, answer.json())
                return
            why = f"answers {answer.status_code}: {answer.text[:200]}"
        except httpx.ConnectError as error:
            if not OURS.isdisjoint(errnos(error)):
                logger.warning("%s at %s cannot be asked: %s", replica.name or "a replica", replica.address, error)
                return
            self.bury(replica, str(error))
            return
        except httpx.HTTPError as error:
            if isinstance(error, httpx.TimeoutException) and await out_of_breath():
                return  # it may have answered, unheard
            why = f"does not answer: {type(error).__name__}"
        except (KeyError, TypeError, ValueError):
            why = "does not describe itself as a server of relic does"
        replica.ready = False
        replica.complaint = why
        if self.complaints.get(replica.address) != why:
            self.complaints[replica.address] = why
            logger.warning("%s at %s %s", replica.name or "a replica", replica.address, why)
        if time.monotonic() - replica.heard > self.cfg.dead_s:
            self.bury(replica, why)

    async def description(self, replica: Replica) -> httpx.Response:
        url, headers = f"http://{replica.address}/v1/replica", {"authorization": f"Bearer {self.access.issue(ROUTER)}"}
        try:
            return await self.http.get(url, headers=headers)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):  # a connection kept from the last time
            return await self.http.get(url, headers=headers)

    def hear(self, replica: Replica, said: dict) -> None:
        """Takes a replica's own words in; of one that is gone by now they are no news."""
        if replica.gone.is_set():
            return
        if replica.process not in ("", said["process"]):
            self.bury(replica, "another process has its address")
            replica = self.replicas[replica.address] = Replica(replica.address, time.monotonic())
        replica.heard, replica.complaint = time.monotonic(), ""
        self.complaints.pop(replica.address, None)
        replica.process, replica.name = said["process"], said["name"]
        replica.export, replica.slots = said["export"], said["slots"]
        replica.draining, replica.ready = said["draining"], said["ready"] and not said["draining"]
        replica.sessions = set(said["sessions"])
        for identity in replica.sessions:
            self.settle(identity, replica)

    def settle(self, identity: str, replica: Replica) -> None:
        """The session is there."""
        replica.sessions.add(identity)
        self.homes[identity] = replica
        self.homes.move_to_end(identity)
        while len(self.homes) > MOST_HOMES:
            self.homes.popitem(last=False)

    def leave(self, identity: str, replica: Replica) -> None:
        """The session has moved out, and nobody has it yet. Only who drains lets sessions go."""
        replica.sessions.discard(identity)
        replica.draining, replica.ready = True, False

    def bury(self, replica: Replica, why: str) -> None:
        if self.replicas.get(replica.address) is replica:
            del self.replicas[replica.address]
        replica.ready = False
        if not replica.gone.is_set() and replica.name:
            lost = 0 if replica.draining else len(replica.sessions)
            self.metrics.lost.inc(lost)
            left = f"has died with {lost} walks" if lost else "has left"
            logger.warning("%s at %s %s (%s)", replica.name, replica.address, left, why)
        replica.gone.set()

    # --- choosing -------------------------------------------------------------------------------------------------

    def by_load(self, export: str | None = None, but: Collection[Replica] = ()) -> list[Replica]:
        """Who is ready, the emptiest first; among equals by chance. `export` is how its key must begin."""
        found = [one for one in self.replicas.values() if one.ready and one not in but]
        found = [one for one in found if export is None or one.export[:PREFIX] == export[:PREFIX]]
        return sorted(found, key=lambda one: (one.room <= 0, one.load, random.random()))

    def listed(self, identity: str) -> Replica | None:
        """Who has said that it has the session."""
        home = self.homes.get(identity)
        return home if home is not None and identity in home.sessions and not home.gone.is_set() else None

    async def seek(self, identity: str) -> Replica:
        """Who has the session, or may have it: `Refused` where its server has died, or where there is none."""
        home = self.listed(identity)
        if home is not None and not home.draining:
            return home
        await self.ask_all()  # created elsewhere a moment ago, moved, or moving out
        if home := self.listed(identity):
            return home
        home = self.homes.get(identity)
        if home is not None and not home.draining:
            if home.gone.is_set():
                raise Refused(410, DIED, reason="died")
            return home  # it knows how the session has ended
        # nobody has it: a server of the same export may take it over from the snapshot of the one that left
        export = identity.partition(".")[0] if "." in identity else ""
        if found := self.by_load(export, but=[home] if home else []):
            return found[0]
        if not self.by_load():
            raise self.nobody()
        if home:
            raise Refused(410, "the server of this walk has closed, and no other has its world; start another one")
        raise Refused(404, f"there is no session {identity[:32]!r}")

    def nobody(self) -> Refused:
        return Refused(503, "no server is ready; come again in a moment", 2, reason="no_replica")


async def out_of_breath() -> bool:
    """Whether this process is too slow to hear an answer in time."""
    began = time.monotonic()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return time.monotonic() - began > ANSWER_S / 4


def errnos(error: BaseException | None) -> Iterator[int | None]:
    """Of an error and of what is behind it."""
    while error is not None:
        yield getattr(error, "errno", None)
        error = error.__cause__ or error.__context__
