"""Many people in one world: a real `relic serve` on loopback, with clients that walk and press keys.

    python benchmarks/serve_load.py --json
    python benchmarks/serve_load.py --clients 3 --minutes 30 --json figures.json

The model is the shipped base of the recipe tiny, walked in its few steps. The server has one core, the clients have
another one; where a machine has one core only, they share it, and `pinned` says so.

load: `sessions_held` of those that were begun walk to the end; beyond the places one more is `refused`. A key comes
every 0.5 to 1.1 s; action-to-frame is from there to the first picture with its receipt. `frames_lost` are gaps in
the sequence numbers. `fairness` is the most frames of a client over the least. Resident memory is the server's: medians
of the first and the last fifth of the time after `SETTLE_S`, in which each walk fills its memory.
overhead: one walk in a world of 200 frames a second, which the engine cannot make, so that it never waits; beside it
the engine alone in the server's place, stepping with no pictures encoded. In turns, on one core; frames a second.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import ROOT, facts, write
from PIL import Image

from relic import artifacts, recipes
from relic.artifacts import LocalStore
from relic.model import fp8, weights
from relic.serve import client, export
from relic.serve.client import Answered, ask
from relic.worlds import rooms
from relic.worlds.config import Rooms

ACTIONS = {"dolly_in": 1.0, "truck_left": 1.0, "pan_left": 1.0, "pan_right": 1.0}
SETTLE_S = 60.0
SAMPLE_S = 2.0
TOO_FAST = 200.0  # frames a second
OVERHEAD_S = 12.0  # of each turn

ENGINE = """
import os, sys, time
import numpy as np, torch
os.sched_setaffinity(0, {int(sys.argv[2])}) if sys.argv[2] else None
from relic.serve import engine
from relic.serve.config import Serve
loaded = engine.load(Serve(export=sys.argv[1], threads=1), torch.device("cpu"))
walk = loaded.open(loaded.world.examples[0].image, "", 0)
actions = np.zeros((64, 13)); actions[:, 0] = 1
def frames():
    return sum(len(made) for made, _ in walk.step(actions[:walk.num_actions]))
for _ in range(12):
    frames()
