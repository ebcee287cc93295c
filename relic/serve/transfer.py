"""Transfer: how walks leave a server that closes, and arrive at another one.

A walk leaves as a snapshot: the engine's thread copies its state, another one writes it, what was made is shown to the
end, and its client is told to come again. It arrives when a client says hello with its token: the server that finds its
snapshot takes it on in a free slot, and its numbers, receipts and lifetime go on. Moments to go back to do not travel.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from relic.mistakes import UserError
from relic.serve.access import Refused
from relic.serve.engine import Walk
from relic.serve.logs import note
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session, static_row
from relic.serve.snapshots import Snapshot, Snapshots, Unusable

logger = logging.getLogger("relic.serve")

SAVE_S = 10.0  # for all walks that are left when the time of a server is over
SHOW_S = 2.0  # for the pictures that wait when a walk leaves
SWEEP_S = 60.0


class Transfer:
    def __init__(self, scheduler: Scheduler, snapshots: Snapshots | None):
        """Without `snapshots` walks stay where they are."""
        self.scheduler, self.snapshots = scheduler, snapshots
        self.arrivals: dict[str, asyncio.Task[Session]] = {}
        self.work: set[asyncio.Task] = set()

    # --- arriving -------------------------------------------------------------------------------------------------

    async def find(self, identity: str) -> Session:
        """The session of a token that is right: one of here, or one whose snapshot is taken on; `Refused` otherwise."""
        scheduler = self.scheduler
        if self.snapshots is None or identity in scheduler.sessions or identity in scheduler.ended:
            return scheduler.find(identity)
        if identity not in self.arrivals:
            self.arrivals[identity] = task = self.do(self.arrive(identity, self.snapshots))
            task.add_done_callback(lambda _: self.arrivals.pop(identity))
        return await asyncio.shield(self.arrivals[identity])  # the walk arrives even if its client is gone meanwhile

    async def arrive(self, identity: str, snapshots: Snapshots) -> Session:
        scheduler = self.scheduler
        try:
            snapshot = await asyncio.to_thread(snapshots.find, identity)
            if snapshot is None:
                return scheduler.find(identity)
            scheduler.check_room(None)
            scheduler.arriving[identity] = snapshot.session["principal"]
            walk = await self.take_on(snapshot, snapshots)
        except Unusable as error:
            raise Refused(410, str(error)) from error
        except (OSError, UserError) as error:
            logger.exception("the snapshot of session %s cannot be read", identity)
            raise Refused(503, "the saved walk cannot be read now; connect again", 2, "unreadable") from error
        finally:
            scheduler.arriving.pop(identity, None)
        session = scheduler.sessions[identity] = restored(identity, snapshot.session, walk, scheduler)
        scheduler.metrics.snapshots.labels("restored").inc()
        note("session restored", session=identity)
        self.do(quietly(snapshots.remove, snapshot.folder))
        return session

    async def take_on(self, snapshot: Snapshot, snapshots: Snapshots) -> Walk:
        """The walk of a snapshot, once this server has claimed it."""
        state = await asyncio.to_thread(snapshots.claim, snapshot, socket.gethostname())
        if state is None:
            raise Refused(503, "another server is taking this walk on; connect again", 1, "claimed")
        async with self.scheduler.turn:
            try:
                return await self.scheduler.in_worker(self.scheduler.engine.restore, state)
            except Exception as error:
                logger.exception("the snapshot %s cannot be gone on from", snapshot.folder)
                self.scheduler.metrics.snapshots.labels("restore_failed").inc()
                raise Unusable("the saved walk cannot go on here; start another one") from error

    # --- leaving --------------------------------------------------------------------------------------------------

    def move(self, session: Session) -> None:
        """Begins to move a walk away; `Refused` where walks stay."""
        if self.snapshots is None:
            said = "this server keeps no snapshots, so its walks cannot move; it needs --snapshots"
            raise Refused(409, said, reason="fixed")
        if not session.leaving:
            session.leaving = True
            self.do(self.leave(session, self.snapshots))

    async def leave(self, session: Session, snapshots: Snapshots) -> None:
        """Saves a walk and sends its client away; a walk that cannot be saved goes on here."""
        scheduler = self.scheduler
        try:
            async with scheduler.turn:
                if session.over:
                    return
                walk = session.walk = session.walk or await scheduler.open(session)
                state = await scheduler.in_worker(walk.state)
                said = facts(session, time.monotonic())
            folder = await asyncio.to_thread(snapshots.save, session.id, state, said)
        except Exception:
            logger.exception("session %s cannot be saved", session.id)
            scheduler.metrics.snapshots.labels("save_failed").inc()
            session.leaving = False
            scheduler.wake.set()
            return
        scheduler.metrics.snapshots.labels("saved").inc()
        await asyncio.sleep(min(SHOW_S, max(0.0, session.pace.shown_until - time.monotonic())))
        if session.over:  # it has ended meanwhile and is not to come back
            await quietly(snapshots.remove, folder)
        scheduler.finish(session, "moved", "this server is closing, and the walk goes on at another one: connect again")

    async def drain(self, grace_s: float, *, save: bool = True) -> None:
        """Admits nobody, gives the walks `grace_s` seconds, then moves what is left or ends it."""
        await self.scheduler.drain(grace_s)
        sessions, until = self.scheduler.sessions, time.monotonic() + SAVE_S
        if save and self.snapshots is not None:
            for session in sessions.values():
                self.move(session)
            while any(session.leaving for session in sessions.values()) and time.monotonic() < until:
                await asyncio.sleep(0.02)
        for session in list(sessions.values()):
            self.scheduler.finish(session, "closing", "the server has closed")

    # --- in the background ----------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Removes old snapshots, every now and then, until cancelled."""
        while self.snapshots is not None:
            await quietly(self.snapshots.sweep)
            await asyncio.sleep(SWEEP_S)

    def do(self, work: Any) -> asyncio.Task:
        """A task that is kept until it is done."""
        task = asyncio.create_task(work)
        self.work.add(task)
        task.add_done_callback(self.done)
        return task

    def done(self, task: asyncio.Task) -> None:
        self.work.discard(task)
        if not task.cancelled():
            task.exception()  # is looked at, whether or not somebody still waits for it


async def quietly(call: Callable[..., object], *arguments: Any) -> None:
    """A call in a thread that nobody waits for: its failure is logged."""
    try:
        await asyncio.to_thread(call, *arguments)
    except Exception:
        logger.exception("the snapshots cannot be tidied")


# --- what a session is, without its walk ----------------------------------------------------------------------------


def facts(session: Session, now: float) -> dict[str, Any]:
    return {
        "principal": session.principal, "asked": asdict(session.asked), "begun": time.time() - (now - session.born),
        "frames": session.num_frames, "made": session.pace.num_made, "receipt": session.held[0],
        "paused": session.paused,
    }  # fmt: skip


def restored(identity: str, said: dict[str, Any], walk: Walk, scheduler: Scheduler) -> Session:
    """The session of those facts: its keys are let go, its lease begins, its lifetime goes on."""
    now = time.monotonic()
    session = Session(
        identity, principal=said["principal"], image=None, asked=Asked(**said["asked"]), cfg=scheduler.cfg,
        fps=scheduler.engine.world.fps, now=now, walk=walk, num_frames=said["frames"],
    )  # fmt: skip
    session.born = now - (time.time() - said["begun"])
    session.held, session.paused = (said["receipt"], static_row()), said["paused"]
    session.pace.num_made = said["made"]
    return session
