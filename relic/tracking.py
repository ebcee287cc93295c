"""What a step reports: metrics, progress, figures. Never stops a training.

A `Run` writes every record as a line of tracking.jsonl beside the step's outputs, and that is all a training waits for.
A `Shipper` sends the lines to MLflow from a thread: in the step's own process, or, under `relic pipeline run`, in the
runner's, so that MLflow is loaded once a pipeline. When MLflow is away, one warning is said; the lines are sent when it
is back, or by a step that is called again, or by `relic pipeline end` at the end of a workflow.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

RECORDS = "tracking.jsonl"
PARENT = "RELIC_PARENT_RUN"  # the MLflow id of the pipeline run that a step belongs to, or:
RUNNER = "runner"  # the local runner sends the records
WORKFLOW, WORKFLOW_UID = "RELIC_WORKFLOW", "RELIC_WORKFLOW_UID"  # of the Argo workflow that a pod belongs to
EXPERIMENT = "relic"
NESTED_TAG = "mlflow.parentRunId"
ARTIFACT_TAG = "relic.artifact"  # the URI, of a step's run
UID_TAG = "relic.workflow_uid"  # of a workflow's run
OF_UID_TAG = "relic.of_workflow_uid"  # of the runs of its steps
PAGE = 1000  # runs of one answer
EVERY_S, AWAY_S, CLOSING_S = 5.0, 60.0, 1.0  # between two sendings; at most, while MLflow is away; then at the end
SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Run:
    """The report of one step. `folder` is its working folder; without one nothing is kept or printed. Its records are
    lines of the file `records` there."""

    def __init__(
        self, folder: Path | None = None, on_progress: Callable[[], None] = lambda: None, *, records: str = RECORDS
    ) -> None:
        self.folder, self.on_progress = folder, on_progress
        self.records = None if folder is None else folder / records
        self.started: tuple[float, int] | None = None
        self.printed = 0.0

    @classmethod
    def silent(cls) -> "Run":
        """A run that keeps and prints nothing."""
        return cls()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep figures of a training step."""
        self.record(metrics={name: float(value) for name, value in metrics.items()}, step=int(step))

    def figure(self, path: Path) -> None:
        """Keep a file of the working folder (a plot, a report) with the run."""
        self.record(figure=os.path.relpath(path, self.folder) if self.folder else str(path))

    def parameters(self, config: Any) -> None:
        """Keep the parameters of the run: a dataclass or a mapping, nested ones with dotted names."""
        self.record(parameters=flatten(asdict(config) if is_dataclass(config) else config))  # type: ignore[arg-type]

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Print a line such as `[ 42%] 420/1000 loss 0.123 eta 31 s`, at most two a second."""
        now = time.monotonic()
        self.on_progress()
        if self.started is None:
            self.started = (now, done)
        if self.folder is None or (done < total and now - self.printed < 0.5):
            return
        self.printed = now
        since, first = self.started
        eta_s = (now - since) / (done - first) * (total - done) if done > first else None
        percent = 100 * done // max(total, 1)
        pieces = [f"[{percent:3d}%] {done}/{total}", note, "" if eta_s is None else f"eta {eta_s:.0f} s"]
        print(" ".join(piece for piece in pieces if piece), flush=True)

    def record(self, **fields: Any) -> None:
        """Append one line to tracking.jsonl; a disk that refuses is not the training's end."""
        if self.records is None:
            return
        try:
            with self.records.open("a") as file:
                file.write(json.dumps({"time_ms": int(time.time() * 1000), **fields}) + "\n")
        except OSError as error:
            print(f"warning: figures are not kept any more, {self.records}: {error.strerror}", file=sys.stderr)
            self.records = None


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat


def shipped_by_another() -> bool:
    """Whether the process that started this one sends the records."""
    return os.environ.get(PARENT) == RUNNER


def default_uri(store: Path) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or an sqlite file beside the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.absolute().parent / 'mlflow.db'}"


