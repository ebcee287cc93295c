"""Who gets the engine next: a fixed number of session slots, stepped in turn by one worker thread.

The event loop owns every session; only the engine's calls run in the worker's thread. The scheduler goes round the
sessions that are due, one chunk each, so that a busy engine slows all of them alike and starves none. Whoever changes a
walk holds `turn`.
"""

import asyncio
import logging
import time
from collections import OrderedDict

import numpy as np
import torch

from relic.serve.access import Refused
from relic.serve.config import Serve
from relic.serve.logs import note
from relic.serve.metrics import Metrics
from relic.serve.pace import Made
from relic.serve.session import Asked, Session, new_identity
from relic.serve.worker import Worker
from relic.serve.world import Engine, Walk

logger = logging.getLogger("relic.serve")

TICK_S = 0.25  # how often deadlines are looked at
NO_ROOM = (torch.OutOfMemoryError, MemoryError)
REMEMBERED = 512  # ended sessions whose reason is kept, for 410


class Scheduler:
    def __init__(self, engine: Engine, cfg: Serve):
        self.engine, self.cfg, self.metrics = engine, cfg, Metrics()
        self.sessions: OrderedDict[str, Session] = OrderedDict()  # in order of their next turn
        self.ended: OrderedDict[str, str] = OrderedDict()  # id -> sentence
        self.arriving: dict[str, str] = {}  # id -> principal of walks on their way here, each with a slot
        self.warm = self.draining = False
        self.wake = asyncio.Event()
        self.turn = asyncio.Lock()
        self.worker = Worker(engine, cfg)

    # --- admission ------------------------------------------------------------------------------------------------

    def check_room(self, principal: str | None) -> None:
        """`Refused`, with the reason, unless there is a slot for this principal; None: for a walk that comes back."""
        self.expire(time.monotonic())
        if not self.worker.alive:
            raise Refused(503, "the device of this server has failed; it takes no walks", 30, reason="fault")
        if self.draining:
            raise Refused(503, "the server is closing and takes no new walks", 30)
        if not self.warm:
            raise Refused(503, "the server is still warming up", 2, reason="warming")
        walking = [session.principal for session in self.sessions.values()]
        own = 0 if principal is None else [*walking, *self.arriving.values()].count(principal)
        if own >= self.cfg.sessions_each:
            said = f"this address or API key has as many walks as it may: {self.cfg.sessions_each}; end one first"
            raise Refused(409, said)
        if self.num_taken >= self.cfg.slots:
            raise Refused(429, f"all {self.cfg.slots} places are taken; come again in a moment", self.retry_after_s())

    @property
    def num_taken(self) -> int:
        """Slots that have a walk, or wait for one on its way here."""
        return len(self.sessions) + len(self.arriving)

    def admit(self, *, principal: str, image: np.ndarray, asked: Asked) -> Session:
        """A new session in a free slot, or `Refused`."""
        self.check_room(principal)
        session = Session(
            new_identity(self.engine.world.export), principal=principal, image=image, asked=asked, cfg=self.cfg,
            fps=self.engine.world.fps, now=time.monotonic(),
        )  # fmt: skip
        return self.begun(session)

    async def branch(self, session: Session) -> Session:
        """A new session in a free slot that goes on from the present moment of this one, or `Refused`."""
        self.check_room(session.principal)
        async with self.turn:
            try:
                walk = await self.worker.call(session.walk.branch) if session.walk else None
            except NO_ROOM as error:
                raise Refused(429, "there is no room on the device for another walk", self.retry_after_s()) from error
        self.find(session.id)  # it may have ended meanwhile, or the slot may be taken
        self.check_room(session.principal)
        branch = session.branch(new_identity(self.engine.world.export), walk, time.monotonic())
        return self.begun(branch)

    def begun(self, session: Session) -> Session:
        self.sessions[session.id] = session
        self.metrics.created.inc()
        note("session begun", session=session.id, principal=session.principal)
        return session

    def find(self, identity: str) -> Session:
        if identity in self.sessions:
            return self.sessions[identity]
        if identity in self.ended:
            raise Refused(410, f"this walk has ended: {self.ended[identity]}")
        raise Refused(404, f"there is no session {identity[:32]!r}")

    def finish(self, session: Session, reason: str, sentence: str) -> None:
        """Ends a session here, frees its slot and remembers why, unless it goes on elsewhere."""
        if self.sessions.pop(session.id, None) is not None:
            if reason != "moved":
                self.ended[session.id] = sentence
            while len(self.ended) > REMEMBERED:
                self.ended.popitem(last=False)
            session.end(reason, sentence)
            self.wake.set()
            self.metrics.ended.labels(reason).inc()
            lived_s = round(time.monotonic() - session.born, 1)
            note("session ended", session=session.id, reason=reason, seconds=lived_s, frames=session.pace.num_shown)

    def expire(self, now: float) -> None:
        for session in list(self.sessions.values()):
            if why := session.expiry(now):
                self.finish(session, *why)

    def retry_after_s(self) -> float:
        """Until the first slot is surely free, within what a person would wait."""
        now = time.monotonic()
        ends = [s.born + self.cfg.session_s if s.attached else s.lease_until for s in self.sessions.values()]
        return min(30.0, max(2.0, min(ends, default=now) - now))

    @property
    def num_bytes(self) -> int:
        """Of the device's memory, what all walks and the moments they can go back to hold; what they share, once."""
        held: dict[int, int] = {}
        for session in self.sessions.values():
            for walk in session.walks():
                held |= walk.storage()
        return sum(held.values())

    # --- health ---------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.warm and self.worker.alive and not self.draining

    def part_ended(self, task: asyncio.Task[None]) -> None:
        """Takes a failure in the work that was to go on for ever as the server's own."""
        if not task.cancelled() and task.exception() is not None:
            logger.error("a part of the server has failed", exc_info=task.exception())
            self.worker.fault = "a part of the server has failed; its log says how"

    async def drain(self, grace_s: float) -> None:
        """Admits nobody, tells those who walk, and waits for them, and who arrives, for at most `grace_s`, and while
        the device works."""
        self.draining = True
        until = time.monotonic() + grace_s
        for session in self.sessions.values() if grace_s else ():
            sentence = f"the server is closing; this walk can go on for at most {grace_s:.0f} s"
            session.tell({"type": "state", "state": "draining", "message": sentence})
        while (self.sessions or self.arriving) and self.worker.alive and time.monotonic() < until:
            await asyncio.sleep(0.05)

    # --- work -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Warms the engine, then steps the sessions in turn, until cancelled."""
        await self.worker.warm_up()
        self.warm = not self.worker.fault
        while True:
            self.wake.clear()
            now = time.monotonic()
            self.expire(now)
            session = self.next_due(now)
            if session is not None:
                self.sessions.move_to_end(session.id)
                await self.step(session)
            else:
                try:
                    async with asyncio.timeout(self.next_look_s(now)):  # wait_for may forget a cancellation
                        await self.wake.wait()
                except TimeoutError:
                    continue

    def due_at(self, session: Session, now: float) -> float:
        """When this session's next chunk may start; never while it rests, leaves or nobody looks."""
        waits = not session.attached or session.leaving or session.resting(now)
        return float("inf") if waits else session.pace.starts_at()

    def next_due(self, now: float) -> Session | None:
        return next((s for s in self.sessions.values() if self.due_at(s, now) <= now), None)

    def next_look_s(self, now: float) -> float:
        return max(0.0, min([TICK_S, *(self.due_at(s, now) - now for s in self.sessions.values())]))

    async def step(self, session: Session) -> None:
        """One chunk of one session. Its failure ends that session only."""
        async with self.turn:
            if session.over or session.leaving:
                return
            try:
                walk = await self.walk_of(session)
                if walk is None:
                    return
                actions = session.begin(walk.num_actions)
                self.metrics.queue_wait.observe(time.monotonic() - session.pace.allowed)
                loop = asyncio.get_running_loop()
                chunk_s = await self.worker.call(
                    self.worker.advance, walk, actions, session.asked.format,
                    lambda *made: loop.call_soon_threadsafe(self.deliver, session, *made),
                )  # fmt: skip
                self.metrics.chunk.observe(chunk_s)
                if not session.over:
                    session.finish(time.monotonic(), chunk_s=chunk_s, decode_s=walk.decode_s)
                    await self.put_by(session, walk)
                    session.tell({"type": "state", **session.report(time.monotonic())})
            except Exception:
                logger.exception("session failed", extra={"facts": {"session": session.id}})
                self.finish(session, "failed", "the engine failed in this walk; start another one")
                await self.worker.examine()

    async def put_by(self, session: Session, walk: Walk) -> None:
        """Keeps a moment to go back to, if it is time for one; where the device has no room, the walk goes without."""
        if not session.wants_moment():
            return
        try:
            branch = await self.worker.call(walk.branch)
        except NO_ROOM as error:
            logger.warning("no room for a moment to go back to: %s", error, extra={"facts": {"session": session.id}})
            session.no_room = session.num_frames
            return
        if not session.over:
            session.put_by(branch)

    def deliver(self, session: Session, made: list[Made], now: float, made_ms: float) -> None:
        before = session.pace.num_dropped
        session.deliver(made, now, made_ms)
        self.metrics.frames_dropped.inc(session.pace.num_dropped - before)

    async def rewind(self, session: Session, seconds: float) -> None:
        """Goes back to the moment nearest to so long ago; ValueError where there is none."""
        async with self.turn:
            if session.over:
                return
            if session.leaving:
                raise ValueError("the walk is on its way to another server; rewind there")
            found, moment = session.way_back(seconds)
            try:
                branch = await self.worker.call(moment.walk.branch)
            except NO_ROOM as error:
                raise ValueError("there is no room on the device to go back now") from error
            now = time.monotonic()
            if not session.over:
                session.go_back(found, moment, branch, now)
                session.tell({"type": "state", **session.report(now)})
        self.wake.set()

    async def walk_of(self, session: Session) -> Walk | None:
        """Its walk, which opens now if it is not open yet; None of a session that has ended meanwhile."""
        asked = session.asked
        walk = session.walk or await self.worker.call(self.engine.open, session.image, asked.caption, asked.seed)
        if not session.over:
            session.walk = walk
        return session.walk

    def close(self) -> None:
        self.worker.close()
