from pathlib import Path

import pytest

from relic import verdict
from relic.endings import LAST_WORDS, outcome
from relic.verdict import Verdict


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(verdict.FILE, str(tmp_path / "verdict"))
    monkeypatch.setenv(verdict.RESTART, "0")
    return tmp_path / "verdict"


def test_the_first_verdict_counts(file: Path) -> None:
    verdict.write(verdict.MISTAKE, "the batch is 3;\n it must be even")
    verdict.write(verdict.FAILURE, "a peer is gone")
    assert verdict.read(file) == Verdict(verdict.MISTAKE, "the batch is 3; it must be even")


@pytest.mark.parametrize("code", [verdict.FAILURE, verdict.STOPPED])  # the second: a store that does not answer
def test_any_verdict_counts_more_than_that_of_who_was_asked_to_end(code: int, file: Path) -> None:
    for text in ("saved", "saved too"):
        verdict.write(verdict.STOPPED, text, asked=True)
    assert verdict.read(file) == Verdict(verdict.STOPPED, "saved", asked=True)
    verdict.write(code, "the first reason")
    verdict.write(verdict.FAILURE, "a peer is gone")
    assert verdict.read(file) == Verdict(code, "the first reason")


def test_a_restart_voids_what_was_said_before_and_only_that(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict.write(verdict.FAILURE, "first")
    verdict.begin()
    assert verdict.read(file) == Verdict(verdict.FAILURE, "first")
    monkeypatch.setenv(verdict.RESTART, "1")
    verdict.begin()
    assert verdict.read(file) is None
    verdict.write(verdict.FAILURE, "second")
    verdict.begin()
    assert verdict.read(file) == Verdict(verdict.FAILURE, "second")


def test_without_a_launch_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(verdict.FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    verdict.begin()
    verdict.write(verdict.FAILURE, "nobody reads it")
    assert not list(tmp_path.iterdir())


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (ValueError("the batch is 3"), verdict.MISTAKE, "the batch is 3"),
        (RuntimeError("it broke"), verdict.FAILURE, "teacher failed: RuntimeError: it broke"),
        (OutOfMemoryError("tried 2 GiB"), verdict.OUT_OF_MEMORY, "teacher ran out of memory; less is"),
        (MemoryError(), verdict.OUT_OF_MEMORY, "relic plan"),
        (OSError(28, "No space left on device", "/data"), verdict.FAILURE, "the disk is full at /data"),
        (verdict.Unreachable("s3://a is away"), verdict.STOPPED, "s3://a is away; the same command goes on"),
    ],
)
def test_a_command_that_fails_writes_its_verdict(error: Exception, code: int, part: str, file: Path) -> None:
    with outcome("teacher") as result:
        raise error
    said = verdict.read(file)
    assert said is not None
    assert (result["code"], said.code, said.asked) == (code, code, False)
    assert part in said.text


def test_the_last_words_go_where_kubernetes_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAST_WORDS, str(tmp_path / "termination-log"))
    with outcome("teacher"):
        raise ValueError("the batch is 3;\n it must be even")
    assert (tmp_path / "termination-log").read_text() == "relic: the batch is 3; it must be even"
