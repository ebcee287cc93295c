"""One model on several processes: its walks are those of one, and none outlives another."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from exports import IMAGE, untracked
from test_engine import walked as walked_alone

from relic.serve import client, ranks

SCRIPT = """
import contextlib, os, sys, time
import numpy as np
from exports import IMAGE
from relic.serve import engine, ranks
from relic.serve.config import Serve
from test_engine import forward, step

cfg = Serve(export=sys.argv[1], gpus=int(sys.argv[2]), device="cpu", threads=1)
if __name__ == "__main__":
    if cfg.gpus > 1:
        leader, followers = ranks.lead(cfg)
    else:
        leader = engine.load(cfg, engine.choose_device("cpu"))
    walk, other = leader.open(IMAGE, "a hall", 0), leader.open(255 - IMAGE, "a yard", 1)
    frames = []
    for turn in range(6):
        frames.append(step(walk, forward(walk.num_actions))[0])
        step(other, forward(other.num_actions))
        if turn == 2:
            other = walk.branch()
        if turn == 4:
            walk = leader.restore(walk.state())
    np.save(sys.argv[3], np.concatenate(frames))
    if cfg.gpus > 1:
        if sys.argv[4] == "kill":
            followers.processes[0].kill()
            with contextlib.suppress(RuntimeError):  # of gloo, when its peer is gone
                while True:
                    step(walk, forward(walk.num_actions))
            time.sleep(60)
        followers.end()
        print([process.returncode for process in followers.processes])
"""


def walked(uri: str, gpus: int, out: Path, end: str = "") -> tuple[np.ndarray, subprocess.CompletedProcess]:
    given = [sys.executable, "-c", SCRIPT, uri, str(gpus), str(out), end]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)
    assert out.is_file(), done.stderr
    return np.load(out), done


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return untracked(tmp_path_factory.mktemp("store"))


def test_a_model_on_two_processes_walks_as_on_one(uri: str, tmp_path: Path):
    alone, _ = walked(uri, 1, tmp_path / "one.npy")
    together, done = walked(uri, 2, tmp_path / "two.npy")
    assert json.loads(done.stdout.splitlines()[-1]) == [0], done.stderr
    apart = np.abs(alone.astype(int) - together)
    assert apart.max() <= 3, apart.max()
    assert len(alone) > 40


def test_a_rank_that_dies_is_said(uri: str, tmp_path: Path):
    _, done = walked(uri, 2, tmp_path / "two.npy", "kill")
    assert done.returncode == 1
    assert "relic: rank 1 of the model has ended with exit code -9" in done.stderr


DIES = """
import sys
from relic.serve import ranks
from relic.serve.config import Serve

class Followers(ranks.Followers):
    def __init__(self, *given):
        super().__init__(*given)
        self.processes[0].kill()

ranks.Followers = Followers
if __name__ == "__main__":
    ranks.lead(Serve(export=sys.argv[1], gpus=2, device="cpu", threads=1))
