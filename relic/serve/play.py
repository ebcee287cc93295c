"""`relic play`: a walk in a terminal, or by a script, measured. Loads no torch.

A terminal tells when a key is pressed and never when it is let go. So a key is held for a moment after each press, and
the terminal's own repeats hold it for longer.
"""

import contextlib
import itertools
import os
import select
import shutil
import statistics
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from relic.generate import script
from relic.mistakes import UserError
from relic.serve import client
from relic.serve.client import KEY, Frame, Walk, ask
from relic.serve.config import Play

HOLD_S = 0.5  # how long a key is held after a press, a little longer than a terminal waits before it repeats
LOOK_S = 0.02  # between two looks at the keyboard
REWIND_S = 5.0
ENDING_S = 30.0  # for the pictures that show the end of a script
ARROWS = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left"}
PAUSE, REWIND, END = " ", "\x7f", "\x04"  # space, backspace, Ctrl-D
VIDEO = ".mp4"
Recording = Callable[[Path, float], contextlib.AbstractContextManager[Callable[..., None]]]  # of data/video.py
HELP = "w a s d, arrows, r f, q e walk; space pauses; backspace goes back; Ctrl-D ends"


class Meter:
    """Counts frames and measures how long an action takes to be seen."""

    def __init__(self) -> None:
        self.came: list[float] = []  # when each frame came
        self.acted: dict[int, float] = {}  # receipt -> when
        self.latencies_ms: list[float] = []
        self.num_missing, self.last = 0, -1

    def see(self, frame: Frame, now: float) -> None:
        self.came.append(now)
        self.num_missing += frame.sequence - self.last - 1
        self.last = frame.sequence
        if frame.receipt in self.acted:
            self.latencies_ms.append(1e3 * (now - self.acted.pop(frame.receipt)))

    def fps(self, over_s: float = float("inf")) -> float:
        """Frames a second of the last while."""
        recent = [at for at in self.came[-1024:] if at > self.came[-1] - over_s]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    def said(self, walk: Walk) -> str:
        latency = f"{statistics.median(self.latencies_ms):.0f}" if self.latencies_ms else "no"
        return (
            f"{len(self.came)} pictures, {self.fps():.1f} a second, {latency} ms from a key to its picture; "
            f"{self.num_missing} dropped, {walk.num_lost} connections lost"
        )


def main(cfg: Play, recording: Recording) -> str:
    """Walks. Returns what was measured as a sentence; `cfg.out` has the frames then, a video by `recording`."""
    address = cfg.address.rstrip("/")
    for name, given in (("key_file", cfg.key_file), ("image", cfg.image)):
        if given and not Path(given).is_file():
            raise UserError(f"{name} is {given!r}, which is no file")
    key = Path(cfg.key_file).read_text().strip() if cfg.key_file else os.environ.get(KEY, "")
    image = Path(cfg.image) if cfg.image else None
    try:
        world = ask("GET", f"{address}/v1/world")
    except OSError as error:
        raise UserError(f"nobody answers at {address}; give the address that relic serve prints") from error
    fps = world["fps"]
    held = script.parse(cfg.script, fps) if cfg.script else []
    known = {"static", *world["trained"]}
    for action in (action for part in held for action in part.actions if action not in known):
        raise UserError(f"the script has {action!r}; this world's actions are {', '.join(world['trained'])}")
    if not held and not sys.stdin.isatty():
        raise UserError("there is no terminal whose keys could be read; give --script, such as 'w 2s, left 1s'")
    meter = Meter()
    try:
        begun = client.begin(
            address, example=cfg.example, image=image, prompt=cfg.prompt or None, seed=cfg.seed, speed=cfg.speed,
            format=cfg.format, key=key, wait_s=cfg.wait_s,
        )  # fmt: skip
    except client.Answered as error:
        if error.status in client.PASSING:
            raise
        if error.status == 401:
            raise UserError(f"{address} asks for an API key; give --key-file FILE, or the key in {KEY}") from error
        raise UserError(error.sentence) from error
    with begun as walk, kept(cfg, recording, fps) as keep:
        for frame in by_script(walk, held, meter, fps) if held else by_keys(walk, meter):
            keep(frame)
    said = meter.said(walk) + (f"; it ended: {walk.over['message']}" if walk.over else "")
    return f"{cfg.out}: {said}" if cfg.out else said


