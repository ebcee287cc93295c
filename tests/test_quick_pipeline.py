"""The real pipeline, killed twice on its way: `relic pipeline run --recipe quick` from recording to deployment."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from relic import artifacts, tracking
from relic.artifacts import LocalStore
from relic.pipeline.progress import parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STEPS = ["curate", "join-clips", "codec", "pose-net", "shard", "join-samples", "teacher", "trajectories"]
STEPS += ["student-init", "distill", "evaluate", "export", "deploy"]
PARTED = ("curate", "shard", "trajectories")
NODES = [name for step in STEPS for name in ([f"{step}-0", f"{step}-1"] if step in PARTED else [step])]
MARK = "RELIC_TEST_MARK"  # in the environment of all that the runner starts


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "relic", "pipeline", "run", "--recipe", "quick"]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", tracking.PARENT)
    }
    return subprocess.Popen(
        [*command, "--store", f"{out}/store", "--out", f"{out}/out"], cwd=ROOT, env={**environment, MARK: str(out)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run(out: Path) -> str:
    """Run to the end and give back what was printed."""
    process = start(out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def relic(out: Path, step: str, **options: Any) -> subprocess.CompletedProcess:
    """A single step of the recipe, in a store of its own beside the run's."""
    given = {"recipe": "quick", "store": out / "damaged", **options}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "relic", step, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def running(out: Path, *, patience_s: float = 0.0) -> list[str]:
    """Command lines of the living processes that descend from a runner, once they have had time to end."""
    end = time.monotonic() + patience_s
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={out}\0".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it has ended, or is not ours
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def kill_in(node: str, out: Path, begun: str) -> set[str]:
    """SIGKILL the runner's process group while `node` makes progress and has written `begun`. Returns what ran."""
    process, log = start(out), out / "out" / "logs" / f"{node}.log"
    end = time.monotonic() + 200
    while not (log.exists() and any(map(parse, log.read_text().splitlines())) and list((out / "store").glob(begun))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{node} makes no progress"
        time.sleep(0.02)
    ran = set(" ".join(running(out)).split())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    return ran


def logged_steps(folder: Path) -> list[int]:
    """The training steps that a step's artifact has figures of, over all calls."""
    records = map(json.loads, (folder / tracking.RECORDS).read_text().splitlines())
    return [record["step"] for record in records if "gradient_norm" in record.get("metrics", {})]


@dataclass
class Played:
    """What was seen while the pipeline was killed in curate, killed in teacher, and run to its end."""

    out: Path
    ran: dict[str, set[str]] = field(default_factory=dict)  # node of the kill -> words of the command lines
    left: dict[str, list[str]] = field(default_factory=dict)  # processes that outlived the kill
    kept: dict[Path, int] = field(default_factory=dict)  # files that the first kill left behind, with their time
    said: str = ""

    @property
    def report(self) -> dict[str, Any]:
        return artifacts.read_json(self.out / "out" / "report" / "report.json")

    def artifact(self, node: str) -> Path:
        return Path(artifacts.read_json(self.out / "out" / "run.json")["nodes"][node])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    pytest.importorskip("vizdoom")
    found = Played(tmp_path_factory.mktemp("quick"))
    for node, begun in (
        ("curate-0", "curate/*.partial/clips/.*.json"),
        ("teacher", "teacher/*.partial/.checkpoints/*/manifest.json"),
    ):
        found.ran[node] = kill_in(node, found.out, begun)
        found.left[node] = running(found.out, patience_s=10)
        if node == "curate-0":
            written = (found.out / "store").glob(begun)
            clips = [path.with_name(path.name[1:]).with_suffix(".mp4") for path in written]
            found.kept = {path.relative_to(found.out): path.stat().st_mtime_ns for path in clips}
    found.said = run(found.out)
    return found


def test_a_killed_runner_takes_every_process_with_it(played: Played) -> None:
    assert any(word.endswith("vizdoom/vizdoom") for word in played.ran["curate-0"])  # the game was running
    assert {"curate", "--part"} <= played.ran["curate-0"]
    assert "teacher" in played.ran["teacher"]
    assert played.left == {"curate-0": [], "teacher": []}
    assert running(played.out) == []


def test_killed_twice_it_goes_on_to_the_end(played: Played) -> None:
    assert "curate-0: finished before" in played.said
    assert "teacher: started" in played.said
    assert f"report: {played.out}/out/report/report.html" in played.said
    assert list(artifacts.read_json(played.out / "out" / "run.json")["nodes"]) == STEPS


def test_clips_recorded_before_the_kill_are_not_recorded_again(played: Played) -> None:
    assert played.kept
    for path, written_ns in played.kept.items():
        finished = played.out / str(path).replace(".partial", "")
        assert finished.stat().st_mtime_ns == written_ns


def test_the_teacher_goes_on_behind_its_checkpoint(played: Played) -> None:
    steps = logged_steps(played.artifact("teacher"))
    assert steps.count(0) == 1
    assert sorted(set(steps)) == list(range(20))
    assert (played.out / "out" / "logs" / "teacher.log").read_text().count("== ") == 2


def test_the_student_is_deployed(played: Played) -> None:
    said = artifacts.read_json(played.artifact("deploy") / "deploy.json")
    assert (said["version"], said["alias"], said["export"]) == ("1", "production", str(played.artifact("export")))
    assert said["session"]["pictures"] >= 48


def test_a_damaged_student_is_refused_by_the_gate_and_not_deployed(played: Played) -> None:
    """One layer is shuffled. The bar is what the healthy student reached, less half a decibel."""
    damaged = shuffled(played.artifact("distill"), LocalStore(played.out / "damaged"), layer="blocks.0.")
    nodes = {"clips": "join-clips", "codec": "codec", "estimator": "pose-net", "teacher": "teacher"}
    given = {name: played.artifact(node) for name, node in {**nodes, "student": "student-init"}.items()}
    done = relic(played.out, "evaluate", **given, distilled=damaged)
    evaluation = done.stdout.splitlines()[-1]
    done = relic(played.out, "export", student=damaged, codec=given["codec"], evaluation=evaluation)
    bar = played.report["models"]["distilled"]["psnr_gain_over_still_db"] - 0.5
    dials = {"evaluation": evaluation, "config.gate.0.at-least": bar}
    refused = relic(played.out, "deploy", export=done.stdout.splitlines()[-1], **dials)
    assert refused.returncode == 1
    assert "Refused: models.distilled.psnr_gain_over_still_db is -" in refused.stderr
    with sqlite3.connect(played.out / "mlflow.db") as database:
        ((source,),) = database.execute("select source from model_versions").fetchall()
    assert source == str(played.artifact("export"))
    healthy = relic(played.out, "deploy", export=source, **dials | {"evaluation": played.artifact("evaluate")})
    assert healthy.returncode == 0


def shuffled(student: Path, store: LocalStore, *, layer: str) -> Path:
    """A student of which one layer's weights are shuffled, as an artifact."""
    key, generator = "d" * artifacts.KEY_LENGTH, torch.Generator().manual_seed(0)
    state = load_file(student / "model.safetensors")
    for name in [name for name in state if name.startswith(layer)]:
        flat = state[name].flatten()
        state[name] = flat[torch.randperm(len(flat), generator=generator)].view_as(state[name])
    with store.working("distill", key) as out:
        save_file(state, out / "model.safetensors")
        (out / "config.json").write_bytes((student / "config.json").read_bytes())
        store.commit("distill", key, {**artifacts.read_json(student / "manifest.json"), "key": key})
    return store.folder("distill", key)


def test_the_report_has_what_was_asked_for(played: Played) -> None:
    report = played.report
    assert report["clips_kept"] + report["clips_dropped"] == 14
    assert report["clips_kept"] >= 8
    assert 15 < report["codec_psnr_db"] < 40
    for name in ("base", "teacher", "student", "distilled"):
        for found in (report["models"][name], report["models"][name]["unseen"]):
            assert math.isfinite(found["psnr_gain_over_still_db"])
            assert 0 <= found["action_win_rate"] <= 1
    revisits = [f"revisit_psnr{memory}_db" for memory in ("", "_window_only", "_full", "_shuffled")]
    for name in ("rpe_floor_trans", "rpe_floor_rot_deg", "rpe_trans", "rpe_rot_deg", "chunk_latency_ms_p50", *revisits):
        assert report[name] >= 0
    assert report["rpe_floor_rot_deg"] <= report["rpe_rot_deg"]


def test_the_report_says_how_long_every_step_took(played: Played) -> None:
    seconds = played.report["seconds_per_step"]
    assert sorted(seconds) == sorted(STEPS)
    assert all(value > 0 for value in seconds.values())
    assert played.report["seconds_total"] == pytest.approx(sum(seconds.values()), abs=0.1)
    assert 10 < played.report["seconds_total"] < 600


def test_artifacts_hold_no_working_files(played: Played) -> None:
    store = played.out / "store"
    assert not list(store.glob("*/*.partial"))
    assert not [path for path in store.glob("*/*/**/.*") if path.is_file()]
    assert (played.artifact("student-init") / "model.safetensors").is_file()


def test_a_further_run_starts_nothing_and_changes_nothing(played: Played) -> None:
    def files() -> dict[Path, int]:
        folders = (played.out / "store", played.out / "out" / "logs")
        return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}

    before, report, began = files(), played.report, time.monotonic()
    said = run(played.out)
    assert time.monotonic() - began < 15
    assert [line.split(":")[0] for line in said.splitlines() if line.endswith("finished before")] == NODES
    assert "started" not in said
    assert (files(), played.report) == (before, report)
    assert running(played.out) == []
