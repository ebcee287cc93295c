"""A caller of the session API (docs/serving.md). Loads no torch.

    with client.begin("http://127.0.0.1:8000", example="doom-0-known-00000") as walk:
        walk.act("dolly_in", "pan_left")
        for frame in walk.frames():
            show(frame.image)

A walk comes back by itself after a lost connection and goes on where it was, on another server if it was moved there.
"""

import base64
import io
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.sync.client import ClientConnection, connect

from relic.serve.wire import STILL, unpacked

KEY = "RELIC_API_KEY"  # the variable with an API key, of `relic play` and of a deployment's own session
PASSING = (429, 503)  # answers of a server that is full, warming up or closing
RETRY_S = 1.0  # between two tries to begin a walk
AGAIN_S = 0.2  # between two tries to come back to a walk
QUEUE = 64  # messages that wait to be read; beyond them the server waits, and drops the oldest pictures
READY_S = 10.0  # for a server to say ready
direct = build_opener(ProxyHandler({}))  # a server of this machine is not reached through a proxy


class Answered(RuntimeError):
    """A request that the server refuses; `sentence` is the server's own."""

    def __init__(self, status: int, sentence: str, asked: str):
        super().__init__(f"{asked} is answered by {status}: {sentence}")
        self.status, self.sentence = status, sentence


class Ended(RuntimeError):
    """A walk that cannot go on: the server refuses it, or nobody answered until its lease was over."""


@dataclass(frozen=True)
class Frame:
    """A picture of a walk and what its header says."""

    sequence: int
    receipt: int  # what `act` returned for the action that it shows; 0 before the first
    pose: np.ndarray  # camera to world, float32 [4, 4], positions in the world's mean steps
    made_ms: float  # of the server's clock
    sent_ms: float
    still: bool  # the start image
    data: bytes  # JPEG or WebP

    @property
    def image(self) -> np.ndarray:
        """uint8 [H, W, 3]"""
        return np.asarray(Image.open(io.BytesIO(self.data)).convert("RGB"))


