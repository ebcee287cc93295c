"""Transfer: how walks leave a server that closes, and arrive at another one.

A walk leaves as a snapshot: the engine's thread copies its state, another one writes it, what was made is shown to the
end, and its client is told to come again. Walks leave one after another, for each copy is as large as a walk's memory.
A walk arrives when a client says hello with its token: the server that finds its snapshot takes it on in a free slot,
and its numbers, receipts and lifetime go on. Moments to go back to do not travel.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from relic.mistakes import UserError
from relic.serve.access import Refused
from relic.serve.logs import note
from relic.serve.scheduler import Scheduler
from relic.serve.session import Asked, Session, static_row
from relic.serve.snapshots import Snapshot, Snapshots, Unusable
from relic.serve.world import State, Walk

logger = logging.getLogger("relic.serve")

Found = TypeVar("Found")

THREAD = "snapshots"
MOVED = "this server is closing, and the walk goes on at another one: connect again"
SHOW_S = 2.0  # for the pictures that wait when a walk leaves
AGAIN_S = 0.5  # between two tries to save a walk
SWEEP_S = 60.0


class Transfer:
    def __init__(self, scheduler: Scheduler, snapshots: Snapshots | None):
        """Without `snapshots` walks stay where they are."""
        self.scheduler, self.snapshots = scheduler, snapshots
        self.arrivals: dict[str, asyncio.Task[Session]] = {}
        self.moving: set[str] = set()  # sessions that leave, or wait for their turn to
        self.saving = asyncio.Lock()
        self.late: asyncio.Task[None] | None = None  # a snapshot that was given up, and is not written yet
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
            with in_words(identity):
                snapshot = await self.soon(snapshots.find, identity)
                if snapshot is None:
                    return scheduler.find(identity)
                scheduler.check_room(None)
                scheduler.arriving[identity] = snapshot.session["principal"]
                return await self.take_on(identity, snapshot, snapshots)
        except Refused as error:
            if error.__cause__ is not None:  # it is there, and cannot be read or gone on with
                scheduler.metrics.snapshots.labels("restore_failed").inc()
            raise
        finally:
            scheduler.arriving.pop(identity, None)

    async def take_on(self, identity: str, snapshot: Snapshot, snapshots: Snapshots) -> Session:
        """The session of a snapshot, once this server has claimed it. What cannot go on here is left to others."""
        claimed = await self.soon(snapshots.claim, snapshot, socket.gethostname())
        if claimed is None:
            raise elsewhere()
        state, claim = claimed
        try:
            walk = await self.restore(snapshot, state)
            if not await self.soon(snapshots.holds, claim):
                raise elsewhere()
            if self.scheduler.draining:
                raise Refused(503, "the server is closing; connect again", 1)
        except Unusable:
            await quietly(self.soon(snapshots.remove, snapshot.folder))
            raise
        except Exception:
            await quietly(self.soon(snapshots.give_back, claim))
            raise
        session = restored(identity, snapshot.session, walk, self.scheduler)
        self.scheduler.sessions[identity] = session
        self.scheduler.metrics.snapshots.labels("restored").inc()
        note("session restored", session=identity)
        self.do(quietly(apart(snapshots.remove, snapshot.folder)))
        return session

    async def restore(self, snapshot: Snapshot, state: State) -> Walk:
        scheduler = self.scheduler
        async with scheduler.turn:
            try:
                return await scheduler.worker.call(scheduler.engine.restore, state)
            except Exception as error:
                logger.exception("the snapshot %s cannot be gone on from", snapshot.folder)
                await scheduler.worker.examine()
                if not scheduler.worker.alive:
                    raise Refused(503, "this server's device is lost; connect again", 2, "device") from error
                raise Unusable("the saved walk cannot go on here; start another one") from error

    async def discard(self, identity: str, check: Callable[[str], None]) -> bool:
        """Removes a walk that lies between two servers; False where none does. `check` refuses a wrong principal."""
        snapshots = self.snapshots
        if identity in self.arrivals:
            await asyncio.wait([self.arrivals[identity]])
        if snapshots is None or identity in self.scheduler.sessions or identity in self.scheduler.ended:
            return False
        with in_words(identity):
            snapshot = await self.soon(snapshots.find, identity)
            if snapshot is None:
                return False
            check(snapshot.session["principal"])
            if await self.soon(snapshots.take, snapshot, socket.gethostname()) is None:
                raise elsewhere()
            await self.soon(snapshots.remove, snapshot.folder)
        return True

    async def soon(self, call: Callable[..., Found], *arguments: Any) -> Found:
        """A call to the store, or `TimeoutError`: who comes back tries for no longer than the lease."""
        async with asyncio.timeout(self.scheduler.cfg.lease_s):
            return await apart(call, *arguments)

    # --- leaving --------------------------------------------------------------------------------------------------

    def move(self, session: Session) -> None:
        """Begins to move a walk away; `Refused` where walks stay."""
        if self.snapshots is None:
            said = "this server keeps no snapshots, so its walks cannot move; it needs --snapshots"
            raise Refused(409, said, reason="fixed")
        if session.id not in self.moving:
            self.moving.add(session.id)
            self.do(self.leave(session, self.snapshots))

    async def leave(self, session: Session, snapshots: Snapshots) -> None:
        """Saves a walk and sends its client away; a walk that cannot be saved goes on here."""
        scheduler = self.scheduler
        try:
            async with self.saving:
                folder = await self.save(session, snapshots)
        except Exception:
            logger.exception("session %s cannot be saved", session.id)
            scheduler.metrics.snapshots.labels("save_failed").inc()
            session.leaving = False
            scheduler.wake.set()
            await asyncio.sleep(AGAIN_S)
        else:
            if folder:
                session.saved = True
                scheduler.metrics.snapshots.labels("saved").inc()
                await asyncio.sleep(min(SHOW_S, max(0.0, session.pace.shown_until - time.monotonic())))
            if folder and session.over and session.over[0] != "moved":  # it has ended and is not to come back
                await quietly(apart(snapshots.remove, folder))
            scheduler.finish(session, "moved", MOVED)
        finally:
            self.moving.discard(session.id)

    async def save(self, session: Session, snapshots: Snapshots) -> str:
        """Where the walk lies now, which stands still from here on; nowhere if it is over."""
        scheduler = self.scheduler
        if self.late is not None:  # the store still hangs, and a copy lies in memory until it does not
            await asyncio.wait([self.late])
        async with scheduler.turn:
            if session.over:
                return ""
            session.leaving = True
            walk = await scheduler.walk_of(session)
            if walk is None:
                return ""
            state = await scheduler.worker.call(walk.state)
            said = facts(session, time.monotonic())
        saving = apart(snapshots.save, session.id, state, said)
        try:
            async with asyncio.timeout(scheduler.cfg.save_s):
                return await asyncio.shield(saving)
        except TimeoutError:
            self.late = self.do(self.undo(saving, snapshots))
            raise

    async def undo(self, saving: asyncio.Future[str], snapshots: Snapshots) -> None:
        """Removes the snapshot of a walk that goes on here, once it is written."""
        with contextlib.suppress(Exception):  # it was not
            await quietly(apart(snapshots.remove, await saving))

    async def drain(self, grace_s: float, *, save: bool = True) -> None:
        """Admits nobody, gives the walks `grace_s` seconds, then moves what is left or ends it."""
        scheduler = self.scheduler
        await scheduler.drain(grace_s)
        until = time.monotonic() + scheduler.cfg.save_s
        if save and self.snapshots is not None:
            while (scheduler.sessions or self.work) and scheduler.worker.alive and time.monotonic() < until:
                for session in scheduler.sessions.values():
                    self.move(session)  # again where it could not be saved
                await asyncio.sleep(0.02)  # work is what leaves, what arrives, and what is removed
        for session in list(scheduler.sessions.values()):
            why = ("moved", MOVED) if session.saved else ("closing", "the server has closed")
            scheduler.finish(session, *why)

    # --- in the background ----------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Removes old snapshots, every now and then, until cancelled."""
        while self.snapshots is not None:
            await quietly(apart(self.snapshots.sweep))
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


