"""How often and how many: rates by token buckets, and the streams that may be open. Times are seconds of one clock."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request

from relic.serve.access import Refused

BODY_S = 30.0  # for a request's body
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


class Sockets:
    """The streams that are open, at most `most`; at most half of these have not said who they are."""

    def __init__(self, most: int):
        self.most = most
        self.open = self.silent = 0

    def check(self) -> None:
        if self.open >= self.most or self.silent >= max(1, self.most // 2):
            said = (
                f"{self.open} streams are open already, {self.silent} of them without a hello; come again in a moment"
            )
            raise Refused(503, said, 2, reason="sockets")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Until the hello has come."""
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1


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
