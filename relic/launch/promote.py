"""The deployment step: an export that passes the gate is registered, played for a moment, and given the alias.

The registry's alias says which export people meet (`models:/relic@production`). So it moves last, once a real server
has shown the export to a real caller; and where something fails after it has moved, it goes back. Outside a cluster the
server is one that is started for the moment; in it, the one that people use, rolled out to the export, and back if that
fails.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from relic import artifacts, cluster, steps, stores, tracking
from relic.launch import deployment, visit
from relic.launch.config import Deploy, Threshold
from relic.mistakes import UserError
from relic.serve import client
from relic.tracking import Run

CLOSE_S = 10.0  # for a server to end


class Refused(Exception):
    """A model that does not pass the gate."""


def main(cfg: Deploy, *, export: list[str], evaluation: list[str], out: Path, run: Run) -> dict[str, Any]:
    """Writes deploy.json, which says what the alias is on and how the session went, and the log of a server here."""
    (uri,) = export
    check_evaluation(uri, evaluation[0])
    figures = figures_of(json.loads(stores.read(evaluation[0], "report.json")))
    # 1. the gate
    if reasons := list(filter(None, (refusal(threshold, figures) for threshold in cfg.gate))):
        raise Refused("; ".join(reasons))
    run.progress(1, 4, "the gate is passed")
    # 2. the registry
    registry = registry_at(tracking.default_uri(out.parents[1]), uri)
    tags = {"sha256": hashlib.sha256(stores.read(uri, artifacts.MANIFEST)).hexdigest()}
    tags |= {name: f"{value:g}" for name, value in figures.items() if "." not in name or name.startswith("models.")}
    version = register(registry, cfg.model, uri, tags)
    run.progress(2, 4, f"version {version} of {cfg.model}")
    # 3. a server and a session
    with server_of(cfg, uri, log=out / "server.log") as address:
        session = played(cfg, address, uri) if address else {}
        for name, value in session.items():
            registry.set_model_version_tag(cfg.model, version, f"session.{name}", f"{value:g}")
        note = "{pictures_per_s:g} pictures a second, {latency_p50_ms:.0f} ms to a key" if address else "no server here"
        run.progress(3, 4, note.format(**session))
        # 4. the alias
        with alias_on(registry, cfg, version):
            said = {"model": cfg.model, "version": version, "alias": cfg.alias, "export": uri, "session": session}
            artifacts.write_json(out / "deploy.json", said)
    run.progress(4, 4, f"{cfg.alias} is version {version} of {cfg.model}")
    return {"version": version, **session}


def holds(cfg: Deploy, *, export: list[str], evaluation: list[str], store: Path) -> bool:
    """Whether the alias is still on a version of the export and, in a cluster, its server still serves it."""
    registry = registry_at(tracking.default_uri(store), export[0])
    version = registry.get_model_version_by_alias(cfg.model, cfg.alias) if has_alias(registry, cfg) else None
    here = cluster.of_pod()
    rolled = here is None or here.serving is None or deployment.serves(export[0], here)
    return version is not None and version.source == export[0] and rolled


def check_evaluation(export: str, evaluation: str) -> None:
    """The figures must be those of the weights that are exported."""
    (made_with,) = stores.read_manifest(export)["inputs"]["evaluation"]
    if artifacts.split(made_with)[1:] != artifacts.split(evaluation)[1:]:
        raise UserError(f"the evaluation is {evaluation}; the export {export} was made with {made_with}")


# The gate


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a report.json, by their places with dots. (What is not finite is written as null.)"""
    numbers = {name: value for name, value in tracking.flatten(report).items() if type(value) in (int, float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def refusal(threshold: Threshold, figures: Mapping[str, float]) -> str:
    """Why a model does not pass; empty when it does. A figure that is not there does not pass."""
    value = figures.get(threshold.metric)
    if value is not None and threshold.at_least <= value <= threshold.at_most:
        return ""
    bars = {"at least": threshold.at_least, "at most": threshold.at_most}
    wanted = " and ".join(f"{name} {bar:g}" for name, bar in bars.items() if math.isfinite(bar))
    said = "no number of the report" if value is None else f"{value:.4g}"
    return f"{threshold.metric} is {said}; it must be {wanted} to be deployed"


# The registry


def registry_at(tracking_uri: str, export: str) -> Any:
    """MLflow's client at the model registry."""
    if tracking_uri.startswith("http") and "://" not in export:
        raise UserError(
            f"the MLflow server at {tracking_uri} takes no local path as a model's source, and the export is {export}; "
            "use a store in s3://, or unset MLFLOW_TRACKING_URI"
        )
    try:
        return tracking.Server(tracking_uri).client
    except ModuleNotFoundError as error:
        raise UserError(f"deploy needs {error.name}; install the extra: pip install 'relic[tracking]'") from error


def register(registry: Any, model: str, source: str, tags: dict[str, str]) -> str:
    """The version of the registered model that is this export: the one there is from an earlier call, or a new one."""
    if not registry.search_registered_models(f"name='{model}'"):
        registry.create_registered_model(model)
    for version in registry.search_model_versions(f"name='{model}'"):
        if (version.source, version.tags.get("sha256")) == (source, tags["sha256"]):
            return str(version.version)
    return str(registry.create_model_version(model, source, tags=tags).version)


@contextmanager
def alias_on(registry: Any, cfg: Deploy, version: str) -> Iterator[None]:
    """Moves the alias to a version; where what is done inside fails, back to where it was."""
    before = registry.get_registered_model(cfg.model).aliases.get(cfg.alias)
    registry.set_registered_model_alias(cfg.model, cfg.alias, version)
    try:
        yield
    except BaseException:
        if before is None:
            registry.delete_registered_model_alias(cfg.model, cfg.alias)
        else:
            registry.set_registered_model_alias(cfg.model, cfg.alias, before)
        raise


def has_alias(registry: Any, cfg: Deploy) -> bool:
    found = registry.search_registered_models(f"name='{cfg.model}'")
    return bool(found) and cfg.alias in found[0].aliases


# The server


def server_of(cfg: Deploy, export: str, *, log: Path) -> AbstractContextManager[str]:
    """The address of a server of the export: in a cluster that serves, of the roll-out; in one that does not, none."""
    here = cluster.of_pod()
    if here is not None:
        return nullcontext("") if here.serving is None else deployment.rolled_out(export, here)
    options = ("--text-encoder", cfg.text_encoder) if cfg.text_encoder else ()
    return serving(export, *options, log=log, start_s=cfg.start_s)


def played(cfg: Deploy, address: str, export: str) -> dict[str, float]:
    """A session in the export, and in no other that a Service may still lead to."""
    key = os.environ.get(client.KEY, "")
    return visit.play(
        address, pictures=cfg.pictures, picture_s=cfg.picture_s, key=key, export=artifacts.split(export)[2],
        wait_s=cfg.start_s,
    )  # fmt: skip


@contextmanager
def serving(export: str, *options: str, log: Path, start_s: float) -> Iterator[str]:
    """The address of a warm `relic serve` of an export, on a free port of this machine."""
    command = [sys.executable, "-m", "relic", "serve", "--export", export, "--port", "0", "--drain-s", "0", *options]
    environment = {**os.environ, steps.PARENT_PROCESS: str(os.getpid())}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
    try:
        yield warm(process, log, time.monotonic() + start_s)
    finally:
        process.terminate()
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def warm(process: subprocess.Popen, log: Path, until: float) -> str:
    """The server's address, once it is ready."""
    while time.monotonic() < until:
        said = log.read_text(errors="replace")
        if process.poll() is not None:
            last = said.strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(f"the server has ended with exit code {process.returncode} and said: {last[0]}")
        if found := re.search(r" is open at (http://\S+)", said):
            client.ask("GET", f"{found[1]}/healthz")  # raises with the fault of an engine that does not run
            if client.ask("GET", f"{found[1]}/v1/world")["ready"]:
                return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready in time; see {log}")
