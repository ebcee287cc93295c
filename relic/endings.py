"""However a command ends: one sentence on stderr, an exit code, and a verdict for who launched it. Loads no torch."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from relic import verdict

LAST_WORDS = "RELIC_LAST_WORDS"  # the variable with a file that takes the sentence too: a pod's termination message
FULL_DISK = ("No space left on device", "disk is full")  # what is said of it by no OSError: safetensors; sqlite
LESS_MEMORY = "less is needed with fewer samples at once, checkpointing, or more GPUs: `relic plan` says how much"


@contextlib.contextmanager
def outcome(command: str) -> Iterator[dict[str, int]]:
    """Turns what a command raises into one sentence on stderr, an exit code, and a verdict for who launched it."""
    result = {"code": 0}
    verdict.begin()
    try:
        yield result
    except verdict.Stopped as stopped:
        result["code"] = end(stopped, verdict.STOPPED, str(stopped), asked=True)
    except verdict.Unreachable as away:
        result["code"] = end(away, verdict.STOPPED, f"{away}; the same command goes on")
    except KeyboardInterrupt:
        print("relic: stopped; run the same command again to go on", file=sys.stderr)
        result["code"] = 130
    except ValueError as error:
        result["code"] = end(error, verdict.MISTAKE, str(error))
    except SystemExit as error:
        result["code"] = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except Exception as error:
        if full_disk(error):
            where = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", ())), command)
            text = f"the disk is full at {where}; free some space and run the same command again to go on"
            result["code"] = end(error, verdict.FAILURE, text)
        elif out_of_memory(error):
            advice = str(error) if isinstance(error, MemoryError) and str(error) else LESS_MEMORY
            result["code"] = end(error, verdict.OUT_OF_MEMORY, f"{command} ran out of memory; {advice}")
        else:
            result["code"] = end(error, verdict.FAILURE, f"{command} failed: {type(error).__name__}: {error}")


def out_of_memory(error: BaseException) -> bool:
    """Of Python, or of torch, which need not be loaded to be recognised."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or any(mark in str(error) for mark in FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def end(error: BaseException, code: int, text: str, *, asked: bool = False) -> int:
    """Say how a command ended, to a person and to who launched it."""
    say(error, text)
    verdict.write(code, text, asked=asked)
    return code


def say(error: BaseException, text: str) -> None:
    if os.environ.get("RELIC_DEBUG") == "1":
        traceback.print_exception(error)
    last_words(text)


def last_words(text: str) -> None:
    """The sentence, on stderr and where Kubernetes looks for it."""
    sentence = f"relic: {' '.join(text.split())}"
    print(sentence, file=sys.stderr, flush=True)
    if LAST_WORDS in os.environ:
        Path(os.environ[LAST_WORDS]).write_text(sentence)
