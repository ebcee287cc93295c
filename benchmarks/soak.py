"""Whether a training whose processes are killed again and again ends as one that is left alone.

The demo's model is distilled on random videos in two processes of `relic launch`, and every one to three minutes one of
them, drawn by chance, gets SIGKILL: the group starts again and goes on from its last checkpoint. Then the same training
runs without kills, and the weights of both are compared. A short one before says how long a step and a start take, from
which follows how many steps fill the time.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import measure
import torch

from relic import artifacts, steps, tracking
from relic.artifacts import LocalStore
from relic.data import shards
from relic.model import weights

LENGTHS = (4, 8)  # latents of a sample, in the two stages of the training
GRID = (8, 12)  # rows and columns of a latent
NUM_SAMPLES = 64
DIALS = {"checkpoint.every-s": 3, "optimizer.learning-rate": 1e-5, "critic-optimizer.learning-rate": 2e-5}
RESTARTS = 100_000  # as good as without end
TRIED = 20  # steps of the short training
SETTLED_S = 2.0  # after a kill the old group has done its last step, and the new one not its first
SAID_EVERY_S = 30.0
PASSED_OVER = "is passed over for an older one: "  # said of a checkpoint that is not whole
CUT_OFF = f"{PASSED_OVER}it has no {artifacts.MANIFEST}"


class Worker(NamedTuple):
    """A process of a training."""

    pid: int
    rank: int
    restart: int  # of the group


class Done(NamedTuple):
    """A step that rank 0 has done."""

    at: float  # seconds, by the wall clock
    step: int


class Kill(NamedTuple):
    at: float  # seconds, by the wall clock
    worker: Worker


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a kill has cost."""

    at_s: float  # since the launch
    rank: int
    step: int  # that was in hand
    steps_lost: int  # that were done and are done again
    seconds_lost: float | None  # until that step is done, less a step; None: it never was


# What is trained


def write_inputs(store: LocalStore, model: Path, lengths: Sequence[int], grid: tuple[int, int]) -> dict[str, str]:
    """URIs of what a model is distilled from, by the input's name: itself as the teacher of each length and as the
    student, and random videos."""
    made = {}
    for name, step in (("teacher", "teacher"), ("student", "student-init"), ("samples", "join")):
        key = artifacts.key(step, 1, {}, {})
        with store.working(step, key) as out:
            if name == "samples":
                write_samples(out, weights.read_config(model, "transformer").latent_channels, max(lengths), grid)
            for folder in {"teacher": [f"stage-{length}" for length in lengths], "student": ["."]}.get(name, []):
                shutil.copytree(model, out / folder, dirs_exist_ok=True)
            store.commit(step, key, {"step": step, "key": key})
        made[name] = store.uri(step, key)
    return made


def write_samples(out: Path, channels: int, num_latents: int, grid: tuple[int, int]) -> None:
    writer, generator = shards.Writer(out, 2**30), torch.Generator().manual_seed(0)
    num_frames = 4 * (num_latents - 1) + 1
    for number in range(NUM_SAMPLES):
        named = {"id": f"walk-{number}", "clip": f"walk-{number}", "region": "train", "caption": f"room {number}"}
        counted = {"palindrome": False, "num_latents": num_latents, "action_share": [1 / 13] * 13}
        poses = torch.eye(4).repeat(num_frames, 1, 1)
        poses[:, :3, 3] = torch.randn(num_frames, 3, generator=generator)
        latents = torch.randn(num_latents, channels, *grid, generator=generator).half()
        actions = torch.rand(num_frames, 13, generator=generator)
        writer.append([({**named, **counted}, {"latents": latents, "actions": actions, "poses": poses})])
    writer.finish({"latent_shape": [channels, *grid]})


def command(
    store: Path, inputs: Mapping[str, str], stages: Sequence[tuple[int, int]], dials: Mapping[str, Any],
    launched: Mapping[str, Any], step: str = "distill",
) -> list[str]:  # fmt: skip
    """`relic launch … -- relic STEP …` of two stages, each a length and steps, with dials of its configuration and
    options of the launch."""
    dials = {f"config.{name}": value for name, value in dials.items()}
    for at, (length, count) in enumerate(stages):
        dials |= {f"config.stages.{at}.latents": length, f"config.stages.{at}.steps": count}
    options = {"recipe": "quick", "store": store, **inputs, **dials}
    first = [sys.executable, "-m", "relic", "launch", *words(launched), "--"]
    return [*first, "relic", step, *words(options)]