"""


def test_a_rank_that_dies_while_the_model_loads_is_said(uri: str):
    done = subprocess.run([sys.executable, "-c", DIES, uri], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("relic: rank 1 of the model has ended with exit code -9\n")


@contextlib.contextmanager
def served(uri: str) -> Iterator[tuple[subprocess.Popen, str, int]]:
    """A server of two processes: itself, its address, and the other one."""
    line = [sys.executable, "-m", "relic", "serve", "--export", uri, "--gpus", "2", "--device", "cpu", "--port", "0"]
    with subprocess.Popen([*line, "--threads", "1", "--drain-s", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            place = next(word for word in process.stdout.readline().split() if word.startswith("http"))
            (child,) = (
                int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            )
            yield process, place, child
        finally:
            process.kill()


def test_a_server_whose_rank_dies_tells_who_walks_and_ends(uri: str):
    with served(uri) as (process, place, child), client.begin(place, wait_s=30) as walk:
        assert walk.frame(10) is not None
        os.kill(child, signal.SIGKILL)
        for _ in walk.frames():
            pass
        assert walk.over["reason"] == "failed"  # by the engine's error, or by the process' end, whichever is seen first
        assert process.wait(20) == 1


def test_a_server_whose_rank_hangs_ends(uri: str):
    with served(uri) as (process, place, child), client.begin(place, wait_s=30) as walk:
        assert walk.frame(10) is not None
        os.kill(child, signal.SIGSTOP)
        process.terminate()
        for _ in walk.frames():
            pass
        assert process.wait(20) == 1


def listening(process: int) -> set[str]:
    """The addresses, as the kernel writes them, on which a process takes connections."""
    held = {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in held}


def test_a_server_of_several_processes_speaks_to_this_machine_only_and_leaves_none_behind(uri: str):
    with served(uri) as (process, place, child), client.begin(place, wait_s=30) as walk:
        assert walk.frame(10) is not None
        assert listening(child) == {"0100007F"} >= listening(process.pid)
        process.terminate()
        for _ in walk.frames():
            pass
        assert process.wait(20) == 0
        assert not Path(f"/proc/{child}").exists()


class Heard:
    """Stands for the other processes: keeps what the leader says, and says it again to a follower."""

    rank, world, size = 0, 2, 2

    def __init__(self) -> None:
        self.messages: list[tuple] = []

    def say(self, *message) -> tuple:
        if message:
            self.messages.append(message)
            return message
        return self.messages.pop(0)


class Opened:
    """A student that opens walks that hold nothing, and remembers whether they still live."""

    world, warm_chunks = None, 3

    def __init__(self) -> None:
        self.walks: list[weakref.ref] = []

    def open(self, *given) -> "Opened.Walk":
        walk = self.Walk()
        self.walks.append(weakref.ref(walk))
        return walk

    class Walk:
        made = 0

        def step(self, actions: np.ndarray) -> Iterator[int]:
            for self.made in range(1, 4):
                yield self.made

        def branch(self) -> None:
            raise MemoryError("no room")


def test_the_others_forget_a_walk_that_nobody_holds():
    heard, follower = Heard(), Opened()
    leader = ranks.Leader(Opened(), heard)
    walks = [leader.open(None, "", 0) for _ in range(3)]
    assert list(walks[1].step(np.zeros((4, 13)))) == [1, 2, 3]
    del walks[:2]
    gc.collect()
    kept = leader.open(None, "", 0)
    heard.messages.append(([], "watch", kept.number))
    alive: list[bool] = []
    heard.gather = lambda state: alive.extend(walk() is not None for walk in follower.walks)
    follower.Walk.state = lambda self: None
    heard.messages.append(([], "end", 0))
    ranks.obey(follower, heard)
    assert alive == [False, False, True, True]


def test_a_leader_that_fails_in_a_call_says_nothing_more():
    heard = Heard()
    leader = ranks.Leader(Opened(), heard)
    walk, other = (leader.open(None, "", 0) for _ in range(2))
    with pytest.raises(MemoryError):
        walk.branch()
    said = len(heard.messages)
    for call in (leader.check, lambda: other.step(np.zeros((4, 13))), lambda: leader.open(None, "", 0)):
        with pytest.raises(RuntimeError, match="has left the others: MemoryError: no room"):
            call()
    leader.close()
    assert len(heard.messages) == said


def test_a_walk_that_fails_when_all_have_made_its_chunk_fails_alone():
    leader = ranks.Leader(Opened(), Heard())
    walk, other = (leader.open(None, "", 0) for _ in range(2))

    def spoilt(actions: np.ndarray) -> Iterator[int]:
        yield 1
        raise FloatingPointError("the walk's latents are not finite")

    walk.walk.step = spoilt
    with pytest.raises(FloatingPointError):
        list(walk.step(np.zeros((4, 13))))
    assert not leader.fault
    assert list(other.step(np.zeros((4, 13)))) == [1, 2, 3]


def test_a_chunk_is_made_to_its_end_whoever_reads_it():
    leader = ranks.Leader(Opened(), Heard())
    walk = leader.open(None, "", 0)
    reader = walk.step(np.zeros((4, 13)))
    assert next(reader) == 1
    reader.close()
    assert walk.walk.made == 3
    assert not leader.fault


def test_a_walk_of_several_processes_is_refused_by_one():
    alone, shared = walked_alone(chunks=0).student, walked_alone(chunks=0).student
    heard = shared.model.sequence = Heard()
    heard.gather = lambda state: [state.tensors] * 2
    state = ranks.Leader(shared, heard).open(IMAGE, "a hall", 0).state()
    with pytest.raises(ValueError, match=r"'gpus': 2}; this engine is .*'gpus': 1"):
        alone.restore(state)
