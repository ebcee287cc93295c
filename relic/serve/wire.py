"""What travels on a stream: messages in, frames out. Loads no torch.

A frame is one binary message, little-endian: the 76 bytes of HEADER, then a JPEG or a WebP, as its first bytes say.
    version u8 · flags u8 (bit 0: the start image) · length of the header u16 · sequence u32 · receipt u32 (`seq` of the
    action it shows, 0 before the first) · made f64, sent f64 (milliseconds of the server's clock) · pose 12 x f32, the
    upper three rows of the camera-to-world matrix, positions in the world's mean steps
"""

import json
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from relic.geometry.config import ACTIONS
from relic.serve.config import Router, Serve
from relic.serve.images import TooLarge, shown

HEADER = struct.Struct("<BBHIIdd12f")  # before the bytes of a picture
VERSION = 1
STILL = 1  # of the flags: the start image
MESSAGES = ("hello", "action", "pause", "resume", "rewind", "ping", "bye")
MOVED = 1012  # close code of a walk that goes on at another server ("service restart" of RFC 6455's registry)
LARGEST_SEQUENCE = 2**32 - 1
LATEST_MS = 1e15  # of a client's clock
LONGEST_REWIND_S = 3600.0


@dataclass(frozen=True)
class Picture:
    """A frame on its way to the page."""

    sequence: int
    receipt: int
    pose: np.ndarray  # [4, 4]
    encoded: Future[bytes]  # its JPEG or WebP
    made_ms: float
    due: float = 0.0  # on the session's clock, in seconds
    still: bool = False


def pack(picture: Picture, sent_ms: float) -> bytes:
    """The message of a picture that has been encoded."""
    flags = STILL if picture.still else 0
    head = (VERSION, flags, HEADER.size, picture.sequence, picture.receipt, picture.made_ms, sent_ms)
    return HEADER.pack(*head, *picture.pose[:3].ravel().tolist()) + picture.encoded.result(0)


def unpacked(message: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a picture's message by name, and the JPEG or WebP."""
    version, flags, size, sequence, receipt, made, sent, *pose = HEADER.unpack_from(message)
    header = {"version": version, "flags": flags, "sequence": sequence, "receipt": receipt, "made": made,
              "sent": sent, "pose": pose}  # fmt: skip
    return header, message[size:]


def parse(text: str | None, cfg: Serve | Router) -> dict:
    """A client's message: a JSON object with a known type. None stands for a binary one."""
    if text is None:
        raise ValueError("the message is binary; allowed is JSON text")
    if len(text) > cfg.message_bytes:
        raise TooLarge(f"the message has {len(text)} characters; allowed are {cfg.message_bytes}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the message {shown(text)} is not JSON; allowed is an object with a type") from error
    kind = message.get("type") if isinstance(message, dict) else message
    if not isinstance(message, dict) or kind not in MESSAGES:
        raise ValueError(f"the message type {shown(kind)} is unknown; allowed are {', '.join(MESSAGES)}")
    return message


def parse_action(message: dict, world: Mapping[str, float], cfg: Serve, speed: float) -> tuple[int, np.ndarray]:
    """(seq, action [13]) of an action message; `world` maps the trained actions to their usual magnitude.

    Names stand for the usual magnitude, numbers for themselves; gamma multiplies both. What cancels out is static."""
    seq, keys, gamma = message.get("seq"), message.get("keys"), message.get("speed", speed)
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq <= LARGEST_SEQUENCE:
        raise ValueError(f"seq is {shown(seq)}; allowed are whole numbers from 0 to {LARGEST_SEQUENCE}")
    gamma = parse_speed(gamma, cfg)
    if not isinstance(keys, list) or len(keys) > len(ACTIONS):
        raise ValueError(f"keys is {shown(keys)}; allowed are {len(ACTIONS)} numbers, or names of actions")
    if keys and all(isinstance(key, int | float) and not isinstance(key, bool) for key in keys):
        if len(keys) != len(ACTIONS) or not all(0 <= key <= cfg.max_magnitude for key in keys):
            raise ValueError(
                f"keys is {shown(keys)}; allowed are {len(ACTIONS)} numbers from 0 to {cfg.max_magnitude:g}, or names"
            )
        row = np.array(keys, np.float64)
    else:
        row = usual(keys, world)
    return seq, settled(row * gamma)


def parse_at(message: dict) -> float | None:
    """The time that a ping carries, which its pong returns."""
    at = message.get("at")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not abs(at) <= LATEST_MS):
        raise ValueError(f"at is {shown(at)}; allowed is a number of milliseconds")
    return at


def usual(names: Iterable[object], world: Mapping[str, float]) -> np.ndarray:
    """Magnitudes [13] of the named actions together, each of its usual size; float64."""
    row = np.zeros(len(ACTIONS))
    for name in names:
        if name == "static":
            continue
        if not isinstance(name, str) or name not in world:
            raise ValueError(f"keys has {shown(name)}; this world's actions are {', '.join(world)} and static")
        row[ACTIONS.index(name)] = world[name]
    return row


def settled(row: np.ndarray) -> np.ndarray:
    """The action [13] in which opposites have cancelled, static exactly where nothing is left: what
    `magnitudes(signed(row))` of geometry/actions.py is."""
    motion = row[:-1:2] - row[1::2]
    found = np.zeros_like(row)
    found[:-1:2], found[1::2] = motion.clip(min=0), (-motion).clip(min=0)
    found[-1] = not motion.any()
    return found


def parse_speed(speed: object, cfg: Serve) -> float:
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed <= cfg.max_speed:
        raise ValueError(f"speed is {shown(speed)}; allowed is above 0 and at most {cfg.max_speed:g}")
    return float(speed)


def parse_rewind(message: dict) -> float:
    """Seconds that a rewind message asks to go back."""
    seconds = message.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_REWIND_S:
        raise ValueError(f"seconds is {shown(seconds)}; allowed is above 0 and at most {LONGEST_REWIND_S:g}")
    return float(seconds)
