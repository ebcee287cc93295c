"""A training that is stopped, killed or hangs, and goes on, ends as one that is left alone."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_hang
import in_double
import pytest
import ranks
import soak
import torch
from safetensors.torch import load_file
from tiny_models import CFG, transformer

from relic import __main__ as command
from relic import recipes, steps, tracking, verdict
from relic.artifacts import LocalStore
from relic.model import precision, weights
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.train.config import Checkpointing, Optimizer, Stage
from relic.train.watch import Watch

TORCHX = Path(sys.prefix) / "torchx" / "bin" / "torchx"
needs_torchx = pytest.mark.skipif(not TORCHX.exists(), reason="torchx is installed by `make test`")
STAGES = ((2, 12), (4, 12))  # latents, steps
DIALS = {"checkpoint.every-s": -1}  # one after every step
ADAMW = Optimizer(learning_rate=1e-3, betas=(0.0, 0.999), warmup=0)
SHORT = replace(
    recipes.quick().distill, stages=(Stage(latents=2, steps=3, batch=2), Stage(latents=4, steps=3, batch=2)),
    optimizer=ADAMW, critic_optimizer=ADAMW, checkpoint=Checkpointing(every_s=600.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    weights.save(transformer(replace(CFG, heads=3)), folder / "model")
    return soak.write_inputs(LocalStore(folder / "store"), folder / "model", (2, 4), (8, 12))


def logged_steps(store: Path) -> list[int]:
    """The steps that the training in a store has figures of."""
    (records,) = store.glob("*/*/tracking.jsonl")
    found = map(json.loads, records.read_text().splitlines())
    return [record["step"] for record in found if "latents" in record.get("metrics", {})]


# Launched


class Launched:
    """`relic launch --processes 2 -- relic STEP …`, in a store of its own."""

    def __init__(self, store: Path, inputs: dict[str, str], *, step: str = "distill", max_restarts: int = 0):
        self.store = store
        options = {"processes": 2, "max-restarts": max_restarts}
        line = soak.command(store, inputs, STAGES, DIALS, options, step)
        self.process = subprocess.Popen(line, env=soak.environment(), text=True, stdout=-1, stderr=-1)

    def wait_for(self, num_steps: int) -> None:
        """Until rank 0 has done so many steps, and a checkpoint is whole."""
        give_up = time.monotonic() + 120
        while True:
            done = [line for path in self.found(".ranks/rank-00000.jsonl") for line in path.read_text().splitlines()]
            if len(done) >= num_steps and self.found(".checkpoints/*/manifest.json"):
                return
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def found(self, name: str) -> list[Path]:
        return list(self.store.glob(f"*/*.partial/{name}"))

    def ended(self) -> tuple[int, str, str]:
        """Exit code, and what was said on stdout and stderr."""
        said, cried = self.process.communicate(timeout=120)
        return self.process.returncode, said, cried


def weights_of(store: Path) -> bytes:
    (manifest,) = store.glob("*/*/manifest.json")
    return (manifest.parent / "model.safetensors").read_bytes()


def killed_once(launch: Launched) -> None:
    """A launch whose rank 1 is killed in the middle ends well, from the last checkpoint on."""
    launch.wait_for(4)
    (worker,) = (worker for worker in soak.workers(launch.store) if worker.rank == 1)
    os.kill(worker.pid, signal.SIGKILL)
    code, _, cried = launch.ended()
    assert code == verdict.DONE, cried
    assert "exitcode: -9" in cried
    assert logged_steps(launch.store).count(0) == 1


@pytest.fixture(scope="module")
def whole(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The store of a training that was left alone, and what was printed."""
    store = tmp_path_factory.mktemp("whole")
    code, said, cried = Launched(store, inputs).ended()
    assert code == verdict.DONE, cried
    return store, said


@needs_torchx
def test_only_the_first_process_says_the_uri(whole: tuple[Path, str]) -> None:
    store, said = whole
    (manifest,) = store.glob("distill/*/manifest.json")
    assert said.splitlines()[-1] == str(manifest.parent)
    assert said.count(str(manifest.parent)) == 1
    assert logged_steps(store) == list(range(24))


@needs_torchx
def test_a_finished_one_is_found_and_nothing_is_written(whole: tuple[Path, str], inputs: dict[str, str]) -> None:
    store, said = whole
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    first, second = ranks.run(ended, 2, distill(store, inputs))
    assert first == [(verdict.DONE, said.splitlines()[-1] + "\n", "")]
    assert second == [(verdict.DONE, "", "")]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


@needs_torchx
def test_a_stopped_training_goes_on_to_the_same_weights(
    whole: tuple[Path, str], inputs: dict[str, str], tmp_path: Path
) -> None:
    launch = Launched(tmp_path, inputs)
    launch.wait_for(3)
    launch.process.send_signal(signal.SIGTERM)
    code, _, cried = launch.ended()
    assert code == verdict.STOPPED, cried
    saved = max(path.parent.name for path in launch.found(".checkpoints/*/manifest.json"))
    said = f"relic: stopped with step {int(saved.partition('-')[0])} saved; the same command goes on"
    assert cried.splitlines()[-1] == said
    assert Launched(tmp_path, inputs).ended()[0] == verdict.DONE
    assert logged_steps(tmp_path) == list(range(24))  # none is done again
    assert weights_of(tmp_path) == weights_of(whole[0])