def apart(call: Callable[..., Found], *arguments: Any) -> asyncio.Future[Found]:
    """A call in a thread of its own: where a store hangs, no other work waits for it, nor does a server that ends."""
    done: concurrent.futures.Future[Found] = concurrent.futures.Future()

    def work() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(call(*arguments))
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=work, name=THREAD, daemon=True).start()
    return asyncio.wrap_future(done)


def hanging() -> bool:
    """A call to the snapshots has not come back."""
    return any(thread.name == THREAD for thread in threading.enumerate())


async def quietly(call: Awaitable[object]) -> None:
    """A call whose failure is nobody's but the log's."""
    try:
        await call
    except Exception:
        logger.exception("the snapshots cannot be tidied")


@contextlib.contextmanager
def in_words(identity: str) -> Iterator[None]:
    """Says as a refusal what is wrong with a snapshot, or with where it lies."""
    try:
        yield
    except Unusable as error:
        raise Refused(410, str(error)) from error
    except (OSError, UserError) as error:
        logger.exception("the snapshot of session %s cannot be read", identity)
        raise Refused(503, "the saved walk cannot be read now; connect again", 2, "unreadable") from error


def elsewhere() -> Refused:
    return Refused(503, "another server is taking this walk on; connect again", 1, "claimed")


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
