"""What `relic doctor` checks around the processes of a run: shared memory, disk, store, MLflow. Loads no torch."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from relic import artifacts, stores
from relic.mistakes import UserError
from relic.parallel.config import Doctor, Finding


def examined(cfg: Doctor) -> list[Finding]:
    """What this node has, apart from its devices."""
    checks: tuple[Callable[[Doctor], Finding], ...] = (shared_memory, disk, store, mlflow)
    return [check(cfg) for check in checks]


def shared_memory(cfg: Doctor, place: Path = Path("/dev/shm")) -> Finding:
    """NCCL, the loader's workers and Ray's object store use it."""
    if not place.is_dir():
        return Finding(verdict="fail", name="shm", said=f"{place} is missing; {cfg.shm_gb:g} GB are needed")
    size_gb = shutil.disk_usage(place).total / 1e9
    said = f"{place} has {size_gb:.1f} GB; {cfg.shm_gb:g} GB are needed"
    return Finding(verdict="ok" if size_gb >= cfg.shm_gb else "fail", name="shm", said=said)


def disk(cfg: Doctor) -> Finding:
    """Artifacts are made in a local store, or in the cache of one in S3."""
    place = artifacts.cache_folder() if "://" in cfg.store else Path(cfg.store).expanduser().absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    said = f"{free_gb:.0f} GB are free at {place}; {cfg.disk_gb:g} GB are needed"
    return Finding(verdict="ok" if free_gb >= cfg.disk_gb else "fail", name="disk", said=said)


def store(cfg: Doctor) -> Finding:
    try:
        stores.open_store(cfg.store).check()
    except (UserError, OSError) as error:
        return Finding(verdict="fail", name="store", said=f"{cfg.store} cannot be written: {error}")
    return Finding(verdict="ok", name="store", said=f"{cfg.store} can be written")


def mlflow(cfg: Doctor) -> Finding:
    """A server that does not answer costs a run its curves, not its result."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        said = f"MLFLOW_TRACKING_URI is {uri or 'not set'}; no server is needed"
        return Finding(verdict="ok", name="mlflow", said=said)
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=cfg.timeout_s):
            return Finding(verdict="ok", name="mlflow", said=f"{uri} answers")
    except (URLError, OSError) as error:
        said = f"{uri} does not answer ({error}); a run would keep its figures beside its outputs only"
        return Finding(verdict="warn", name="mlflow", said=said)


def report(findings: Sequence[Finding], *, as_json: bool) -> str:
    """The findings as lines, or as JSON."""
    if as_json:
        return json.dumps({"fit": fit(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)
    wide = max(len(finding.where) for finding in findings)
    return "\n".join(
        f"{found.verdict:<4}  {found.name:<10}  " + (f"{found.where:<{wide}}  " if wide else "") + found.said
        for found in findings
    )


def fit(findings: Sequence[Finding]) -> bool:
    """Whether a run would go."""
    return all(finding.verdict != "fail" for finding in findings)