@needs_torchx
def test_a_killed_process_costs_no_bit(whole: tuple[Path, str], inputs: dict[str, str], tmp_path: Path) -> None:
    killed_once(Launched(tmp_path, inputs, max_restarts=1))
    assert weights_of(tmp_path) == weights_of(whole[0])


@needs_torchx
@pytest.mark.distributed
def test_a_killed_teacher_learns_the_same(tmp_path: Path) -> None:
    made = soak.write_inputs(LocalStore(tmp_path / "inputs"), weights.start_folder("tiny/base"), (2, 4), (8, 12))
    samples = {"samples": made["samples"]}
    assert Launched(tmp_path / "whole", samples, step="teacher").ended()[0] == verdict.DONE
    killed_once(Launched(tmp_path / "killed", samples, step="teacher", max_restarts=1))
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")


@needs_torchx
@pytest.mark.distributed
def test_a_hung_process_is_named_with_its_stack_and_the_group_starts_again(
    whole: tuple[Path, str], inputs: dict[str, str], tmp_path: Path
) -> None:
    program = [fake_hang.__file__, *distill(tmp_path, inputs), "--parallel.timeout-s", "4"]
    script = (
        "import sys\nfrom relic.launch import torchrun\nfrom relic.launch.config import Launch\n"
        f"sys.exit(torchrun.run(Launch(processes='2', max_restarts=1), {program}).code)"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, env=soak.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == verdict.DONE, done.stderr
    assert "no step has ended for" in done.stderr
    assert "rank 1 holds up the others" in done.stderr
    assert 'fake_hang.py", line' in done.stderr
    assert weights_of(tmp_path) == weights_of(whole[0])


# On another number of processes


def called(store: Path, inputs: dict[str, str], parallel: Parallel, stop_at: int) -> str:
    """A call of the training in float64, asked to end in a step; what it says of that, else its artifact."""
    os.environ[tracking.PARENT] = tracking.RUNNER
    precision.native_bfloat16 = lambda device: False  # type: ignore[assignment]
    in_double.turn_on()
    if parallel.zero:
        in_double.turn_on_deepspeed()
    step = Watch.step

    def stopped(self: Watch, number: int, *given: Any, **named: Any) -> None:
        self.stopping |= number == stop_at
        step(self, number, *given, **named)

    Watch.step = stopped  # type: ignore[assignment, method-assign]
    given = {name: [uri] for name, uri in inputs.items()}
    try:
        return steps.perform(steps.STEPS["distill"], SHORT, store=str(store), inputs=given, parallel=parallel)
    except verdict.Stopped as said:
        return str(said)


def test_it_goes_on_in_other_numbers_of_processes_under_other_stages_of_zero(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    (alone,) = ranks.run(called, 1, tmp_path / "alone", inputs, Parallel(), -1)
    store = tmp_path / "moved"
    for world, zero, stop_at in ((2, 3, 0), (1, 0, 2), (2, 2, 4)):
        said = ranks.run(called, world, store, inputs, Parallel(zero=zero), stop_at)
        assert said == world * [f"stopped with step {stop_at + 1} saved; the same command goes on"]
    moved, _ = ranks.run(called, 2, store, inputs, Parallel(zero=3), -1)
    assert logged_steps(store) == list(range(6))
    before, after = (load_file(Path(artifact) / "model.safetensors") for artifact in (alone, moved))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-9, rtol=0, msg=name)


# Mistakes

WRONG = {
    "--config.stages.1.batch 3": "a batch of 3 samples cannot be shared by 2 groups of 1 process(es)",
    "--parallel.sequence 2": "3 heads",
    "--parallel.zero 2": "muon is on and zero is 2",
}


def distill(store: Path, inputs: dict[str, str]) -> list[str]:
    """What is launched, without `relic`."""
    line = soak.command(store, inputs, STAGES, DIALS, {})
    return line[line.index("distill") :]


def ended(*lines: list[str]) -> list[tuple[int, str, str]]:
    """Of each command of `relic` its exit code, and what it says on stdout and stderr."""
    os.environ[tracking.PARENT] = tracking.RUNNER
    found = []
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as cried:
            code = command.main(line)
        found.append((code, said.getvalue(), cried.getvalue()))
    return found


def test_what_cannot_be_shared_is_said_before_anything_is_computed(inputs: dict[str, str], tmp_path: Path) -> None:
    lines = [[*distill(tmp_path, inputs), *dials.split()] for dials in WRONG]
    for found in ranks.run(ended, 2, *lines):
        for (code, said, cried), sentence in zip(found, WRONG.values(), strict=True):
            assert (code, said, cried.count("\n")) == (verdict.MISTAKE, "", 1)
            assert sentence in cried
    assert not list(tmp_path.glob("distill/*.partial/.ranks"))


def test_a_taken_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in (("WORLD_SIZE", 2), ("RANK", 0), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ValueError, match=f"process 0 of 2 cannot meet the others at 127.0.0.1:{port}: .* be free"):
            meshes.joined(Parallel())