def words(options: Mapping[str, Any]) -> list[str]:
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


# Its processes


def workers(store: Path) -> list[Worker]:
    """The living processes of the training that writes to a store."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "cmdline").read_bytes().split(b"\0")
            set_to = dict(pair.partition(b"=")[::2] for pair in (folder / "environ").read_bytes().split(b"\0"))
        except OSError:  # it has ended, or is not ours
            continue
        if os.fsencode(store) in given and b"LOCAL_RANK" in set_to:
            found.append(Worker(int(folder.name), int(set_to[b"RANK"]), int(set_to[b"TORCHELASTIC_RESTART_COUNT"])))
    return found


def environment() -> dict[str, str]:
    """Of a launch that dies with this process, computes with one thread a process, and keeps MLflow out."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(measure.ROOT), steps.PARENT_PROCESS: str(os.getpid())}
    return {**os.environ, **own, tracking.PARENT: tracking.RUNNER}


@dataclass
class Training:
    """A launch, and what is seen of it until it ends."""

    folder: Path
    inputs: Mapping[str, str]
    num_steps: int
    done: list[Done] = field(default_factory=list)  # in order; a step that is done again stands there twice
    kills: list[Kill] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def run(self, chance: random.Random, every_s: tuple[float, float] | None = None, kills_s: float = 0.0) -> None:
        """To the end, with SIGKILL of a process after every pause of `every_s`, least and most, for `kills_s` seconds.
        RuntimeError where it fails."""
        self.folder.mkdir()
        half = self.num_steps // 2
        stages = list(zip(LENGTHS, (self.num_steps - half, half), strict=True))
        launched = {"processes": 2, "max-restarts": RESTARTS, "grace-s": 10}
        line = command(self.store, self.inputs, stages, DIALS, launched)
        self.began = said = time.time()
        due = self.began + chance.uniform(*every_s) if every_s else None
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(line, env=environment(), stdout=log, stderr=log)
        records = self.records()
        while process.poll() is None:
            self.done += next(records)
            now = time.time()
            if every_s and due and due < now < self.began + kills_s and self.kill(chance):
                due = now + chance.uniform(*every_s)
            if now > said + SAID_EVERY_S:
                said = now
                self.say()
            time.sleep(0.2)
        self.done += next(records)
        self.seconds = time.time() - self.began
        self.say()
        if process.returncode:
            raise RuntimeError(f"the launch ended with code {process.returncode}; see {self.folder}/log")

    def records(self) -> Iterator[list[Done]]:
        """What rank 0 has done since it was last asked. Its file goes when the training ends, and is kept open."""
        while not (paths := list(self.store.glob("distill/*/.ranks/rank-00000.jsonl"))):
            yield []
        with paths[0].open() as file:
            line = ""
            while True:
                found = []
                while (read := file.readline()) and (line := line + read).endswith("\n"):
                    said, line = json.loads(line), ""
                    found.append(Done(said["time_ms"] / 1000, said["step"]))
                yield found

    def kill(self, chance: random.Random) -> bool:
        """Whether there was one to kill."""
        living = workers(self.store)
        if not living:
            return False
        worker = chance.choice(sorted(living, key=lambda worker: worker.rank))
        os.kill(worker.pid, signal.SIGKILL)
        self.kills.append(Kill(time.time(), worker))
        print(f"rank {worker.rank} is killed after step {self.done[-1].step if self.done else 'none'}", flush=True)
        return True

    def say(self) -> None:
        step = self.done[-1].step + 1 if self.done else 0
        minutes = (time.time() - self.began) / 60
        print(f"{minutes:.1f} minutes, step {step} of {self.num_steps}, {len(self.kills)} kills", flush=True)

    @property
    def start_s(self) -> float:
        """From the launch to the first step's end."""
        return self.done[0].at - self.began

    @property
    def step_s(self) -> float:
        """The mean time of a step, saving included, of a training without kills."""
        return (self.done[-1].at - self.done[0].at) / (len(self.done) - 1)

    @property
    def restarts(self) -> int:
        """Of the group, that of the last kill included, whatever they were for."""
        return max((kill.worker.restart + 1 for kill in self.kills), default=0)

    def passed_over(self) -> dict[str, int]:
        """Checkpoints that were not whole: those whose writing was cut off, and those whose files were damaged."""
        log = (self.folder / "log").read_text(errors="replace")
        cut_off = log.count(CUT_OFF)
        return {"checkpoints_cut_off": cut_off, "checkpoints_damaged": log.count(PASSED_OVER) - cut_off}

    def digest(self) -> str:
        (artifact,) = self.store.glob("distill/*/model.safetensors")
        return artifacts.sha256(artifact)