@contextlib.contextmanager
def kept(cfg: Play, recording: Recording, fps: float) -> Iterator[Callable[[Frame], object]]:
    """What takes every frame to where `cfg.out` says."""
    folder = Path(cfg.out).parent if cfg.out.endswith(VIDEO) else Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.out.endswith(VIDEO):
        numbers = itertools.count()
        with recording(Path(cfg.out), fps) as add:
            yield lambda frame: add(frame.image, next(numbers))
    elif cfg.out:
        yield lambda frame: (folder / f"{frame.sequence:06d}.{cfg.format}").write_bytes(frame.data)
    else:
        yield lambda frame: None


# --- by a script ----------------------------------------------------------------------------------------------------


def by_script(walk: Walk, held: list[script.Held], meter: Meter, fps: float) -> Iterator[Frame]:
    """Frames until the first that shows the end of the script."""
    for part in held:
        yield from shown(walk, act(walk, meter, *part.actions), meter, part.num_frames / fps)
    last = act(walk, meter)
    for frame in shown(walk, last, meter, ENDING_S):
        if frame.receipt == last:
            return
        yield frame


def act(walk: Walk, meter: Meter, *actions: str) -> int:
    receipt = walk.act(*actions)
    meter.acted[receipt] = time.monotonic()
    return receipt


def shown(walk: Walk, receipt: int, meter: Meter, seconds: float) -> Iterator[Frame]:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not walk.over:
        if frame := walk.frame(left):
            meter.see(frame, time.monotonic())
            yield frame


# --- by keys --------------------------------------------------------------------------------------------------------


def by_keys(walk: Walk, meter: Meter) -> Iterator[Frame]:
    """Frames until Ctrl-D; the terminal shows them."""
    held: dict[str, float] = {}  # action -> until when
    print(HELP)
    with raw_terminal() as pressed:
        while not walk.over:
            now = time.monotonic()
            before = set(held)
            for key in pressed():
                if key == END:
                    return
                if key == PAUSE:
                    (walk.resume if walk.paused else walk.pause)()
                elif key == REWIND:
                    walk.rewind(REWIND_S)
                elif (name := ARROWS.get(key, key)) in script.KEYS:
                    held[script.KEYS[name]] = now + HOLD_S
            held = {action: until for action, until in held.items() if until > now}
            if set(held) != before:
                act(walk, meter, *held)
            if frame := walk.frame(LOOK_S):
                meter.see(frame, time.monotonic())
                draw(frame, f"{meter.fps(3.0):4.1f} pictures a second   {' + '.join(held) or 'still'}")
                yield frame


@contextlib.contextmanager
def raw_terminal() -> Iterator[Callable[[], list[str]]]:
    """A function that gives the keys pressed since the last call; they are not echoed meanwhile."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> list[str]:
        if not select.select([terminal], [], [], 0)[0]:
            return []
        return keys_of(os.read(terminal, 1024).decode(errors="replace") or END)

    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def keys_of(text: str) -> list[str]:
    """Keys in what a terminal sent: an arrow is three characters."""
    keys: list[str] = []
    while text:
        size = 3 if text[:3] in ARROWS else 1
        keys.append(text[:size].lower() if size == 1 else text[:size])
        text = text[size:]
    return keys


def draw(frame: Frame, below: str) -> None:
    """The picture in colour, two pixels a character, from the terminal's upper left corner."""
    columns, lines = shutil.get_terminal_size()
    image = frame.image
    scale = min(columns / image.shape[1], 2 * (lines - 2) / image.shape[0], 1.0)
    width, height = int(scale * image.shape[1]), int(scale * image.shape[0]) // 2 * 2
    pixels = np.asarray(Image.fromarray(image).resize((max(1, width), max(2, height))))
    rows = [
        "".join(
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀" for a, b in zip(upper, lower, strict=True)
        )
        for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True)
    ]
    sys.stdout.write("\x1b[H" + "\x1b[0m\x1b[K\n".join(rows) + f"\x1b[0m\x1b[K\n{below}\x1b[K\n\x1b[J")
    sys.stdout.flush()
