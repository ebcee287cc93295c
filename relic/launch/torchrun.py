"""Processes that torchrun starts, watches and restarts, itself started by TorchX: here, or by Slurm.

torchx 0.7 needs an older urllib3 than relic does, so it has an environment of its own and is run as a command; what it
starts is this Python. Signals go to torchrun directly: torchx would kill it after ten seconds, before a large model is
saved. torchrun always ends with code 1, so the code comes from `relic.verdict`.
"""

import contextlib
import errno
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from relic import steps, verdict
from relic.launch.config import Launch
from relic.launch.output import Output
from relic.mistakes import UserError
from relic.verdict import Verdict

POLL_S = 0.1
TORCHX = "RELIC_TORCHX"  # the variable with torchx's path
HEAD_PORT = 29500  # on the first node that Slurm gives
# Linux sends torchx SIGTERM when this process dies, even by SIGKILL: no training is left behind. 1 is PR_SET_PDEATHSIG.
END_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def run(config: Launch, program: Sequence[str]) -> Verdict:
    """Run a program, as torchrun takes it (`-m module …` or `script.py …`), to its end; on Slurm, submit it."""
    torchx = find_torchx(config.torchx)
    if config.backend == "slurm":
        return submit(config, torchx, program)
    if config.endpoint and config.most_nodes == 1:
        check_free(config.endpoint)
    with tempfile.TemporaryDirectory(prefix="relic-launch-") as name:
        output = Output(ranks=Path(name) / "ranks", agent=Path(name) / "agent")
        logs = ("--redirects=3", f"--log-dir={output.ranks}")
        meet, job = shlex.quote(config.endpoint or "localhost:0"), shlex.quote(config.job)
        agent = agent_command(config, program, num_processes(config), endpoint=meet, job=job, logs=logs)
        if config.dry_run:
            return show(torchx_command(config, torchx, f"exec {agent}"))
        return follow(config, torchx, agent, Path(name), output)


def submit(config: Launch, torchx: str, program: Sequence[str]) -> Verdict:
    """Give the job to Slurm and say its handle, or show the script where Slurm is not."""
    meet = shlex.quote(config.endpoint) if config.endpoint else f'"$head":{HEAD_PORT}'
    agent = agent_command(config, program, int(config.processes), endpoint=meet, job='"$job"')
    command = torchx_command(config, torchx, f"exec {agent}")
    if config.dry_run:
        return show(command)
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine; submit where Slurm is, or see the script with --dry-run")
    return Verdict(subprocess.run(command).returncode, "")


def show(command: list[str]) -> Verdict:
    at = command.index("run") + 1
    return Verdict(subprocess.run([*command[:at], "--dryrun", *command[at:]]).returncode, "")


# Commands


def find_torchx(given: str) -> str:
    """The command torchx: as given, of RELIC_TORCHX, beside this Python, or of PATH."""
    beside = Path(sys.prefix) / "torchx" / "bin" / "torchx"
    said = given or os.environ.get(TORCHX, "")
    found = shutil.which(said) if said else str(beside) if beside.is_file() else shutil.which("torchx")
    if found is None:
        folder = Path(sys.prefix) / "torchx"
        raise UserError(
            f"torchx is not {f'at {said}' if said else 'installed'}; it needs an environment of its own: "
            f"{sys.executable} -m venv {folder} && {folder}/bin/pip install torchx==0.7.0"
        )
    return found


def torchx_command(config: Launch, torchx: str, command: str) -> list[str]:
    """torchx, which has bash run a command on each node."""
    component = f"{Path(__file__).with_name('component.py')}:torchrun"
    scheduler, asked = ["-s", "local_cwd"], []
    if config.backend == "slurm":
        scheduler = ["-s", "slurm", *(["-cfg", config.queue] if config.queue else [])]
        cpus, gpus = (int(config.processes) * each for each in (config.cpus, config.gpus))
        asked = [f"--nodes={config.most_nodes}", f"--cpus={cpus}", f"--gpus={gpus}"]
    run = [torchx, "--log_level=WARNING", "run", *scheduler, "--workspace="]  # no copy of the folder that we are in
    return [*run, component, f"--command={command}", *asked]


