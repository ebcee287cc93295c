import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import fake_training
import pytest

from relic import __main__ as command
from relic import steps, verdict
from relic.launch import torchrun
from relic.launch.output import Output
from relic.verdict import Verdict

TORCHX = Path(sys.prefix) / "torchx" / "bin" / "torchx"
ROOT = Path(__file__).parents[1]
TRAINING = str(Path(fake_training.__file__))
needs_torchx = pytest.mark.skipif(not TORCHX.exists(), reason="torchx is installed by `make test`")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(torchrun.TORCHX, raising=False)
    monkeypatch.delenv(steps.PARENT_PROCESS, raising=False)


def start(how: str, folder: Path, **options: object) -> subprocess.Popen:
    """A launch in a process of its own, which ends with the verdict's code and says its text."""
    folder.mkdir(exist_ok=True)
    script = (
        "import sys\nfrom relic.launch import torchrun\nfrom relic.launch.config import Launch\n"
        f"ended = torchrun.run(Launch(**{ {'processes': '2', **options} }), {[TRAINING, how, str(folder)]})\n"
        "print(ended.text, file=sys.stderr)\nsys.exit(ended.code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], text=True, stdout=-1, stderr=-1, env=environment)


def starts(folder: Path) -> dict[str, str]:
    """The world's size by start and rank."""
    return {path.name.removeprefix("start-"): path.read_text() for path in sorted(folder.glob("start-*"))}


def wait_until_ready(folder: Path, ranks: int = 2) -> None:
    give_up = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < ranks:
        assert time.monotonic() < give_up
        time.sleep(0.05)


# Here, by torchx and torchrun


@needs_torchx
def test_processes_know_their_ranks_and_only_rank_0_speaks_on_stdout(tmp_path: Path) -> None:
    launch = start("done", tmp_path)
    said, cried = launch.communicate(timeout=60)
    assert launch.returncode == 0, cried
    assert starts(tmp_path) == {"0-0": "2", "0-1": "2"}
    assert said == "rank 0 is done\n"
    assert "[1] rank 1 is done\n" in cried


@needs_torchx
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_has_the_time_to_save(number: int, tmp_path: Path) -> None:
    launch = start("save", tmp_path)
    wait_until_ready(tmp_path)
    began = time.monotonic()
    launch.send_signal(number)
    _, cried = launch.communicate(timeout=60)
    assert launch.returncode == verdict.STOPPED
    assert time.monotonic() - began > fake_training.SAVE_S
    assert cried.splitlines()[-1] == "saved at step 7"
    assert "Traceback" not in cried


@needs_torchx
@pytest.mark.skipif(version("torch").startswith("2.11."), reason="torch 2.11's torchrun gives 30 s")
def test_saving_takes_no_longer_than_the_grace_period(tmp_path: Path) -> None:
    launch = start("save", tmp_path, grace_s=1)
    wait_until_ready(tmp_path)
    launch.send_signal(signal.SIGTERM)
    _, cried = launch.communicate(timeout=60)
    assert launch.returncode == verdict.STOPPED
    assert "goes on from the last checkpoint" in cried.splitlines()[-1]


@needs_torchx
def test_a_killed_process_restarts_the_group(tmp_path: Path) -> None:
    launch = start("killed once", tmp_path, max_restarts=1)
    _, cried = launch.communicate(timeout=60)
    assert launch.returncode == 0, cried
    assert starts(tmp_path) == {"0-0": "2", "0-1": "2", "1-0": "2", "1-1": "2"}


@needs_torchx
def test_a_process_that_is_always_killed_is_a_failure_after_the_restarts(tmp_path: Path) -> None:
    launch = start("killed", tmp_path, max_restarts=1)
    _, cried = launch.communicate(timeout=60)
    assert launch.returncode == verdict.FAILURE
    assert len(starts(tmp_path)) == 4
    assert "exitcode: -9" in cried
    assert "ended without a word" in cried.splitlines()[-1]


@needs_torchx
def test_a_mistake_is_said_once_and_not_tried_again(tmp_path: Path) -> None:
    launch = start("mistake", tmp_path, max_restarts=100)
    _, cried = launch.communicate(timeout=60)
    assert launch.returncode == verdict.MISTAKE
    assert cried.count("the batch is 3; it must be even") == 1
    assert len(starts(tmp_path)) < 20


@needs_torchx
def test_a_steps_own_mistake_is_the_launchs(capfd: pytest.CaptureFixture[str]) -> None:
    step = ["relic", "teacher", "--recipe", "nobodys"]
    assert command.main(["launch", "--processes", "1", "--", *step]) == verdict.MISTAKE
    assert "relic: there is no recipe 'nobodys'" in capfd.readouterr().err.splitlines()[-1]


@needs_torchx
def test_the_training_ends_when_the_launch_is_killed(tmp_path: Path) -> None:
    launch = start("wait", tmp_path)
    wait_until_ready(tmp_path)
    launch.kill()
    launch.communicate(timeout=60)
    give_up = time.monotonic() + 10
    while running := [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in text_of(path)]:
        assert time.monotonic() < give_up, running
        time.sleep(0.1)


def text_of(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""  # it has ended


def test_no_line_is_lost_when_torchrun_makes_its_files_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(ranks=tmp_path, agent=tmp_path / "agent")
    file = tmp_path / "run" / "attempt_0" / "0" / "stdout.log"
    for words in ("a long first round\n", "resumed\n", "resumed\nand on\n"):
        if words == "resumed\n":
            shutil.rmtree(file.parent)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(words)
        output.pass_on()
    assert capsys.readouterr().out == "a long first round\nresumed\nand on\n"


def test_of_torchruns_own_words_warnings_and_errors_are_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(ranks=tmp_path, agent=tmp_path / "agent")
    output.agent.write_text("usage: run.py\nrun.py: error: an option\nW1126 one restart\n*****\n")
    output.pass_on()
    assert capsys.readouterr().err == "run.py: error: an option\nW1126 one restart\n"


@needs_torchx
def test_two_launches_meet_as_two_nodes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launches = [start("done", tmp_path, processes="1", nodes="2", endpoint=endpoint) for _ in range(2)]
    for launch in launches:
        _, cried = launch.communicate(timeout=60)
        assert launch.returncode == 0, cried
    assert starts(tmp_path) == {"0-0": "2", "0-1": "2"}


@needs_torchx
def test_a_node_joins_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_RDZV_CONF", "last_call_timeout=1")  # torchrun waits so long for more nodes than the least
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"processes": "1", "nodes": "1:2", "endpoint": endpoint}
    launches = [start("wait", tmp_path, **options)]
    wait_until_ready(tmp_path, ranks=1)
    assert starts(tmp_path) == {"0-0": "1"}
    launches.append(start("wait", tmp_path, **options))
    wait_until_ready(tmp_path)
    for launch in launches:
        launch.send_signal(signal.SIGTERM)
    assert [launch.communicate(timeout=60) and launch.returncode for launch in launches] == [verdict.STOPPED] * 2
    assert starts(tmp_path) == {"0-0": "1", "0-1": "2", "1-0": "2"}


@needs_torchx
def test_slurm_gets_a_script_with_the_command_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    line = "launch --backend slurm --nodes 1:2 --processes 8 --max-restarts 3 --queue partition=gpu --dry-run --"
    assert command.main([*line.split(), "relic", "teacher", "--recipe", "a $b"]) == 0
    said = capfd.readouterr().out
    assert said.count("--partition=gpu") == 2
    assert said.count("--cpus-per-task=64 --gpus-per-task=8") == 2
    assert "--nnodes=1:2 --nproc-per-node=8 --max-restarts=3" in said
    assert "head=${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}; " in said
    assert """-m relic teacher --recipe '"'"'a $b'"'"'""" in said


# What a launch ends with


@pytest.mark.parametrize(
    ("code", "said", "stopped", "ended"),
    [
        (0, None, False, verdict.DONE),
        (0, verdict.FAILURE, False, verdict.DONE),  # before a restart that went well
        (1, verdict.MISTAKE, False, verdict.MISTAKE),
        (1, verdict.OUT_OF_MEMORY, True, verdict.OUT_OF_MEMORY),
        (1, verdict.STOPPED, True, verdict.STOPPED),
        (1, verdict.STOPPED, False, verdict.STOPPED),  # its store does not answer
        (1, None, True, verdict.STOPPED),
        (1, None, False, verdict.FAILURE),
    ],
)
def test_a_launch_ends_as_its_processes_say(code: int, said: int | None, stopped: bool, ended: int) -> None:
    found = torchrun.ending(code, None if said is None else Verdict(said, "so"), stopped=stopped)
    assert found.code == ended
    assert bool(found.text) == (ended != verdict.DONE)


def test_who_survives_a_process_that_was_killed_does_not_say_why(tmp_path: Path) -> None:
    asked = Verdict(verdict.STOPPED, "stopped with step 3 saved", asked=True)  # by torchrun
    assert torchrun.ending(1, asked, stopped=True) == asked
    found = torchrun.ending(1, asked, stopped=False)
    assert found.code == verdict.FAILURE
    assert "ended without a word" in found.text


# Mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nodes 4:1 -- relic teacher", "nodes is '4:1'; it must be a number such as 2, or MIN:MAX such as 1:4"),
        ("--nodes 0 -- relic teacher", "nodes is '0'"),
        ("--nodes 2 -- relic teacher", "nodes is 2, so --endpoint must be HOST:PORT"),
        ("--endpoint a:99999 -- relic teacher", "endpoint is 'a:99999'; it must be HOST:PORT"),
        ("--processes 0 -- relic teacher", "processes is '0'; it must be 'auto' or a number of at least 1"),
        ("--backend slurm -- relic teacher", "processes is 'auto', which counts this machine's GPUs; slurm needs"),
        ("--max-restarts -1 -- relic teacher", "max_restarts is -1; it must be at least 0"),
        ("--processes 2", "what is launched is 'nothing'; allowed is -- relic COMMAND"),
        ("-- python train.py", "what is launched is 'python train.py'; allowed is -- relic COMMAND"),
        ("--torchx /nowhere -- relic teacher", "torchx is not at /nowhere; it needs an environment of its own"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["launch", *line.split()]) == verdict.MISTAKE
    words = capsys.readouterr().err
    assert said in words
    assert words.count("\n") == 1


@needs_torchx
def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        assert command.main(["launch", "--endpoint", endpoint, "--", "relic", "teacher"]) == verdict.MISTAKE
    assert f"endpoint is {endpoint}, which is taken; give another" in capsys.readouterr().err


# On Ray


def test_ray_workers_meet_restart_and_say_how_they_ended(tmp_path: Path) -> None:
    script = Path(__file__).with_name("launch_on_ray.py")
    roots = os.pathsep.join([str(ROOT), str(script.parent)])
    environment = {**os.environ, "PYTHONPATH": roots, "HOME": str(tmp_path)}  # where Ray Train writes its results
    ended = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert Verdict(**found["done"]) == Verdict(verdict.DONE, "")
    mistake = Verdict(verdict.MISTAKE, "the batch is 3; it must be even")
    assert Verdict(**found["killed once, then a mistake"]) == mistake
    assert [path.read_text() for path in (tmp_path / "done").glob("sum-*")] == ["1 of 2", "1 of 2"]
    assert len(starts(tmp_path / "killed once, then a mistake")) == 4


def test_a_ray_head_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    line = "launch --backend ray --processes 2 --address 127.0.0.1:1 -- relic teacher"
    assert command.main(line.split()) == verdict.MISTAKE
    assert "address is 127.0.0.1:1, where nobody answers" in capsys.readouterr().err
