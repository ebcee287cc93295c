"""What a person sees while a pipeline runs: bars on a terminal, plain lines elsewhere, and how long it may take."""

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from relic.artifacts import read_json
from relic.pipeline.plan import Node
from relic.stores import Store

LINE = re.compile(r"^\[ *(\d+)%\] (\d+)/(\d+) ?(.*)$")
PLAIN_EVERY_S = 15.0


def parse(line: str) -> tuple[float, str] | None:
    """(share done, note) of a line that `tracking.Run.progress` printed."""
    if not (found := LINE.match(line)):
        return None
    done, total = int(found[2]), max(int(found[3]), 1)
    return done / total, re.sub(r"eta \d+ s$", "", found[4]).strip()


def expected_s(nodes: list[Node], store: Store, guesses: Mapping[str, float]) -> dict[str, float]:
    """Seconds a node may take: the recipe's guess, or what the newest artifact of its step in the store took."""
    known: dict[str, float] = {}
    for step in {node.step.component for node in nodes}:
        paths = list((store.local.root / step).glob("*/manifest.json"))
        if paths:
            known[step] = read_json(max(paths, key=lambda path: path.stat().st_mtime))["seconds"]
    return {n.name: guesses.get(n.step.name, known.get(n.step.component, 0.0)) for n in nodes}


class Progress:
    """The state of every node and what is left along the longest way through the graph."""

    def __init__(self, nodes: list[Node], expected: Mapping[str, float], done: Mapping[str, Any]) -> None:
        self.nodes, self.expected = nodes, expected
        self.share = {node.name: 1.0 if node.name in done else 0.0 for node in nodes}
        self.started: dict[str, tuple[float, float]] = {}  # node -> (time, share) where this call found it
        self.notes: dict[str, str] = {}
        self.said: dict[str, float] = {}
        self.began = time.monotonic()
        self.bars = Bars(nodes, done) if sys.stdout.isatty() else None
        if self.bars is None:
            for node in nodes:
                if node.name in done:
                    print(f"{node.name}: finished before", flush=True)

    def start(self, name: str) -> None:
        self.started[name] = (time.monotonic(), 0.0)
        self._say(name, "started")

    def update(self, name: str, share: float, note: str) -> None:
        now = time.monotonic()
        if not self.share[name] and share:  # what an earlier, killed call had done does not count as speed
            self.started[name] = (now, share)
        self.share[name], self.notes[name] = share, note
        if self.bars is None and now - self.said.get(name, self.began) > PLAIN_EVERY_S:
            self._say(name, f"{share:.0%} {note}".strip())
        self.show()

    def finish(self, name: str, text: str) -> None:
        self.share[name] = 1.0
        self._say(name, text)

    def show(self) -> None:
        if self.bars is not None:
            self.bars.show(self.share, self.notes, self.left())

    def close(self) -> None:
        if self.bars is not None:
            self.show()
            self.bars.close()

    def left(self) -> str:
        seconds = self.left_s()
        return f"about {span(seconds)} left" if seconds else ""

    def left_s(self) -> float:
        """Seconds along the longest way through what is not finished."""
        until: dict[str, float] = {}
        for node in self.nodes:
            before = max((until.get(name, 0.0) for name in node.after), default=0.0)
            until[node.name] = before + self.node_left_s(node.name)
        return max(until.values(), default=0.0)

    def node_left_s(self, name: str) -> float:
        """By the node's own speed once it has done a twentieth, before that by what is expected."""
        share, expected = self.share[name], self.expected.get(name, 0.0)
        at, first = self.started.get(name, (0.0, 0.0))
        if share - first > 0.05:
            return (time.monotonic() - at) / (share - first) * (1 - share)
        return expected * (1 - share)

    def _say(self, name: str, text: str) -> None:
        self.said[name] = time.monotonic()
        if self.bars is None:
            left = self.left()
            print(f"{name}: {text}" + (f" · {left}" if left else ""), flush=True)
        else:
            self.notes[name] = text
            self.show()


class Bars:
    """One bar a node and one line for the whole, on a terminal."""

    def __init__(self, nodes: list[Node], done: Mapping[str, Any]) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        self.rich = Rich(
            TextColumn("{task.description:<14}"), BarColumn(bar_width=30), TaskProgressColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.tasks = {}
        for node in nodes:
            found = node.name in done
            self.tasks[node.name] = self.rich.add_task(
                node.name, total=1.0, completed=int(found), note="finished before" if found else "", start=False
            )
        self.whole = self.rich.add_task("all", total=len(nodes), note="")
        self.rich.start()

    def show(self, share: Mapping[str, float], notes: Mapping[str, str], left: str) -> None:
        for name, task in self.tasks.items():
            if name in notes and not self.rich.tasks[task].started:
                self.rich.start_task(task)
            self.rich.update(task, completed=share[name], note=notes.get(name, self.rich.tasks[task].fields["note"]))
        self.rich.update(self.whole, completed=sum(share.values()), note=left)

    def close(self) -> None:
        self.rich.stop()


def span(seconds: float) -> str:
    """12 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