class Server:
    """MLflow behind a few calls. Loads mlflow when built, which takes seconds: build it in a thread."""

    def __init__(self, uri: str) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        place = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if place is not None and not place.exists():
            # made beside, then renamed: a kill in the middle of its first tables would spoil it for ever
            beside = place.with_name(f".{place.name}.{os.getpid()}")
            beside.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"sqlite:///{beside}").search_experiments()
            beside.replace(place)
        self.uri, self.client = uri, MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            artifacts = (place.absolute().parent / "mlruns").as_uri() if place is not None else None
            self.experiment = self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        else:
            self.experiment = found.experiment_id

    def start(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of a new run."""
        return self.client.create_run(self.experiment, run_name=name, tags=dict(tags)).info.run_id

    def find(self, tags: Mapping[str, str], status: str = "") -> list[Any]:
        """The runs with these tags, newest first."""
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        return self.search(wanted + ([f"attributes.status = '{status}'"] if status else []))

    def finished(self, store: str) -> set[str]:
        """URIs of the artifacts of a store that a finished run has made."""
        wanted = [f"tags.`{ARTIFACT_TAG}` LIKE '{store}/%'", "attributes.status = 'FINISHED'"]
        return {run.data.tags[ARTIFACT_TAG] for run in self.search(wanted)}

    def search(self, wanted: list[str]) -> list[Any]:
        """The runs of which all of that is true, newest first."""
        found: list[Any] = []
        token = ""
        while True:
            page = self.client.search_runs(
                [self.experiment], " and ".join(wanted), max_results=PAGE, page_token=token or None
            )
            found += page
            if not (token := page.token):
                return found

    def go_on(self, name: str, tags: Mapping[str, str], known: Mapping[str, str]) -> str:
        """The id of the run that has the tags `known`, open again; a new one with all tags when there is none."""
        if not (found := self.find(known)):
            return self.start(name, {**tags, **known})
        self.client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id

    def send(self, run_id: str, records: list[dict], folder: Path) -> None:
        """Log records: metrics and parameters in batches, figures as files."""
        from mlflow.entities import Metric, Param

        metrics = [
            Metric(name, value, record["time_ms"], record["step"])
            for record in records
            for name, value in record.get("metrics", {}).items()
        ]
        for at in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[at : at + 1000])
        params = [Param(n, str(v)[:500]) for record in records for n, v in record.get("parameters", {}).items()]
        for at in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[at : at + 100])
        for record in records:
            if "figure" in record and (folder / record["figure"]).is_file():
                self.client.log_artifact(run_id, str(folder / record["figure"]))

    def end(self, run_id: str, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)


class Shipper:
    """Sends tracking.jsonl files to MLflow from a thread, every five seconds; more rarely while it is away."""

    def __init__(self, uri: str, name: str = "", tags: Mapping[str, str] | None = None, parent: str = "") -> None:
        self.uri, self.name, self.tags, self.parent = uri, name, dict(tags or {}), parent
        self.watched: dict[str, tuple[Callable[[], Path], str]] = {}
        self.closing: dict[str, bool] = {}
        self.succeeded = True
        self.refused = ""
        self.until = math.inf  # when a server that is away is waited for no more
        self.wake, self.lock, self.stopping = threading.Event(), threading.Lock(), False
        self.thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self.thread.start()

    def watch(self, name: str, folder: Callable[[], Path], *, uri: str) -> None:
        """Send the records of a step, which makes the artifact `uri`, from now on. `folder` says where they are: it is
        renamed when the step ends."""
        with self.lock:
            self.watched[name] = (folder, uri)

    def finish(self, name: str, *, succeeded: bool) -> None:
        """The step has ended: send its last records and end its run."""
        with self.lock:
            self.closing[name] = succeeded
        self.wake.set()

    def close(self, *, succeeded: bool = True, timeout_s: float = 30.0, away_s: float = 10.0) -> None:
        """Send what is left, end the pipeline's run, and wait for that: `away_s` where MLflow does not answer."""
        self.until = time.monotonic() + away_s
        self.succeeded, self.stopping = succeeded, True
        self.wake.set()
        self.thread.join(timeout_s)
        if self.thread.is_alive():
            print(f"warning: MLflow at {self.uri} is slow; what it has not got stays in {RECORDS}", file=sys.stderr)

    def _work(self) -> None:
        server, wait_s = None, EVERY_S
        while True:
            last = self.stopping  # before the records are read, so that the last round has all of them
            try:
                if server is None:
                    server = Server(self.uri)
                if self.name and not self.parent:
                    self.parent = server.start(self.name, self.tags)
                missed = self._ship(server)
                if last and self.name:
                    server.end(self.parent, "FINISHED" if self.succeeded else "FAILED")
                if missed is not None:
                    raise missed
                self._answered()
                if last:
                    return
                wait_s = EVERY_S
            except Exception as error:  # whatever a tracking server does, the training goes on
                self._missed(error)
                if isinstance(error, ModuleNotFoundError) or time.monotonic() >= self.until:
                    return
                wait_s = CLOSING_S if self.stopping else min(2 * wait_s, AWAY_S)
            self.wake.wait(wait_s)
            self.wake.clear()

    def _answered(self) -> None:
        if self.refused:
            print(f"MLflow at {self.uri} answers again; it has all figures", file=sys.stderr)
        self.refused = ""

    def _missed(self, error: Exception) -> None:
        """One warning each time that it goes away."""
        if not self.refused:
            self.refused = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            said = f"MLflow at {self.uri} is not used ({self.refused}); figures stay in {RECORDS}"
            print(f"warning: {said}", file=sys.stderr)

    def _ship(self, server: Server) -> Exception | None:
        """Every step's records, whatever happens to another's: a run that somebody has deleted takes no more."""
        with self.lock:
            watched, closing = dict(self.watched), dict(self.closing)
        missed: Exception | None = None
        for name, (folder, uri) in watched.items():
            try:
                ship(server, folder(), name=name, uri=uri, parent=self.parent)
                if name in closing:
                    if (sent := read_sent(folder())) is not None:
                        server.end(sent["run_id"], "FINISHED" if closing[name] else "FAILED")
                    with self.lock:
                        del self.watched[name], self.closing[name]
            except Exception as error:
                missed = error
        return missed


def sent_path(folder: Path) -> Path:
    """Beside the artifact, for an artifact's files do not change: what MLflow has of it."""
    return folder.with_name(f"{folder.name.removesuffix('.partial')}.sent")


def read_sent(folder: Path) -> dict | None:
    path = sent_path(folder)
    return json.loads(path.read_bytes()) if path.is_file() else None


def write_sent(folder: Path, sent: dict) -> None:
    path = sent_path(folder)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(sent))
    temporary.replace(path)