def agent_command(
    config: Launch, program: Sequence[str], processes: int, *, endpoint: str, job: str, logs: Sequence[str] = ()
) -> str:
    """torchrun's agent of one node, as a line for bash, quoted as endpoint and job must be: they may be variables."""
    options = [
        f"--nnodes={config.nodes}", f"--nproc-per-node={processes}", f"--max-restarts={config.max_restarts}",
        "--rdzv-backend=c10d", "--role=", *logs,
    ]  # fmt: skip
    if not version("torch").startswith("2.11."):  # its torchrun knows no such option and gives 30 s
        options.append(f"--shutdown-timeout={config.grace_s}")
    # Else torch 2.13's group shares one store over its restarts: who starts again can read the addresses of the dead,
    # and a node that joins later waits for one which was said in the first round only.
    before = ("env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    if config.most_nodes == 1:
        options.append("--local-addr=localhost")  # a machine's own name may lead nowhere
    command = [*before, sys.executable, "-m", "torch.distributed.run", *options]
    return f"{shlex.join(command)} --rdzv-endpoint={endpoint} --rdzv-id={job} {shlex.join(program)}"


def num_processes(config: Launch) -> int:
    """A node's processes; torch counts the GPUs, for it knows which of them it may use."""
    if config.processes != "auto":
        return int(config.processes)
    count = "import torch; print(torch.cuda.device_count())"
    return max(1, int(subprocess.run([sys.executable, "-c", count], check=True, capture_output=True).stdout))


def check_free(endpoint: str) -> None:
    """Of one node only: of several, the first holds the port and the others meet it there."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_server((host, int(port))):
            pass
    except OSError as error:
        why = "taken" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
        raise UserError(
            f"endpoint is {endpoint}, which is {why}; give another, or none: one node takes a free port"
        ) from None


# Following


def follow(config: Launch, torchx: str, agent: str, folder: Path, output: Output) -> Verdict:
    """Start torchrun, pass its output and our signals on, and find how it ended."""
    pid, said, log = folder / "pid", folder / "verdict", folder / "torchx"
    new, old, words = (shlex.quote(str(path)) for path in (folder / "pid.new", pid, output.agent))
    command = f"echo $$ > {new}; mv {new} {old}; exec {agent} > {words} 2>&1"
    environment = {**os.environ, verdict.FILE: str(said), "PYTHONUNBUFFERED": "1"}
    environment.pop(steps.PARENT_PROCESS, None)  # it is ours; the processes' parent is torchrun
    stopped = passed_on = False
    with stop_signals() as signals, log.open("wb") as heard:
        process = subprocess.Popen(
            [sys.executable, "-c", END_WITH_US, str(os.getpid()), *torchx_command(config, torchx, command)],
            env=environment, stdin=subprocess.DEVNULL, stdout=heard, stderr=heard, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            output.pass_on()
            # A mistake, or too little memory, is the same after a restart.
            final = (found := verdict.read(said)) is not None and found.code in (verdict.MISTAKE, verdict.OUT_OF_MEMORY)
            if (signals or final) and not passed_on and pid.exists():
                stopped, passed_on = bool(signals), True
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(int(pid.read_text()), signal.SIGTERM)
            time.sleep(POLL_S)
    output.pass_on()
    if not pid.exists():
        last = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise RuntimeError(f"torchx ended with exit code {process.returncode} and said: {last[-1]}")
    return ending(process.returncode, verdict.read(said), stopped=stopped)


def ending(code: int, said: Verdict | None, *, stopped: bool) -> Verdict:
    """What a launch ends with: torchrun's 0, else the processes' verdict."""
    if code == 0:
        return Verdict(verdict.DONE, "")
    if said is not None and (stopped or not said.asked):
        return said
    if stopped:
        return Verdict(
            verdict.STOPPED, "stopped before all was saved; the same command goes on from the last checkpoint"
        )
    # Survivors of a process that was killed are stopped by torchrun, and say only that.
    return Verdict(
        verdict.FAILURE, "a process ended without a word, as one that is killed does; torchrun says which above"
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of ending by them."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
