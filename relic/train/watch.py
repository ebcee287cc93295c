"""Watches a training loop, on one process or many: throughput, who is slow, whose loader stalls, who hangs (watchdog).

    with Watch(run, mesh, folder=out, stages=[("8 latents", 400), ("16 latents", 200)]) as watch:
        for step in range(checkpoints.load(), watch.total):
            with watch.waiting():  # for data
                batch = next(batches)
            loss = ...
            loss.backward()
            watch.computed()  # from here on it may wait for the others
            norm = ...
            watch.step(step, {"loss": loss.item(), "gradient_norm": norm}, tokens=num_tokens, flops=num_flops)
            checkpoints.after(step + 1, watch)

A step costs a few clock readings, a line in `folder`/.ranks/rank-<rank>.jsonl and the small all-reduce of `agreed`. The
processes put their figures together about every `every_s` seconds, at a step that follows from the figures themselves,
so that it is the same for all; rank 0 then logs the means. `.ranks` is hidden, so that an artifact holds the same files
whatever the number of processes.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from relic.parallel.agreement import Agreement
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import measures
from relic.train.measures import Moment, Window
from relic.train.watchdog import Phase, Watchdog


class Watch:
    """Made by all processes at the same time; `stages` are the names of a training's stages and their steps."""

    def __init__(self, run: Run, mesh: Mesh, *, folder: Path | None, stages: Sequence[tuple[str, int]]):
        self.run, self.mesh, self.cfg, self.stages = run, mesh, mesh.cfg.watching, stages
        self.ends = list(accumulate(steps for _, steps in stages))  # the steps before which stages end
        self.total = self.ends[-1]
        self.device = torch.device(mesh.device)
        self.stopping = False  # SIGTERM has come: end after this step
        hidden = None if folder is None else folder / ".ranks"
        if hidden is not None:
            hidden.mkdir(parents=True, exist_ok=True)
        self.own = Run(hidden, records=f"rank-{mesh.rank:05d}.jsonl")
        self.watchdog = Watchdog(mesh, folder=hidden, stalled_s=self.cfg.stalled_s)
        self.agreement = Agreement(mesh, late=self.device.type == "cuda")
        self.window, self.wait_s = Window(), 0.0
        self.began, self.began_at = time.monotonic(), measures.moment(self.device)  # of the step
        self.computed_at: Moment | None = None
        self.gather_at = 0  # the step at whose end figures are gathered
        self.named: dict[str, set[int]] = {"slow": set(), "starving": set()}
        self.speed = ""
        self.stage, self.stage_began = "", (0, 0.0)  # its name; a step of it that has ended, and when
        self.before: Any = None  # what SIGTERM did

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._stop)
        self.watchdog.start()
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.watchdog.close()
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
        if self.mesh.is_first:  # an end before the last gathering: then without the others, who may be gone
            self._log(self.window.figures)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def agreed(self, flags: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which flags any process has set, for all the same; on several GPUs those of the step before (Agreement)."""
        with self.watchdog.phase(Phase.WAITS):
            return self.agreement.agreed(flags)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        start = time.monotonic()
        with self.watchdog.phase(Phase.LOADS):
            yield
        self.wait_s += time.monotonic() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no step: to evaluate, to save. It may take longer than a step, and counts for none."""
        start = time.monotonic()
        with self.watchdog.patient():
            yield
        step, at = self.stage_began
        self.stage_began = step, at + time.monotonic() - start
        self._begin()

    def computed(self) -> None:
        """This process has done what it can without the others; what it does after that does not count as its own. Of
        several calls a step the first counts."""
        if self.computed_at is None:
            self.computed_at = measures.moment(self.device)
        self.watchdog.enter(Phase.WAITS)

    def step(
        self, step: int, figures: Mapping[str, float], *, tokens: int = 0, flops: float = 0.0, note: str = ""
    ) -> None:
        """A step has ended. `figures` to be logged, the same names in all processes; `tokens` that this process has
        trained on, `flops` that it took; `note` for the line of progress."""
        step_s, wait_s = time.monotonic() - self.began, self.wait_s
        own_s = None if self.computed_at is None else measures.between(self.began_at, self.computed_at)
        self.window.add(step_s=step_s, own_s=own_s, wait_s=wait_s, tokens=tokens, flops=flops)
        self.window.figures.append((step, dict(figures)))
        memory_gib = measures.memory_gib(self.device)
        self.own.record(step=step, step_s=step_s, own_s=own_s, wait_s=wait_s, memory_gib=memory_gib)
        self.watchdog.beat(step + 1, anew=step + 1 in self.ends)
        if step >= self.gather_at or step + 1 in self.ends:
            with self.watchdog.phase(Phase.WAITS):
                self._gather(step)
        self._progress(step, note)
        self._begin()

    def flush(self) -> None:
        """All processes put together and log what they have not yet, before what is behind these steps is saved."""
        if self.window.steps:
            with self.watchdog.phase(Phase.WAITS):
                self._gather(self.window.figures[-1][0])

    def _begin(self) -> None:
        self.began, self.began_at = time.monotonic(), measures.moment(self.device)
        self.computed_at, self.wait_s = None, 0.0

    def _gather(self, step: int) -> None:
        seen = self.mesh.said_by_all(self.window.seen(self.mesh.rank, self.device))
        self.window = Window()
        together = measures.throughput(seen)
        # as the first step of all, a new stage's first one says how long its steps take
        num_steps = 1 if step + 1 in self.ends else max(1, round(self.cfg.every_s / together["step_s"]))
        self.gather_at = step + num_steps
        if self.mesh.is_first:
            self._log([*measures.means(seen), (step, together)])
            self.speed = measures.per_second(together)
            self._name("slow", measures.slow(seen, self.cfg))
            self._name("starving", measures.starving(seen, self.cfg))

    def _log(self, figures: Sequence[tuple[int, dict[str, float]]]) -> None:
        for step, named in figures:
            self.run.log(named, step)

    def _name(self, kind: str, found: dict[int, str]) -> None:
        """Once, until it changes."""
        for rank in sorted(found.keys() - self.named[kind]):
            print(f"warning: {found[rank]}", file=sys.stderr, flush=True)
        self.named[kind] = set(found)

    def _progress(self, step: int, note: str) -> None:
        if self.mesh.is_first:
            pieces = [self._stage(step + 1), note, self.speed]
            self.run.progress(step + 1, self.total, ", ".join(piece for piece in pieces if piece))

    def _stage(self, done: int) -> str:
        """`16 latents 20/200, 35 s left`, the time by the stage's own steps; nothing where there is one stage."""
        if len(self.stages) == 1:
            return ""
        place = next(place for place, end in enumerate(self.ends) if done <= end)
        (name, steps), end, now = self.stages[place], self.ends[place], time.monotonic()
        if name != self.stage:
            self.stage, self.stage_began = name, (done, now)
        began, at = self.stage_began
        left = f", {(now - at) / (done - began) * (end - done):.0f} s left" if done > began else ""
        return f"{name} {done - end + steps}/{steps}{left}"