def ask(method: str, url: str, *, body: Any = None, token: str = "", timeout_s: float = 10.0) -> Any:
    """The JSON answer to a request; None where there is none."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = Request(url, method=method, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            data = answer.read()
    except HTTPError as error:
        raise Answered(error.code, sentence_of(error.read()), f"{method} {url}") from error
    return json.loads(data) if data else None


def sentence_of(body: bytes) -> str:
    """What a refusal says: its `error`, or all of it where another server has answered."""
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def begin(
    address: str,
    *,
    example: str = "",
    image: Path | bytes | None = None,
    prompt: str | None = None,
    seed: int = 0,
    speed: float = 1.0,
    format: str = "jpeg",
    key: str = "",
    export: str = "",
    wait_s: float = 0.0,
) -> "Walk":
    """A new walk from an example (the first one where nothing is said) or from an image file, or its bytes.

    `key` is an API key, `export` the key of the export that must be walked in. For `wait_s` it is asked again: all
    slots may be taken, and behind a Service a server that closes may still be asked, or for a moment nobody answer.
    What the server refuses is `Answered`, with its status and sentence."""
    asked: dict[str, Any] = {"seed": seed, "speed": speed, "format": format, "prompt": prompt}
    if image is not None:
        asked["image"] = base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()
    until = time.monotonic() + wait_s
    while True:
        try:
            if image is None:
                asked["example"] = example or ask("GET", f"{address}/v1/world")["examples"][0]["id"]
            session = ask("POST", f"{address}/v1/sessions", body=asked, token=key)
            if export in ("", session["export"]):
                return Walk(address, session)
            ask("DELETE", f"{address}/v1/sessions/{session['id']}", token=session["token"])
            refused: Exception = RuntimeError(f"{address} serves the export {session['export']}, not {export}")
        except (Answered, Ended, OSError) as error:
            if isinstance(error, Answered) and error.status not in PASSING:
                raise
            refused = error
        if time.monotonic() > until:
            raise refused
        time.sleep(RETRY_S)


class Walk:
    """A session that was begun, and its stream. Acting from another thread than the one that reads frames is fine.

    Tokens are short-lived, and fresh ones come while frames are read. So who reads none for longer than
    `session["token_seconds"]` cannot come back after a lost connection."""

    def __init__(self, address: str, session: dict[str, Any]):
        self.address, self.session = address, session  # what POST answered
        self.token = session["token"]
        self.ready: dict[str, Any] = {}  # the latest of each of these messages
        self.state: dict[str, Any] = {}
        self.rewound: dict[str, Any] = {}
        self.over: dict[str, Any] = {}
        self.errors: deque[str] = deque(maxlen=16)  # sentences about wrong messages, newest last
        self.left = False  # by this side
        self.paused = False
        self.num_lost = 0  # connections that were lost or moved, and came back
        self.num_acts = 0
        self.held: dict[str, Any] = {}  # the latest action
        self.last = -1  # sequence number of the latest frame
        self.ping_at = 0.0
        self.coming_back = threading.RLock()
        self.connection = ExitStack()
        self.stream = self._come(time.monotonic() + session["lease_seconds"])

    @property
    def id(self) -> str:
        return self.session["id"]

    # --- doing ----------------------------------------------------------------------------------------------------

    def act(self, *keys: str | float, speed: float | None = None) -> int:
        """Holds these actions from now on; none stands still. Returns the receipt of the frames that will show it."""
        self.num_acts += 1
        self.held = {"seq": self.num_acts, "keys": list(keys)} | ({} if speed is None else {"speed": speed})
        self.paused = self.paused and not keys  # letting go of a key does not end a pause
        self._say("action", **self.held)
        return self.num_acts

    def pause(self) -> None:
        self.paused = True
        self._say("pause")

    def resume(self) -> None:
        self.paused = False
        self._say("resume")

    def rewind(self, seconds: float) -> None:
        """Back to the moment of `state["rewind_s"]` that is nearest; `rewound` says from which frame on."""
        self._say("rewind", seconds=seconds)

    def branch(self) -> "Walk":
        """Another walk, which goes on from the present moment of this one."""
        return Walk(self.address, ask("POST", f"{self.address}/v1/sessions/{self.id}/branch", token=self.token))

    def close(self) -> None:
        """Ends the walk, if it has not ended, and gives its slot back."""
        try:
            if not self.over:
                ask("DELETE", f"{self.address}/v1/sessions/{self.id}", token=self.token)
        except Answered as error:
            if error.status not in (404, 410):  # it has ended already
                raise
        finally:
            self._leave()

    def _leave(self) -> None:
        """Whoever reads frames in another thread comes to their end, and does not come back."""
        self.left = True
        self.connection.close()

    @property
    def done(self) -> bool:
        """It has ended, or was left."""
        return self.left or bool(self.over)

    def __enter__(self) -> "Walk":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # whatever closing would say hides nothing
            self._leave()

    # --- seeing ---------------------------------------------------------------------------------------------------

    def frames(self) -> Iterator[Frame]:
        """Frames as they come, each once, until the walk has ended (`over` says why); `Ended` where it is refused."""
        while (frame := self.frame()) is not None or not self.done:
            if frame is not None:
                yield frame

    def frame(self, timeout_s: float = 1.0) -> Frame | None:
        """The next frame; None when none comes in time, or the walk has ended."""
        until = time.monotonic() + timeout_s
        while not self.done:
            now, stream = time.monotonic(), self.stream
            if now > self.ping_at:
                self.ping_at = now + self.session["token_seconds"] / 3
                with suppress(ConnectionClosed):  # `recv` says so too, behind what was still sent
                    say(stream, "ping", at=now)
            try:
                message = stream.recv(max(0.0, until - now))
            except TimeoutError:
                return None
            except ConnectionClosed as closed:
                self._come_back(stream, closed)
                continue
            if isinstance(message, str):
                self._hear(json.loads(message))
                continue
            found = frame_of(message)
            if found.sequence > self.last:  # what a connection repeats that came back was seen
                self.last = found.sequence
                return found
        return None

    def _hear(self, message: dict[str, Any]) -> None:
        self.token = message.get("token", self.token)
        if message["type"] == "state":
            self.state = message
            self.paused = message.get("paused", self.paused)  # an action that was refused has not ended a pause
        elif message["type"] == "rewound":
            self.rewound = message
        elif message["type"] == "ended":
            self.over = message
        elif message["type"] == "error":
            self.errors.append(message["message"])

    # --- the connection -------------------------------------------------------------------------------------------

    def _say(self, kind: str, **values: Any) -> None:
        """Says it over a connection that is there; a walk that has ended hears nothing more."""
        while not self.done:
            stream = self.stream
            try:
                say(stream, kind, **values)
                return
            except ConnectionClosed as closed:
                if closed.rcvd and closed.rcvd.code == 1000:
                    return  # it has ended, and why waits to be read
                self._come_back(stream, closed)

    def _come_back(self, lost: ClientConnection, closed: ConnectionClosed) -> None:
        """Connects again, unless another thread has; what was held before is held again."""
        with self.coming_back:
            if self.stream is not lost or self.done:
                return
            code = closed.rcvd.code if closed.rcvd else 1006
            if code >= 4000 and code - 4000 not in PASSING:
                raise Ended(self.errors[-1] if self.errors else f"the server has closed the walk with {code}")
            self.stream = self._come(time.monotonic() + self.session["lease_seconds"])
            self.num_lost += 1
            if self.done:  # it was left meanwhile
                self.connection.close()
            with suppress(ConnectionClosed):  # who uses the stream next comes back again
                if self.paused and not self.ready.get("paused"):
                    say(self.stream, "pause")
                elif self.held and not self.paused:
                    say(self.stream, "action", **self.held)

    def _come(self, until: float) -> ClientConnection:
        """An open stream, after `ready`."""
        while True:
            try:
                return self._connected()
            except (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed, EOFError) as error:
                if self.done or time.monotonic() > until:
                    self.connection.close()
                    lost = "the connection was lost and did not come back while the walk waited"
                    raise Ended(self.over.get("message", lost)) from error
            time.sleep(AGAIN_S)

    def _connected(self) -> ClientConnection:
        self.connection.close()
        scheme, host = urlsplit(self.address)[:2]
        url = f"{'wss' if scheme == 'https' else 'ws'}://{host}{self.session['path']}"
        stream = self.connection.enter_context(
            connect(url, max_queue=QUEUE, proxy=None, compression=None, close_timeout=1)
        )
        say(stream, "hello", token=self.token)
        while True:
            message = stream.recv(READY_S)
            if not isinstance(message, str):
                continue
            said = json.loads(message)
            if said["type"] == "ready":
                self.ready, self.token = said, said["token"]
                return stream
            moving = said.get("code") == 404 and self.ready  # without a router: asked elsewhere before it is saved
            if said["type"] == "error" and said["code"] not in PASSING and not moving:
                self.connection.close()
                raise Ended(said["message"])
            self._hear(said)


def say(stream: ClientConnection, kind: str, **values: Any) -> None:
    stream.send(json.dumps({"type": kind, **values}))


def frame_of(message: bytes) -> Frame:
    header, data = unpacked(message)
    pose = np.vstack([np.reshape(header["pose"], (3, 4)), [0, 0, 0, 1]]).astype(np.float32)
    return Frame(
        sequence=header["sequence"], receipt=header["receipt"], pose=pose, made_ms=header["made"],
        sent_ms=header["sent"], still=bool(header["flags"] & STILL), data=data,
    )  # fmt: skip
