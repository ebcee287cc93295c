import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import torch

from relic.parallel.agreement import Agreement
from relic.parallel.config import Parallel, Watching
from relic.parallel.mesh import Mesh, joined
from relic.tracking import Run
from relic.train import measures
from relic.train.measures import Seen
from relic.train.watch import Watch
from relic.train.watchdog import Phase, Stand, blamed
from relic.verdict import HUNG

OFTEN = Watching(every_s=1e-3)  # figures are gathered at every step
SELDOM = Watching(every_s=1e6)  # at the first and the last


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """All figures of a step, by step."""
    found: dict[int, dict[str, float]] = {}
    for line in lines(folder / "tracking.jsonl"):
        found.setdefault(line["step"], {}).update(line["metrics"])
    return found


def seen(rank: int, **measured: float) -> Seen:
    given = {"steps": 1, "step_s": 1.0, "own_s": 0.5, "wait_s": 0.0, "memory_gib": 1.0, "tokens": 10, "flops": 1e12}
    return Seen(rank=rank, host="n1", peak=None, figures=[], **(given | measured))  # type: ignore[arg-type]


def watched(folder: Path, cfg: Watching, *, steps: int = 4, late: int = -1, s: float = 0.1, stop: int = -1) -> Mesh:
    """A loop of `steps`, in each process of a group; rank `late` takes `s` longer for its own part of each."""
    mesh = joined(Parallel(watching=cfg, timeout_s=30))
    run = Run(folder) if mesh.is_first else Run.silent()
    with Watch(run, mesh, folder=folder, stages=[("", steps)]) as watch:
        for step in range(steps):
            with watch.waiting():
                time.sleep(0.01)
            time.sleep(s if mesh.rank == late else 0.0)
            watch.computed()
            mesh.wait()
            watch.step(step, {"loss": mesh.rank + step}, tokens=5)
            if mesh.rank == 1 and step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            if watch.agreed((watch.stopping,))[0]:
                break
    return mesh


# figures


def test_every_step_is_logged_once_and_the_throughput_at_gatherings(tmp_path: Path) -> None:
    watched(tmp_path, SELDOM, steps=5)
    found = metrics(tmp_path)
    assert [figures["loss"] for figures in found.values()] == [0, 1, 2, 3, 4]
    assert [step for step, figures in found.items() if "tokens_per_s" in figures] == [0, 4]
    assert found[4]["tokens_per_s"] == pytest.approx(5 / found[4]["step_s"])
    assert 0.01 <= found[4]["own_s"] < found[4]["step_s"]


def test_figures_are_gathered_at_the_ends_of_a_stage(tmp_path: Path) -> None:
    mesh = Mesh(Parallel(watching=SELDOM))
    with Watch(Run(tmp_path), mesh, folder=tmp_path, stages=[("8 latents", 4), ("16 latents", 4)]) as watch:
        for step in range(8):
            watch.step(step, {})
    assert [step for step, figures in metrics(tmp_path).items() if "step_s" in figures] == [0, 3, 4, 7]


def test_rank_0_logs_the_means_and_every_rank_keeps_its_own(tmp_path: Path) -> None:
    ranks.run(watched_by_rank, 2, tmp_path, SELDOM)
    assert [figures["loss"] for figures in metrics(tmp_path).values()] == [0.5, 1.5, 2.5, 3.5]
    for rank in range(2):
        kept = lines(tmp_path / ".ranks" / f"rank-{rank:05d}.jsonl")
        assert [line["step"] for line in kept] == [0, 1, 2, 3]
        assert all(0.01 <= line["wait_s"] <= line["own_s"] <= line["step_s"] for line in kept)


def watched_by_rank(folder: Path, cfg: Watching, *rest: int) -> None:
    watched(folder, cfg, late=rest[0] if rest else -1, stop=rest[1] if len(rest) > 1 else -1)


def test_figures_of_a_loop_that_fails_are_kept(tmp_path: Path) -> None:
    def loop() -> None:
        with Watch(Run(tmp_path), Mesh(), folder=tmp_path, stages=[("", 9)]) as watch:
            for step in range(4):
                watch.step(step, {"loss": 1 / (3 - step)})

    with pytest.raises(ZeroDivisionError):
        loop()
    assert sorted(metrics(tmp_path)) == [0, 1, 2]


def test_an_artifact_has_no_files_of_ranks(tmp_path: Path) -> None:
    watched(tmp_path, OFTEN)
    shown = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert shown == ["tracking.jsonl"]
    assert [path.name for path in (tmp_path / ".ranks").iterdir()] == ["rank-00000.jsonl"]


