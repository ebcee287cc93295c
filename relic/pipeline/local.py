"""Runs a graph here: a process a node, in order, as many at a time as there are cores.

Every node has its log; its progress lines become bars. What is finished is not started again, so running the same
command once more is how a killed or failed pipeline goes on. Children die with the runner, whatever kills it.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from relic import artifacts, steps, stores, tracking
from relic.mistakes import UserError
from relic.pipeline import plan
from relic.pipeline.component import Component
from relic.pipeline.graph import Graph
from relic.pipeline.progress import Progress, expected_s, parse, span

POLL_S = 0.1
TAIL_LINES = 15
NOT_FOR_PEOPLE = (artifacts.MANIFEST, tracking.RECORDS)


@dataclass
class Child:
    """A node's process. It writes straight into its log, which the runner reads as it grows."""

    node: plan.Node
    process: subprocess.Popen
    log: Path
    read: int  # bytes of the log that are parsed
    began: float

    def lines(self) -> list[str]:
        """Whole lines that are new in the log."""
        with self.log.open("rb") as file:
            file.seek(self.read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()


def run(
    graph: Graph, recipe: Any, *, table: Mapping[str, steps.Step], components: Mapping[str, Component],
    values: Mapping[str, str], out: Path, first: str = "", until: str = "", dry_run: bool = False,
) -> int:  # fmt: skip
    """Run what is not finished of a graph; returns the exit code."""
    store = values["store"]
    everything = plan.make(graph, recipe, table=table, values=values)
    nodes = plan.chosen(graph, everything, first=first, until=until)
    done = plan.finished(everything, store)
    if dry_run:
        print(plan.table_of(nodes, done))
        return 0
    names = {node.name for node in nodes}
    for node in nodes:
        if missing := sorted(node.after - names - set(done)):
            raise UserError(f"{node.name} needs {missing[0]}, which is not finished; run without --from")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    progress = Progress(nodes, expected_s(nodes, stores.open_store(store), getattr(recipe, "expected_s", {})), done)
    ships = names - set(done) and not tracking.shipped_by_another()
    shipper = start_tracking(graph, values, store) if ships else None
    code = 1
    try:
        code = follow(nodes, done, progress=progress, components=components, values=values, out=out, shipper=shipper)
    finally:
        progress.close()
        if shipper is not None:
            shipper.close(succeeded=code == 0)
    manifests = plan.finished(everything, store)
    write_run(graph, everything, manifests, values=values, out=out)
    return code


def start_tracking(graph: Graph, values: Mapping[str, str], store: str) -> tracking.Shipper:
    uri = tracking.default_uri(stores.open_store(store).local.root)
    return tracking.Shipper(uri, name=f"{graph.name} {values['recipe']}", tags=values)


def follow(
    nodes: list[plan.Node], done: Mapping[str, Any], *, progress: Progress, components: Mapping[str, Component],
    values: Mapping[str, str], out: Path, shipper: tracking.Shipper | None,
) -> int:  # fmt: skip
    """Start what is ready, watch what runs, until all is finished or one has failed."""
    finished, cores = set(done), num_cores()
    waiting = {node.name: node for node in nodes if node.name not in finished}
    children: dict[str, Child] = {}
    local = stores.open_store(values["store"]).local
    with ended_with_the_runner(children):
        while waiting or children:
            # 1. start what is ready
            ready = [node for node in waiting.values() if not node.after & (waiting.keys() | children.keys())]
            at_once = min(cores, len(ready) + len(children))
            for node in ready[: max(0, cores - len(children))]:
                children[node.name] = start(waiting.pop(node.name), components, values, out, max(1, cores // at_once))
                progress.start(node.name)
                if shipper is not None:
                    shipper.watch(node.name, folder_of(local, node), uri=node.uri)
            # 2. see what they say
            for child in children.values():
                for found in filter(None, map(parse, child.lines())):
                    progress.update(child.node.name, *found)
            # 3. see who has ended
            for name in [name for name, child in children.items() if child.process.poll() is not None]:
                child = children.pop(name)
                code = child.process.returncode
                if shipper is not None:
                    shipper.finish(name, succeeded=code == 0)
                sweep(child)
                if code:
                    progress.finish(name, "failed")
                    explain(child, code)
                    return code if code > 0 else 128 - code
                progress.finish(name, f"done in {span(time.monotonic() - child.began)}")
            progress.show()
            time.sleep(POLL_S)
    return 0


def folder_of(local: artifacts.LocalStore, node: plan.Node) -> Any:
    """Where a node's files are now: the working folder, or the finished one."""
    finished, partial = local.folder(node.step.component, node.key), local.partial(node.step.component, node.key)
    return lambda: finished if finished.is_dir() else partial


def start(
    node: plan.Node, components: Mapping[str, Component], values: Mapping[str, str], out: Path, threads: int
) -> Child:
    """Start a node's command, with its share of the cores."""
    log, artifact = out / "logs" / f"{node.name}.log", out / "logs" / f"{node.name}.uri"
    command = plan.command_line(node, components[node.step.component], values=values, artifact=str(artifact))
    if command[0] == "relic":
        command = [sys.executable, "-m", "relic", *command[1:]]
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1",
        tracking.PARENT: tracking.RUNNER, steps.PARENT_PROCESS: str(os.getpid()), "RELIC_DEBUG": "1",
    }  # fmt: skip
    with log.open("ab") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        file.flush()
        read = file.tell()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
    return Child(node, process, log, read, time.monotonic())


@contextmanager
def ended_with_the_runner(children: Mapping[str, Child]) -> Iterator[None]:
    """However the runner stops, its children stop; SIGTERM is treated as Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for child in children.values():
            child.process.terminate()
        for child in children.values():
            try:
                child.process.wait(5)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            sweep(child)


def sweep(child: Child) -> None:
    """End what a step's process has left behind, such as a game engine."""
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


def explain(child: Child, code: int) -> None:
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    lines = child.log.read_text(errors="replace").splitlines()
    print("\n".join(f"  {line}" for line in for_people(lines)[-TAIL_LINES:]), file=sys.stderr)
    print(f"relic: {child.node.name} {how}; see {child.log}; run the same command again to go on", file=sys.stderr)


def for_people(lines: list[str]) -> list[str]:
    """A log's last call without progress and without tracebacks, which stay in the log (RELIC_DEBUG=1 shows them)."""
    shown: list[str] = []
    in_traceback = False
    for line in lines:
        if line.startswith("== "):
            shown, in_traceback = [], False
            continue
        starts = line.startswith("Traceback (most recent") and os.environ.get("RELIC_DEBUG") != "1"
        in_traceback = (in_traceback or starts) and not line.startswith("relic: ")
        if not in_traceback and parse(line) is None:
            shown.append(line)
    return shown


def num_cores() -> int:
    """Cores that this process may use: by affinity, and by the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file() and (found := quota.read_text().split())[0] != "max":
        cores = min(cores, max(1, round(int(found[0]) / int(found[1]))))
    return cores


# What a person gets at the end


def write_run(
    graph: Graph, nodes: list[plan.Node], manifests: Mapping[str, dict], *, values: Mapping[str, str], out: Path
) -> None:
    """Write run.json: the artifact of every finished step. With the report's, its files come to out/report."""
    uris: dict[str, Any] = {}
    for step in graph.ordered():
        parts = [node for node in nodes if node.step == step]
        if all(node.name in manifests for node in parts):
            uris[step.name] = [node.uri for node in parts] if step.fan_out else parts[0].uri
    said: dict[str, Any] = {"recipe": values["recipe"], "store": values["store"], "graph": graph.name, "nodes": uris}
    if graph.report in uris:
        seconds = seconds_per_step(nodes, manifests)
        said |= {"report": str(out / "report" / "report.html"), "seconds_total": total(seconds)}
        write_report(stores.fetch(uris[graph.report]), out / "report", seconds)
    artifacts.write_json(out / "run.json", said)
    if graph.report in uris:
        print(f"\nreport: {said['report']}")
    if graph.world in uris:
        print(f"world:  {command_name()} serve --run {shlex.quote(str(out / 'run.json'))}")


def seconds_per_step(nodes: list[plan.Node], manifests: Mapping[str, dict]) -> dict[str, float]:
    """Wall seconds of every finished step over all calls; the parts of a fan-out ran side by side on the cores."""
    seconds: dict[str, list[float]] = {}
    for node in nodes:
        if node.name in manifests:
            seconds.setdefault(node.step.name, []).append(manifests[node.name]["seconds"])
    cores = num_cores()
    return {name: round(max(max(parts), sum(parts) / cores), 1) for name, parts in seconds.items()}


def total(seconds: Mapping[str, float]) -> float:
    return round(sum(seconds.values(), 0.0), 1)


def write_report(source: Path, target: Path, seconds: Mapping[str, float]) -> None:
    """Copy the report's files, and put into report.json how long everything took."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_FOR_PEOPLE))
    if (target / "report.json").is_file():
        figures = artifacts.read_json(target / "report.json")
        figures |= {"seconds_total": total(seconds), "seconds_per_step": seconds}
        artifacts.write_json(target / "report.json", figures)


def command_name() -> str:
    """How this command was called, to be said again: `.venv/bin/relic`."""
    name = Path(sys.argv[0])
    return str(name) if name.name == "relic" else f"{sys.executable} -m relic"
