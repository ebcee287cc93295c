"""A step on a Ray cluster that exists, by Ray Train: a worker a process, in which torch's process group is ready.

Ray stops workers by killing them, so a stopped run goes on from its last checkpoint."""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from relic import steps, verdict
from relic.launch.config import Launch
from relic.mistakes import UserError
from relic.verdict import Verdict

CONNECT_S = 10.0
# Workers stay in the folder they start in, where the store may lie; Ray Train would give each a folder of its own.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


class Ended(Exception):
    """A worker's verdict on its way to the launch."""

    def __init__(self, code: int, text: str):
        super().__init__(code, text)
        self.verdict = Verdict(code, text)


def run(config: Launch, command: Callable[[list[str]], int], args: Sequence[str]) -> Verdict:
    """Run `command(args)`, which returns an exit code, in every worker to its end.

    command is found by its module and name, which every node must have."""
    most = config.most_nodes * int(config.processes)
    least = config.least_nodes * int(config.processes)
    workers: Any = most if least == most else (least, most)  # two numbers: Ray Train's elastic training
    if config.dry_run:
        print(f"{workers} workers, {config.cpus} cores and {config.gpus} GPUs each, on {config.address}: relic", *args)
        return Verdict(verdict.DONE, "")
    if config.address != "auto":
        check_answers(config.address)
    import ray
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    os.environ.pop(steps.PARENT_PROCESS, None)
    try:
        ray.init(address=config.address)
    except ConnectionError as error:
        raise UserError(
            f"address is {config.address!r}, where no Ray cluster answers; `ray start` makes one"
        ) from error
    trainer = TorchTrainer(
        work, train_loop_config={"command": command, "args": list(args)},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=config.gpus > 0,
            resources_per_worker={"CPU": config.cpus, **({"GPU": config.gpus} if config.gpus else {})},
        ),
        run_config=RunConfig(name=config.job, failure_config=FailureConfig(max_failures=config.max_restarts)),
    )  # fmt: skip
    stopped = Verdict(verdict.STOPPED, "stopped; the same command goes on from the last checkpoint")
    try:
        with sigterm_as_ctrl_c() as terminated:
            trainer.fit()
    except TrainingFailedError as error:
        failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
        said = [failure.verdict for failure in failures if isinstance(failure, Ended)]
        return said[0] if said else Verdict(verdict.FAILURE, "a worker ended without a word; see what Ray says above")
    except (SystemExit, KeyboardInterrupt):  # by Ray Train's answer to Ctrl-C, or before it has one
        return stopped
    except RayActorError:
        if not terminated:
            raise
        return stopped
    finally:
        ray.shutdown()
    return Verdict(verdict.DONE, "")


def check_answers(address: str) -> None:
    """Ray itself waits for a head that is not there, minute after minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"address is {address}, where nobody answers ({error}); give HOST:PORT of a Ray head") from None


def work(given: dict[str, Any]) -> None:
    """In each worker: run the command; Ray Train takes an exception as a failure."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[verdict.FILE] = str(Path(folder) / "verdict")
        code = given["command"](given["args"])
        said = verdict.read(Path(folder) / "verdict")
    if code:
        raise Ended(code, said.text if said else "")


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Ray Train aborts a run at Ctrl-C, by a handler that it leaves behind, and knows no SIGTERM. Collects SIGTERMs."""
    caught: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.raise_signal(signal.SIGINT)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt), signal.SIGINT: signal.getsignal(signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