def costs(training: Training, step_s: float) -> list[Row]:
    """A row a kill. One that comes before the group has done anything new since the last counts for both."""
    rows = []
    for kill in training.kills:
        in_hand = 1 + max((done.step for done in training.done if done.at < kill.at + SETTLED_S), default=-1)
        later = [done for done in training.done if done.at >= kill.at + SETTLED_S]
        reached = next((done.at for done in later if done.step >= in_hand), None)
        rows.append(
            Row(
                at_s=round(kill.at - training.began, 1),
                rank=kill.worker.rank,
                step=in_hand,
                steps_lost=in_hand - later[0].step if later else 0,
                seconds_lost=None if reached is None else round(reached - kill.at - step_s, 2),
            )
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the training with kills, about")
    parser.add_argument("--every", type=float, nargs=2, default=(60.0, 180.0), help="s between kills, least and most")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--json", nargs="?", type=Path, const=Path("/dev/stdout"), help="a file, or printed last")
    given = parser.parse_args(arguments)
    if not 0 < given.every[0] <= given.every[1] or given.minutes <= 0:
        parser.error(f"--every is {given.every} and --minutes {given.minutes}; they are positive, the smaller first")
    torch.set_num_threads(1)
    folder, chance = Path(tempfile.mkdtemp(prefix="relic-soak-")), random.Random(given.seed)
    print(f"stores and logs are in {folder}", flush=True)
    inputs = write_inputs(LocalStore(folder / "inputs"), weights.start_folder("tiny/base"), LENGTHS, GRID)

    # 1. how many steps fill the time
    short = Training(folder / "short", inputs, TRIED)
    short.run(chance)
    pause_s = statistics.mean(given.every)
    working_s = 60 * given.minutes - short.start_s
    kill_s = short.start_s + DIALS["checkpoint.every-s"] / 2  # what one will cost
    num_steps = max(TRIED, int(working_s * max(pause_s - kill_s, 0) / pause_s / short.step_s))
    print(f"a start takes {short.start_s:.1f} s, a step {short.step_s:.3f} s: {num_steps} steps", flush=True)

    # 2. with kills and without
    killed, alone = (Training(folder / name, inputs, num_steps) for name in ("killed", "alone"))
    killed.run(chance, (given.every[0], given.every[1]), 60 * given.minutes)
    alone.run(chance)
    rows = costs(killed, alone.step_s)
    lost = [row.seconds_lost for row in rows if row.seconds_lost is not None]
    digests = {"killed": killed.digest(), "alone": alone.digest()}
    found = {
        "equal": digests["killed"] == digests["alone"], "sha256": digests, "steps": num_steps,
        "kills": len(rows), "restarts": killed.restarts, "steps_lost": len(killed.done) - num_steps,
        "seconds_lost_a_kill": statistics.median(lost) if lost else None, **killed.passed_over(),
        "minutes": {"killed": round(killed.seconds / 60, 2), "alone": round(alone.seconds / 60, 2)},
        "start_s": round(alone.start_s, 2), "step_s": round(alone.step_s, 4),
    }  # fmt: skip
    for name, value in found.items():
        print(f"| {name} | {value} |")
    if given.json:
        measure.write(given.json, {**measure.facts(torch.device("cpu")), **found}, rows)
    if found["equal"]:
        shutil.rmtree(folder)
    else:
        sys.exit(f"the weights differ; see {folder}")


if __name__ == "__main__":
    main()
