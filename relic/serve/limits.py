"""How often and how many: rates by token buckets, and the streams and bodies that there may be at a time.

Times are seconds of one clock."""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request

from relic.serve import images
from relic.serve.access import Refused
from relic.serve.config import Serve

BODY_S = 30.0  # for a request's body
MOST_BODIES = 8  # that are read at a time; each is held in memory
MOST_KNOWN = 4096  # principals whose rate is remembered; the one that was quiet longest is forgotten first
FLOOD_S = 5.0  # a stream that is over its rate for this long is closed
REMIND_S = 1.0  # between two sentences about it


class Bucket:
    """`most` at once, and `per_s` from then on."""

    def __init__(self, per_s: float, most: float, now: float):
        self.per_s, self.most, self.left, self.at = per_s, most, most, now

    def take(self, now: float) -> float:
        """Takes one and returns 0, or the seconds until there is one."""
        self.left = min(self.most, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.per_s
        self.left -= 1
        return 0.0


class Creates:
    """How often each principal has asked for a walk."""

    def __init__(self, per_minute: float):
        self.per_minute = per_minute
        self.buckets: OrderedDict[str, Bucket] = OrderedDict()  # the one that asked last is the last

    def take(self, principal: str, now: float) -> None:
        """Counts a request, or `Refused`."""
        if principal not in self.buckets:
            self.buckets[principal] = Bucket(self.per_minute / 60, max(1.0, self.per_minute), now)
        self.buckets.move_to_end(principal)
        while len(self.buckets) > MOST_KNOWN:
            self.buckets.popitem(last=False)
        if wait_s := self.buckets[principal].take(now):
            said = f"you asked for too many walks; allowed are {self.per_minute:g} a minute"
            raise Refused(429, said, wait_s, reason="create_rate")


class Messages:
    """The rate of one stream's messages. What comes over it is dropped unread, with a sentence once a second."""

    def __init__(self, per_s: float, now: float):
        self.per_s = per_s
        self.bucket = Bucket(per_s, per_s, now)
        self.dropped_at = self.over_since = self.told_at = -float("inf")

    def take(self, now: float) -> bool:
        """Whether the message may be read; ValueError where a sentence is due, `Refused` where the stream must end."""
        if not self.bucket.take(now):
            return True
        if now - self.dropped_at > REMIND_S:
            self.over_since = now
        self.dropped_at = now
        said = f"more than {self.per_s:g} messages a second came"
        if now - self.over_since > FLOOD_S:
            raise Refused(429, f"{said} for {FLOOD_S:g} s", reason="message_rate")
        if now - self.told_at > REMIND_S:
            self.told_at = now
            raise ValueError(f"{said}; what is over the rate is dropped")
        return False


class Shares:
    """Who has how many of `most`. One caller has half of them at most, so the others find some left."""

    def __init__(self, most: int):
        self.most = most
        self.held: Counter[str] = Counter()  # by caller

    def left(self, caller: str) -> bool:
        return self.held.total() < max(1, self.most) and self.held[caller] < max(1, self.most // 2)

    @contextlib.contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        self.held[caller] += 1
        try:
            yield
        finally:
            self.held[caller] -= 1
            self.held += Counter()  # forgets whoever has none


class Sockets:
    """The streams that are open, at most `most`, and those of them that have not said who they are, at most half."""

    def __init__(self, most: int):
        self.open, self.silent = Shares(most), Shares(most // 2)
        self.waiting: dict[asyncio.Timeout, str] = {}  # whose hello is waited for, the longest first

    def check(self, caller: str) -> None:
        if not (self.open.left(caller) and (self.silent.left(caller) or self.hurry(caller))):
            all, silent, own = self.open.held.total(), self.silent.held.total(), self.open.held[caller]
            said = f"{all} streams are open already, {silent} of them without a hello, {own} of them yours"
            raise Refused(503, f"{said}; come again in a moment", 2, reason="sockets")

    def hurry(self, caller: str) -> bool:
        """Ends the longest wait for a hello of whom most are waited for, unless as many are this one's caller's."""
        held = Counter(self.waiting.values())
        largest = max(held, key=held.__getitem__, default="")
        if held[largest] <= self.silent.held[caller]:
            return False
        until = next(one for one, whose in self.waiting.items() if whose == largest)
        del self.waiting[until]
        until.reschedule(asyncio.get_running_loop().time())
        return True

    @contextlib.asynccontextmanager
    async def patience(self, caller: str, seconds: float) -> AsyncIterator[None]:
        """TimeoutError after so long, or earlier where another caller has fewer streams without a hello."""
        async with asyncio.timeout(seconds) as until:
            self.waiting[until] = caller
            try:
                yield
            finally:
                self.waiting.pop(until, None)


class Bodies:
    """The bodies that are being read."""

    def __init__(self) -> None:
        self.reading = Shares(MOST_BODIES)

    async def read(self, request: Request, caller: str, cfg: Serve) -> bytes:
        """The body of a request in JSON, or `Refused`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":  # a page of another site cannot send this type without asking first
            raise Refused(415, f"the content type is {images.shown(kind)}; allowed is application/json")
        if not self.reading.left(caller):
            all, own = self.reading.held.total(), self.reading.held[caller]
            raise Refused(503, f"{all} bodies are on their way already, {own} of them yours", 2, reason="bodies")
        with self.reading.hold(caller):
            return b"".join([part async for part in parts_of(request, cfg.body_bytes)])


async def parts_of(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """A request's body as it comes, all of it within `BODY_S`, or `Refused`."""
    parts, size, until = aiter(request.stream()), 0, asyncio.get_running_loop().time() + BODY_S
    while True:
        try:
            async with asyncio.timeout_at(until):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Refused(408, f"the body did not come within {BODY_S:g} s") from error
        size += len(part)
        if size > most_bytes:
            raise Refused(413, f"the body is larger than {most_bytes} bytes")
        yield part