print("ready", flush=True)
for line in sys.stdin:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < float(line):
        count += frames()
    print(count / (time.perf_counter() - began), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    clients: int
    minutes: float
    sessions_held: int
    refused: int
    frames_sent: int
    frames_lost: int
    frames_per_s: float  # of all clients
    action_to_frame_p50_ms: float
    action_to_frame_p95_ms: float
    action_to_frame_p99_ms: float
    num_actions: int
    fairness: float
    resident_first_mib: float
    resident_last_mib: float
    resident_growth: float  # share


@dataclass
class Person:
    """One client: what it saw."""

    frames: int = 0
    lost: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    held: bool = False
    error: str = ""


def write_export(store: Path, fps: float) -> str:
    """The URI of an export of the shipped base, in a world of so many frames a second."""
    recipe, local, key = recipes.named("tiny"), LocalStore(store), artifacts.digest(["load", fps])[:20]
    recording = next(rooms.record(Rooms(), region="known", seed=0, num_clips=1, num_frames=5))
    with local.working("export", key) as out:
        base = weights.start_folder("tiny/base")
        model = weights.load_transformer(base)
        fp8.quantise(model)
        weights.save(model, out / "student")
        weights.save(weights.load_codec(weights.start_folder("tiny/codec")), out / "codec")
        (out / "examples").mkdir()
        Image.fromarray(recording.frames[0]).save(out / "examples" / "a.png")
        entries = [{"id": "a", "image": "a.png", "caption": "a house", "place": recording.place}]
        artifacts.write_json(out / "examples" / "examples.json", entries)
        artifacts.write_json(out / "examples" / "world.json", {"fps": fps, "actions": ACTIONS})
        dials = {"rollout": asdict(recipe.distill.rollout), "actions": asdict(recipe.evaluate.actions)}
        artifacts.write_json(out / export.SETTINGS, {"name": "load", **dials})
        local.commit("export", key, {"step": "export", "version": 1, "key": key, "parameters": {}, "inputs": {}})
    return local.uri("export", key)


def cores() -> tuple[str, str]:
    """The server's and the clients'; nothing where there is one only."""
    found = sorted(os.sched_getaffinity(0))
    return (str(found[0]), str(found[1])) if len(found) > 1 else ("", "")


@contextmanager
def serving(uri: str, slots: int, core: str) -> Iterator[tuple[str, int]]:
    """The address and process of a warm server."""
    dials = {
        "export": uri, "port": 0, "device": "cpu", "threads": 1, "slots": slots, "sessions-each": slots + 1,
        "session-s": 100_000, "idle-s": 100_000, "creates-per-minute": 1000,
    }  # fmt: skip
    line = [sys.executable, "-m", "relic", "serve"]
    line += [word for name, value in dials.items() for word in (f"--{name}", str(value))]
    if core:
        line = ["taskset", "-c", core, *line]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
            while not ready(address):
                time.sleep(0.2)
            yield address, process.pid
        finally:
            process.terminate()


def ready(address: str) -> bool:
    try:
        return ask("GET", f"{address}/readyz")["ready"]
    except (Answered, OSError):
        return False


def walk(address: str, person: Person, until: float, seed: int) -> None:
    """Walks and presses keys until the time is over."""
    keys, press_at, pressed = random.Random(seed), 0.0, dict[int, float]()
    try:
        with client.begin(address, seed=seed) as made:
            last = -1
            while time.monotonic() < until:
                if time.monotonic() > press_at:
                    press_at = time.monotonic() + keys.uniform(0.5, 1.1)
                    pressed[made.act(keys.choice(list(ACTIONS)))] = time.monotonic()
                frame = made.frame(0.1)
                if frame is None:
                    if made.over:
                        raise RuntimeError(made.over["message"])
                    continue
                person.frames += 1
                person.lost += frame.sequence - last - 1
                last = frame.sequence
                for seq in [seq for seq in pressed if seq <= frame.receipt]:
                    taken = 1e3 * (time.monotonic() - pressed.pop(seq))
                    if seq == frame.receipt:
                        person.latencies_ms.append(taken)
            person.held = True
    except Exception as error:
        person.error = f"{type(error).__name__}: {error}"


def resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def load(uri: str, clients: int, minutes: float) -> Row:
    server_core, client_core = cores()
    with serving(uri, clients, server_core) as (address, process):
        if client_core:
            os.sched_setaffinity(0, {int(client_core)})
        began = time.monotonic()
        people, samples = [Person() for _ in range(clients)], list[tuple[float, float]]()
        threads = [
            threading.Thread(target=walk, args=(address, person, began + 60 * minutes, seed))
            for seed, person in enumerate(people)
        ]
        for thread in threads:
            thread.start()
        time.sleep(3)
        refused = 0
        try:
            client.begin(address)
        except Answered as error:
            refused = int(error.status == 429)
        while any(thread.is_alive() for thread in threads):
            samples.append((time.monotonic() - began, resident_mib(process)))
            time.sleep(SAMPLE_S)
        taken = time.monotonic() - began
    for person in people:
        if person.error:
            print(person.error, file=sys.stderr)
    settled = [mib for at, mib in samples if at > min(SETTLE_S, taken / 3)]
    part = max(1, len(settled) // 5)
    first, last = statistics.median(settled[:part]), statistics.median(settled[-part:])
    latencies = np.array([ms for person in people for ms in person.latencies_ms])
    frames = [person.frames for person in people]
    return Row(
        clients=clients, minutes=minutes, sessions_held=sum(person.held for person in people), refused=refused,
        frames_sent=sum(frames), frames_lost=sum(person.lost for person in people), frames_per_s=sum(frames) / taken,
        action_to_frame_p50_ms=float(np.percentile(latencies, 50)),
        action_to_frame_p95_ms=float(np.percentile(latencies, 95)),
        action_to_frame_p99_ms=float(np.percentile(latencies, 99)),
        num_actions=len(latencies), fairness=max(frames) / max(1, min(frames)), resident_first_mib=first,
        resident_last_mib=last, resident_growth=last / first - 1,
    )  # fmt: skip


def overhead(uri: str, turns: int) -> dict[str, Any]:
    """Frames a second of the engine alone and behind the service, in turns, and the share that the service takes."""
    server_core, client_core = cores()
    with serving(uri, 1, server_core) as (address, _):
        if client_core:
            os.sched_setaffinity(0, {int(client_core)})
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", ENGINE, uri, server_core]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as alone:
            assert alone.stdin
            assert alone.stdout
            alone.stdout.readline()
            bare, served = list[float](), list[float]()
            for _ in range(turns):
                alone.stdin.write(f"{OVERHEAD_S}\n")
                alone.stdin.flush()
                bare.append(float(alone.stdout.readline()))
                served.append(frames_per_s(address))
            alone.stdin.close()
    ratios = [a / b for a, b in zip(served, bare, strict=True)]
    return {"engine_frames_per_s": bare, "service_frames_per_s": served, "overhead": 1 - statistics.median(ratios)}


def frames_per_s(address: str) -> float:
    """Of one walk, once its memory is full."""
    with client.begin(address, wait_s=10) as made:
        made.act("dolly_in")
        until, count, began = time.monotonic() + 4 + OVERHEAD_S, 0, 0.0
        while time.monotonic() < until:
            if made.frame(0.1) is not None and time.monotonic() > until - OVERHEAD_S:
                began = began or time.monotonic()
                count += 1
        return (count - 1) / (time.monotonic() - began)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3, help="of measuring the overhead; 0: not measured")
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        costs: dict[str, Any] = {}
        every = os.sched_getaffinity(0)
        if given.turns:
            costs = overhead(write_export(Path(folder) / "fast", TOO_FAST), given.turns)
            os.sched_setaffinity(0, every)
            print(costs, flush=True)
        row = load(write_export(Path(folder) / "usual", 16.0), given.clients, given.minutes)
    os.sched_setaffinity(0, every)
    print(row)
    if given.json:
        write(given.json, {**facts(torch.device("cpu")), "pinned": len(every) > 1, "overhead": costs}, [row])


if __name__ == "__main__":
    main()