def test_progress_estimates_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, now = Run(tmp_path), time.monotonic()
    stages = [("8 latents", 10), ("16 latents", 20)]
    with Watch(run, Mesh(), folder=None, stages=stages) as watch:
        watch.stage, watch.stage_began = "16 latents", (11, now - 4)  # four seconds for four steps
        watch.step(14, {}, note="loss 0.1")
        run.printed = 0.0
        watch.step(9, {}, note="loss 0.2")
    said = capsys.readouterr().out.splitlines()
    assert said == ["[ 50%] 15/30 16 latents 5/20, 15 s left, loss 0.1", "[ 33%] 10/30 8 latents 10/10, loss 0.2"]


def test_a_pause_counts_for_no_step(tmp_path: Path) -> None:
    with Watch(Run(tmp_path), Mesh(), folder=tmp_path, stages=[("", 2)]) as watch:
        watch.step(0, {})
        with watch.pause():
            time.sleep(0.3)
        watch.step(1, {})
    assert metrics(tmp_path)[1]["step_s"] < 0.3


def test_mfu_is_of_all_devices_and_only_of_known_ones() -> None:
    known = [seen(rank, flops=3e14)._replace(peak=peak) for rank, peak in enumerate([1e15, 2e15])]
    assert measures.throughput(known)["mfu"] == pytest.approx(0.2)
    assert "mfu" not in measures.throughput([known[0], seen(1)])
    assert measures.peak(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_own_time_is_the_devices() -> None:
    device = torch.device("cuda")
    start, matrix = measures.moment(device), torch.randn(4096, 4096, device=device)
    for _ in range(50):
        matrix = (matrix @ matrix).tanh()
    end = measures.moment(device)
    torch.cuda.synchronize()
    seconds = measures.between(start, end)
    assert seconds is not None
    assert 0 < seconds < 60


# who is named


def test_a_straggler_is_one_and_a_half_times_slower_than_the_median() -> None:
    some = [seen(rank, own_s=own_s) for rank, own_s in enumerate([0.5, 0.4, 0.8, 0.6])]
    said = "rank 2 on n1 is slow: 0.8 s a step for its own part, the median is 0.5 s"
    assert measures.slow(some, Watching()) == {2: said}
    assert not measures.slow([one._replace(step_s=10.0) for one in some], Watching())


def test_a_slow_rank_of_two_is_named_once(tmp_path: Path) -> None:
    ranks.run(said_of_a_slow_rank, 2, tmp_path)
    assert (tmp_path / "said").read_text().count("warning: rank 1 on ") == 1


def said_of_a_slow_rank(folder: Path) -> None:
    with (folder / "said").open("a") as file, contextlib.redirect_stderr(file):
        watched(folder, OFTEN, late=1)


def test_a_rank_that_is_slow_again_is_named_again(capsys: pytest.CaptureFixture[str]) -> None:
    with Watch(Run.silent(), Mesh(), folder=None, stages=[("", 1)]) as watch:
        for found in ({1: "slow"}, {1: "slow"}, {}, {1: "slow", 2: "slow too"}):
            watch._name("slow", found)
    assert capsys.readouterr().err.splitlines() == ["warning: slow", "warning: slow", "warning: slow too"]


def test_a_loader_that_takes_more_than_half_of_the_time_is_named() -> None:
    some = [seen(0, wait_s=0.4), seen(1, wait_s=0.6)]
    assert measures.starving(some, Watching()) == {1: "rank 1 on n1 waits for data: 0.6 s of a step's 1 s"}


def test_a_long_wait_for_data_is_said_while_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = Mesh(Parallel(timeout_s=1, watching=Watching(stalled_s=0.1)))
    with Watch(Run.silent(), mesh, folder=None, stages=[("", 1)]) as watch, watch.waiting():
        time.sleep(0.4)
        said = capsys.readouterr().err
    assert said.count("has waited for data for") == 1
    assert said.startswith("warning: rank 0 on ")


# stopping


def test_all_ranks_stop_at_the_same_step_when_one_is_told_to(tmp_path: Path) -> None:
    ranks.run(watched_by_rank, 2, tmp_path, SELDOM, -1, 1)
    for rank in range(2):
        assert [line["step"] for line in lines(tmp_path / ".ranks" / f"rank-{rank:05d}.jsonl")] == [0, 1]


def test_sigterm_does_afterwards_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Watch(Run.silent(), Mesh(), folder=None, stages=[("", 1)]) as watch:
        assert not watch.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.stopping
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loop_in_a_thread_leaves_signals_alone() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def loop() -> None:
        with Watch(Run.silent(), Mesh(), folder=None, stages=[("", 1)]):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert during == [before]


def answers(late: bool) -> list[tuple[bool, ...]]:
    """To the second rank's wish at the second step, said for two steps: nobody can act on a late answer earlier."""
    mesh = joined(Parallel())
    agreement = Agreement(mesh, late=late)
    return [agreement.agreed((mesh.rank == 1 and step in (1, 2), False)) for step in range(5)]


def test_what_one_rank_wishes_all_are_told_at_once_or_one_step_late() -> None:
    no, yes = (False, False), (True, False)
    assert ranks.run(answers, 2, False) == [[no, yes, yes, no, no]] * 2
    assert ranks.run(answers, 2, True) == [[no, no, yes, no, no]] * 2


def test_one_process_is_answered_at_once() -> None:
    assert Agreement(Mesh(), late=True).agreed((True, False)) == (True, False)


# hanging


def sleeps_for_ever() -> None:
    time.sleep(1e6)


def keeps_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(1000)  # PyDLL does not release the lock


def hanging(folder: Path, hang: Callable[[], None], at: int) -> None:
    """Rank 1 (or the only one) hangs in step 2 once it has met the others `at` times in it."""
    mesh = joined(Parallel(timeout_s=1.5, watching=OFTEN))
    with Watch(Run.silent(), mesh, folder=folder, stages=[("", 9)]) as watch:
        for step in range(9):
            if (mesh.rank, step, at) == (mesh.world - 1, 2, 0):
                hang()
            watch.computed()
            mesh.wait()
            if (mesh.rank, step, at) == (mesh.world - 1, 2, 1):
                hang()
            watch.step(step, {})


def stack(folder: Path, rank: int) -> str:
    return (folder / ".ranks" / f"rank-{rank:05d}.stack").read_text()


@pytest.mark.parametrize("at", [0, 1])
def test_a_rank_that_sleeps_ends_all_and_is_named_with_its_stack(tmp_path: Path, at: int) -> None:
    began = time.monotonic()
    assert ranks.ended(hanging, 2, tmp_path, sleeps_for_ever, at) == [HUNG, HUNG]
    assert time.monotonic() - began < 15
    assert "in sleeps_for_ever" in stack(tmp_path, 1)
    assert "in sleeps_for_ever" not in stack(tmp_path, 0).split("no step has ended")[0]
    said = stack(tmp_path, 0) + stack(tmp_path, 1)
    assert said.count("no step has ended for") == 1
    assert "rank 1 holds up the others: it " in said


def test_a_rank_that_keeps_the_interpreters_lock_is_ended_too(tmp_path: Path) -> None:
    assert ranks.ended(hanging, 2, tmp_path, keeps_the_interpreter, 0) == [HUNG, 1]
    assert "in keeps_the_interpreter" in stack(tmp_path, 1)
    assert "rank 1 is stuck or gone: it does not answer" in stack(tmp_path, 0)


def test_one_process_that_hangs_is_ended(tmp_path: Path) -> None:
    assert ranks.ended(hanging, 1, tmp_path, sleeps_for_ever, 0) == [HUNG]
    assert "in sleeps_for_ever" in stack(tmp_path, 0)
    assert "it computes" in stack(tmp_path, 0)


def pausing(folder: Path) -> None:
    mesh = joined(Parallel(timeout_s=1))
    with Watch(Run.silent(), mesh, folder=folder, stages=[("", 2)]) as watch:
        time.sleep(1.5)  # the first step compiles
        watch.step(0, {})
        with watch.pause():
            time.sleep(1.5)
        watch.step(1, {})


def test_the_first_step_and_pauses_may_take_longer(tmp_path: Path) -> None:
    assert ranks.ended(pausing, 1, tmp_path) == [0]


def test_the_verdict_names_who_has_come_least_far() -> None:
    waits, late, early = Stand(7, 1, Phase.WAITS), Stand(7, 0, Phase.LOADS), Stand(6, 3, Phase.COMPUTES)
    assert blamed({0: waits, 1: late}, set()) == "rank 1 holds up the others: it waits for data in step 7"
    assert blamed({0: waits, 1: late, 2: early}, set()) == "rank 2 holds up the others: it computes in step 6"
    assert blamed({0: waits, 1: waits}, set()) == (
        "all ranks stand at the same point: rank 0 may wait for the others in step 7"
    )


def test_who_does_not_answer_is_named_whatever_the_last_news() -> None:
    waits, old = Stand(7, 1, Phase.WAITS), Stand(6, 0, Phase.COMPUTES)
    gone = "rank 1 is stuck or gone: it does not answer, and when last seen it computes in step 6"
    assert blamed({0: waits, 1: old}, {1}) == gone
    assert blamed({0: waits, 1: old, 2: old}, {1}) == f"{gone}; rank 2 holds up the others: it computes in step 6"


@pytest.mark.parametrize("wrong", [{"every_s": 0.0}, {"slow": 1.0}, {"stalled_share": 1.5}, {"stalled_s": -3.0}])
def test_impossible_dials_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Watching(**wrong)
