"""A session: one walk, its connection, the actions that wait for it and the moments it can go back to.

Two clocks meet here. Actions come when a finger moves; pictures are made a chunk at a time and shown one by one
(pace.py):

- Every frame of a chunk takes the newest action. One that came and went between two chunks (a tap) is played first, for
  as many frames as it lasted, at least one. So no tap is lost, and a frame's receipt names the action it shows.
- A world without keys rests: standing still would push what was seen out of the memory. A paused one rests whatever is
  held, and of the actions that come meanwhile only the newest counts.
- Every few seconds of the world's time a branch of the walk is put by; going back is going on from a branch of it.

It is plain bookkeeping on one thread and is told the time, so tests need no waiting. Times are seconds of one clock.
"""

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relic.geometry.actions import ACTIONS, STATIC
from relic.serve.access import PREFIX
from relic.serve.config import Serve
from relic.serve.limits import Bucket
from relic.serve.pace import Made, Pace
from relic.serve.wire import Picture
from relic.serve.world import Walk

MOST_PENDING = 64  # actions between two chunks
REWINDS_PER_S = 1.0  # of one walk, by whatever connections: each copies a memory, while the other walks wait
MOST_REWINDS = 4.0  # at once


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a walk was asked to be, which its branches stay."""

    caption: str
    seed: int
    speed: float
    format: str = "jpeg"  # of its pictures


@dataclass(frozen=True)
class Moment:
    """What a walk can go back to."""

    walk: Walk  # never stepped: its branches go on
    num_frames: int  # of the walk until then
    last: Picture  # its newest


class Session:
    def __init__(self, identity: str, *, principal: str, image: np.ndarray | None, asked: Asked, cfg: Serve,
                 fps: float, now: float, walk: Walk | None = None, num_frames: int = 0):  # fmt: skip
        """`image` begins a new walk; `walk` goes on, after `num_frames` frames."""
        self.id, self.principal, self.image, self.asked = identity, principal, image, asked
        self.cfg, self.fps, self.born = cfg, fps, now
        self.walk, self.num_frames = walk, num_frames
        self.changed = asyncio.Event()  # something is there to be sent
        self.notices: deque[dict] = deque(maxlen=16)  # messages that wait to be sent
        self.over: tuple[str, str] | None = None  # reason and sentence
        self.leaving = False  # it is being saved to go on at another server
        self.saved = False  # it can go on there
        # 1. the connection
        self.connection = 0  # counts connections: the newest one has the session
        self.attached = False
        self.lease_until = now + cfg.lease_s
        # 2. actions
        self.held = (0, static_row())  # seq and action [13] of the last chunk's end
        self.pending: list[tuple[float, int, np.ndarray]] = []  # when, seq, action
        self.unanswered: deque[tuple[int, float]] = deque(maxlen=MOST_PENDING)  # seq of actions not shown yet, when
        self.acted = now
        self.woken = now  # when the connection came or the last rest ended
        self.paused = False
        # 3. pictures
        self.pace = Pace(fps, now)
        self.last: Picture | None = None  # the newest
        self.moments: deque[Moment] = deque(maxlen=cfg.rewind_points)
        self.no_room = -math.inf  # frames of the walk when the device had none for a moment
        self.rewinds = Bucket(REWINDS_PER_S, MOST_REWINDS, now)
        self.chunk_s = self.decode_s = 0.0

    # --- the connection -------------------------------------------------------------------------------------------

    def attach(self, now: float) -> int:
        """A connection takes the session over; returns its number."""
        self.connection += 1
        self.attached, self.acted, self.woken = True, now, now
        self.changed.set()
        return self.connection

    def detach(self, connection: int, now: float) -> None:
        if connection == self.connection:
            self.attached, self.lease_until = False, now + self.cfg.lease_s
            self.pending.clear()
            self.held = (self.held[0], static_row())

    def end(self, reason: str, sentence: str) -> None:
        if self.over is None:
            self.over, self.walk = (reason, sentence), None
            self.moments.clear()
            self.changed.set()

    def walks(self) -> list[Walk]:
        """Its walk, once it is open, and those of its moments."""
        return [*([self.walk] if self.walk else []), *(moment.walk for moment in self.moments)]

    def tell(self, notice: dict) -> None:
        self.notices.append(notice)
        self.changed.set()

    def expiry(self, now: float) -> tuple[str, str] | None:
        """Why the session must end now, if it must."""
        if now - self.born > self.cfg.session_s:
            return "lifetime", f"a walk lasts at most {self.cfg.session_s:g} s; start another one"
        if not self.attached and now > self.lease_until:
            return "lease", f"nobody was connected for {self.cfg.lease_s:g} s; start another walk"
        if self.attached and (self.still or self.paused) and now - self.acted > self.cfg.idle_s:
            return "idle", f"no key was pressed for {self.cfg.idle_s:g} s; start another walk"
        return None

    # --- actions --------------------------------------------------------------------------------------------------

    def act(self, seq: int, row: np.ndarray, now: float) -> None:
        """From now on this is held. A key wakes a paused world; letting go of one does not."""
        self.unanswered.append((seq, now))
        if self.paused:
            self.pending.clear()
            self.held = (seq, row)
            if row[STATIC]:
                return
            self.resume(now)
        elif self.resting(now):
            self.woken = now
        self.pending = [*self.pending[-MOST_PENDING + 1 :], (now, seq, row)]
        self.acted = now

    def pause(self) -> None:
        if self.pending:
            self.held = self.pending[-1][1:]
            self.pending.clear()
        self.paused = True

    def resume(self, now: float) -> None:
        if self.paused:
            self.paused, self.woken = False, now

    def answer_s(self, receipt: int, now: float) -> float | None:
        """Seconds since the action of a receipt came, when a picture shows it first; those before it never will be."""
        if all(seq != receipt for seq, _ in self.unanswered):
            return None
        while True:
            seq, since = self.unanswered.popleft()
            if seq == receipt:
                return now - since

    @property
    def still(self) -> bool:
        """No key is held."""
        latest = self.pending[-1][2] if self.pending else self.held[1]
        return bool(latest[STATIC])

    def resting(self, now: float) -> bool:
        idle = bool(self.cfg.rest_s) and self.still and not self.pending and now - self.acted > self.cfg.rest_s
        return self.paused or idle

    def take(self, count: int) -> tuple[np.ndarray, list[int]]:
        """The actions [count, 13] of the next chunk and the receipt of each."""
        rows: list[tuple[int, np.ndarray]] = []
        for (since, seq, row), (until, _, _) in zip(self.pending, self.pending[1:], strict=False):
            rows += [(seq, row)] * max(1, round((until - since) * self.fps))
        if self.pending:
            self.held = self.pending[-1][1:]
            self.pending.clear()
        rows = rows[: count - 1]
        rows += [self.held] * (count - len(rows))
        return np.stack([row for _, row in rows]), [seq for seq, _ in rows]

    # --- pictures -------------------------------------------------------------------------------------------------

    def begin(self, count: int) -> np.ndarray:
        """A chunk of `count` frames begins; its actions [count, 13]."""
        actions, receipts = self.take(count)
        self.pace.begin(receipts, since=self.woken, start=self.num_frames == 0)
        self.num_frames += count
        return actions

    def deliver(self, made: Sequence[Made], now: float, made_ms: float) -> None:
        """Pictures of the chunk in work."""
        if self.over:
            for encoded, _ in made:
                encoded.cancel()
            return
        self.pace.add(made, now=now, made_ms=made_ms)
        self.last = self.pace.queue[-1]
        self.changed.set()

    def finish(self, now: float, *, chunk_s: float, decode_s: float) -> None:
        """The chunk in work is done."""
        self.pace.finish(now)
        self.chunk_s, self.decode_s = chunk_s, decode_s

    def report(self, now: float) -> dict:
        """What GET shows and every `state` message carries."""
        state = "ended" if self.over else "open" if not self.attached else "resting" if self.resting(now) else "walking"
        pace = self.pace
        return {
            "state": state, "paused": self.paused, "chunk_ms": round(1e3 * self.chunk_s, 1),
            "decode_ms": round(1e3 * self.decode_s, 1), "turnaround_ms": round(1e3 * pace.turnaround_s, 1),
            "fps": round(1 / pace.interval_s, 2), "pictures": self.walk.num_actions if self.walk else 0,
            "chunks": pace.num_chunks, "made": pace.num_made, "shown": pace.num_shown, "dropped": pace.num_dropped,
            "rewind_s": [round(seconds, 2) for seconds, _ in self.ways_back()],
            "seconds_left": round(max(0.0, self.born + self.cfg.session_s - now), 1),
        }  # fmt: skip

    # --- back in time ---------------------------------------------------------------------------------------------

    def wants_moment(self) -> bool:
        """The walk has gone far enough since the last moment that was put by, or that there was no room for."""
        last = max([self.no_room, *(moment.num_frames for moment in self.moments)])
        return bool(self.cfg.rewind_points) and self.num_frames >= last + self.cfg.rewind_every_s * self.fps

    def put_by(self, branch: Walk) -> None:
        """A branch of the walk as it is now becomes a moment to go back to."""
        assert self.last is not None
        self.moments.append(Moment(branch, self.num_frames, self.last))

    def ways_back(self) -> list[tuple[float, Moment]]:
        """Seconds from the newest picture that was shown back to each moment, and the moment, nearest first."""
        shown = self.num_frames - len(self.pace.coming) - len(self.pace.queue)
        ways = [((shown - moment.num_frames) / self.fps, moment) for moment in reversed(self.moments)]
        return [(seconds, moment) for seconds, moment in ways if seconds > 0]

    def way_back(self, seconds: float) -> tuple[float, Moment]:
        """The nearest one; ValueError where there is none."""
        ways = self.ways_back()
        if not ways:
            raise ValueError(f"there is no earlier moment yet; one is kept every {self.cfg.rewind_every_s:g} s")
        return min(ways, key=lambda way: abs(way[0] - seconds))

    def go_back(self, seconds: float, moment: Moment, branch: Walk, now: float) -> None:
        """The walk goes on from a branch of the moment, whose picture is shown at once; later moments never were."""
        while self.moments and self.moments[-1].num_frames > moment.num_frames:
            self.moments.pop()
        self.pace.clear(now)
        self.walk, self.num_frames, self.last, self.woken = branch, moment.num_frames, moment.last, now
        self.no_room = -math.inf
        self.tell({"type": "rewound", "seconds": round(seconds, 2), "sequence": self.pace.num_made})
        self.show(moment.last, now)

    def branch(self, identity: str, walk: Walk | None, now: float) -> "Session":
        """A session that goes on with `walk`, a branch of this one's, and begins with the newest picture."""
        found = Session(
            identity, principal=self.principal, image=self.image, asked=self.asked, cfg=self.cfg, fps=self.fps, now=now,
            walk=walk, num_frames=self.num_frames,
        )  # fmt: skip
        found.moments.extend(self.moments)
        found.last = self.last
        if self.last is not None:
            found.show(self.last, now)
        return found

    def show(self, picture: Picture, now: float) -> None:
        """Shows a picture that was made before, if it was encoded and not dropped."""
        if picture.encoded.done() and not picture.encoded.cancelled():
            self.pace.put(picture, now)
            self.changed.set()


def new_identity(export: str) -> str:
    """A session's id; what is before the dot tells of which export it is."""
    return ".".join([*([export[:PREFIX]] if export else []), secrets.token_urlsafe(12)])


def static_row() -> np.ndarray:
    row = np.zeros(len(ACTIONS))
    row[STATIC] = 1
    return row