def ship(server: Server, folder: Path, *, name: str, uri: str, parent: str) -> None:
    """Send the records of `folder` that were not sent yet; a step that was killed goes on in the run it had, on another
    node too: MLflow keeps one copy of a figure that comes twice."""
    sent = read_sent(folder)
    try:
        with (folder / RECORDS).open("rb") as file:
            if sent is None or sent["uri"] != server.uri:
                sent = {"uri": server.uri, "run_id": run_of(server, name, uri, parent), "bytes": 0}
                write_sent(folder, sent)  # before anything can be refused: the run is there
            file.seek(sent["bytes"])
            lines = file.read().split(b"\n")
    except FileNotFoundError:  # not begun yet, or renamed just now: the next round finds it
        return
    whole = [line for line in lines[:-1] if line]
    server.send(sent["run_id"], [json.loads(line) for line in whole], folder)
    sent["bytes"] += sum(len(line) + 1 for line in lines[:-1])
    write_sent(folder, sent)


def run_of(server: Server, name: str, uri: str, parent: str) -> str:
    """The id of a step's run, nested under `parent` where that is known; the one there is of this pipeline's run."""
    uid = os.environ.get(WORKFLOW_UID, "")
    of_workflow = {OF_UID_TAG: uid} if uid else {}
    if not parent and not uid:
        return server.start(name, {ARTIFACT_TAG: uri})
    known = {ARTIFACT_TAG: uri, **({NESTED_TAG: parent} if parent else of_workflow)}
    return server.go_on(name, of_workflow, known)
