"""The pace of a walk: when its pictures are shown, which of them are dropped, and when the next chunk must begin.

- Pictures come latent by latent, while the rest of their chunk is still being made, and each is due one interval after
  the one before, or at once if it is late. Where the engine is slower than the world, the interval is what it needs.
- A chunk begins as late as the last ones' times allow for all of its pictures to come when they are due, and never
  while more than one chunk waits to be shown: what is made early shows old keys.
- At most two chunks of pictures wait. When more are made than a slow connection takes, the oldest are dropped, and
  their encoding with them if it has not begun.

It is plain bookkeeping on one thread and is told the time. Times are seconds of one clock.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from relic.serve.wire import Picture

Made = tuple[Future[bytes], np.ndarray]  # a picture that is being encoded and its pose [4, 4]


class Pace:
    def __init__(self, fps: float, now: float):
        self.fps = fps
        self.queue: deque[Picture] = deque()
        self.num_made = self.num_shown = self.num_dropped = self.num_chunks = 0
        self.count = 0  # of the last chunk
        self.coming: deque[int] = deque()  # receipts of the pictures that the chunk in work has yet to bring
        self.offset = 0  # pictures it has brought
        self.needed_s = 0.0  # the lead with which none of those would have been late
        self.allowed = now  # when the chunk in work could begin
        self.finished = now
        self.shown_until = now  # when the last picture that was made has been shown
        self.turnaround_s = 0.0  # from the moment a chunk could begin to its end, other walks' turns included
        self.lead_s = 0.0  # how long before its first picture is due a chunk must begin, that none be late

    @property
    def interval_s(self) -> float:
        """Between two pictures: the world's own, or what the engine needs."""
        return max(1 / self.fps, self.turnaround_s / max(1, self.count))

    def starts_at(self) -> float:
        """When the next chunk may begin. At that moment at most one chunk waits to be shown."""
        chunk_s = self.count * self.interval_s
        return self.shown_until - min(chunk_s, 1.25 * self.lead_s + 1 / self.fps)

    def begin(self, receipts: Sequence[int], *, since: float, start: bool = False) -> None:
        """A chunk begins that brings a picture for each receipt, and the start image before them on a walk's `start`.

        `since` is when the walk last woke: before that nothing waited for pictures."""
        self.allowed = max(self.starts_at(), self.finished, since)
        self.count, self.offset, self.needed_s = len(receipts), 0, 0.0
        self.coming = deque([0] * start + [*receipts])

    def add(self, made: Sequence[Made], *, now: float, made_ms: float) -> None:
        """The next pictures of the chunk in work."""
        self.needed_s = max(self.needed_s, now - self.allowed - self.offset / self.fps)
        due, still = max(now, self.shown_until), len(self.coming) > self.count
        for place, (encoded, pose) in enumerate(made):
            picture = Picture(0, self.coming.popleft(), pose, encoded, made_ms, still=still and place == 0)
            self.put(picture, due + place * self.interval_s)
        self.offset += len(made)
        self.shown_until = due + len(made) * self.interval_s
        while len(self.queue) > 2 * self.count:
            self.queue.popleft().encoded.cancel()
            self.num_dropped += 1

    def put(self, picture: Picture, due: float) -> None:
        """The picture, as the next one, is shown then."""
        self.queue.append(replace(picture, sequence=self.num_made, due=due))
        self.num_made += 1

    def finish(self, now: float) -> None:
        """The chunk in work is done."""
        assert not self.coming, f"the engine made {len(self.coming)} pictures too few"
        if self.num_chunks > 1:  # the first chunks are slow on their own account
            self.turnaround_s = slowly(self.turnaround_s, now - self.allowed)
            self.lead_s = slowly(self.lead_s, self.needed_s)
        self.num_chunks, self.finished = self.num_chunks + 1, now

    def next(self, now: float) -> Picture | None:
        """The oldest picture, once it is due."""
        if not self.queue or self.queue[0].due > now:
            return None
        self.num_shown += 1
        return self.queue.popleft()

    def put_back(self, picture: Picture) -> None:
        """The oldest picture was not shown after all."""
        self.num_shown -= 1
        self.queue.appendleft(picture)

    def wait_s(self, now: float) -> float | None:
        """Until the next picture is due; None while there is none."""
        return max(0.0, self.queue[0].due - now) if self.queue else None

    def clear(self, now: float) -> None:
        """What waits is no longer wanted."""
        while self.queue:
            self.queue.popleft().encoded.cancel()
        self.shown_until = now


def slowly(known: float, measured: float) -> float:
    """Up at once, down little by little."""
    return max(measured, 0.8 * known + 0.2 * measured)
