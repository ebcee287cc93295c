"""A session: one walk, the actions that wait for it and the pictures that wait for the page.

Two clocks meet here. Actions come when a finger moves; pictures are made a chunk at a time and shown one by one:

- A chunk starts as late as its measured time allows, and never while more than one chunk waits to be shown: what is
  made early shows old keys. Where the engine is slower than the world, pictures are spread evenly over its time.
- Every frame of a chunk takes the newest action. One that came and went between two chunks (a tap) is played first, for
  as many frames as it lasted, at least one. So no tap is lost, and a frame's receipt names the action it shows.
- At most two chunks of pictures wait. When more are made than a slow connection takes, the oldest are dropped.
- A world without keys rests: standing still would push what was seen out of the memory.

It is plain bookkeeping on one thread and is told the time, so tests need no waiting. Times are seconds of one clock.
"""

import asyncio
import secrets
from collections import deque

import numpy as np

from relic.geometry.actions import ACTIONS, STATIC
from relic.serve.config import Serve
from relic.serve.engine import Walk
from relic.serve.wire import Picture

MOST_PENDING = 64  # actions between two chunks


class Session:
    def __init__(self, *, principal: str, image: np.ndarray, caption: str, seed: int, speed: float, cfg: Serve,
                 fps: float, now: float):  # fmt: skip
        self.id = secrets.token_urlsafe(12)
        self.principal, self.image, self.caption, self.seed, self.speed = principal, image, caption, seed, speed
        self.cfg, self.fps, self.born = cfg, fps, now
        self.walk: Walk | None = None
        self.changed = asyncio.Event()  # something is there to be sent
        self.notices: deque[dict] = deque(maxlen=16)  # messages that wait to be sent
        self.over: tuple[str, str] | None = None  # reason and sentence
        # 1. the connection
        self.connection = 0  # counts connections: the newest one has the session
        self.attached = False
        self.lease_until = now + cfg.lease_s
        # 2. actions
        self.held = (0, static_row())  # seq and action [13] of the last chunk's end
        self.pending: list[tuple[float, int, np.ndarray]] = []  # when, seq, action
        self.acted = now
        self.woken = now  # when the connection came or the last rest ended
        # 3. pictures
        self.queue: deque[Picture] = deque()
        self.num_made = self.num_shown = self.num_dropped = self.num_chunks = 0
        self.shown_until = now  # when the last picture that was made has been shown
        self.delivered = now
        self.turnaround_s = 0.0  # from the moment a chunk may start to its pictures, other sessions' turns included
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
            self.changed.set()

    def tell(self, notice: dict) -> None:
        self.notices.append(notice)
        self.changed.set()

    def expiry(self, now: float) -> tuple[str, str] | None:
        """Why the session must end now, if it must."""
        if now - self.born > self.cfg.session_s:
            return "lifetime", f"a walk lasts at most {self.cfg.session_s:g} s; start another one"
        if not self.attached and now > self.lease_until:
            return "lease", f"nobody was connected for {self.cfg.lease_s:g} s; start another walk"
        if self.attached and self.still and now - self.acted > self.cfg.idle_s:
            return "idle", f"no key was pressed for {self.cfg.idle_s:g} s; start another walk"
        return None

    # --- actions --------------------------------------------------------------------------------------------------

    def act(self, seq: int, row: np.ndarray, now: float) -> None:
        if self.resting(now):
            self.woken = now
        self.pending = [*self.pending[-MOST_PENDING + 1 :], (now, seq, row)]
        self.acted = now

    @property
    def still(self) -> bool:
        """No key is held."""
        latest = self.pending[-1][2] if self.pending else self.held[1]
        return bool(latest[STATIC])

    def resting(self, now: float) -> bool:
        return bool(self.cfg.rest_s) and self.still and not self.pending and now - self.acted > self.cfg.rest_s

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

    def starts_at(self) -> float:
        """When the next chunk may start. At that moment at most one chunk waits to be shown."""
        if self.walk is None:
            return self.shown_until
        chunk = self.walk.num_actions * self.interval_s
        return self.shown_until - min(chunk, 1.25 * self.turnaround_s + 1 / self.fps)

    @property
    def interval_s(self) -> float:
        """Between two pictures: the world's own, or what the engine needs."""
        frames = self.walk.num_actions if self.walk else 1
        return max(1 / self.fps, self.turnaround_s / frames)

    def deliver(self, pictures: list[tuple[bytes, np.ndarray]], receipts: list[int], *, now: float, made_ms: float,
                chunk_s: float = 0.0, decode_s: float = 0.0) -> None:  # fmt: skip
        """Takes a chunk's pictures (JPEG and pose); `receipts` are those of its last ones, what is before has none."""
        if self.num_chunks > 1:  # the first chunks are slow on their own account
            taken = now - max(self.starts_at(), self.delivered, self.woken)
            self.turnaround_s = max(taken, 0.8 * self.turnaround_s + 0.2 * taken)
        self.num_chunks, self.delivered, self.chunk_s, self.decode_s = self.num_chunks + 1, now, chunk_s, decode_s
        receipts = [0] * (len(pictures) - len(receipts)) + receipts
        start, interval = max(now, self.shown_until), self.interval_s
        for place, ((jpeg, pose), receipt) in enumerate(zip(pictures, receipts, strict=True)):
            still = self.num_made == 0
            due = start + place * interval
            self.queue.append(Picture(self.num_made, receipt, pose, jpeg, made_ms, due, still))
            self.num_made += 1
        self.shown_until = start + len(pictures) * interval
        while len(self.queue) > 2 * max(len(pictures), self.walk.num_actions if self.walk else 1):
            self.queue.popleft()
            self.num_dropped += 1
        self.changed.set()

    def next_picture(self, now: float) -> Picture | None:
        """The oldest picture, once it is due."""
        if not self.queue or self.queue[0].due > now:
            return None
        self.num_shown += 1
        return self.queue.popleft()

    def wait_s(self, now: float) -> float | None:
        """Until the next picture is due; None while there is none."""
        return max(0.0, self.queue[0].due - now) if self.queue else None

    def report(self, now: float) -> dict:
        """What GET shows and every `state` message carries."""
        state = "ended" if self.over else "open" if not self.attached else "resting" if self.resting(now) else "walking"
        return {
            "state": state, "chunk_ms": round(1e3 * self.chunk_s, 1), "decode_ms": round(1e3 * self.decode_s, 1),
            "turnaround_ms": round(1e3 * self.turnaround_s, 1), "fps": round(1 / self.interval_s, 2),
            "pictures": self.walk.num_actions if self.walk else 0, "chunks": self.num_chunks, "made": self.num_made,
            "shown": self.num_shown, "dropped": self.num_dropped,
            "seconds_left": round(max(0.0, self.born + self.cfg.session_s - now), 1),
        }  # fmt: skip


def static_row() -> np.ndarray:
    row = np.zeros(len(ACTIONS))
    row[STATIC] = 1
    return row
