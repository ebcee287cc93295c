"""What the benchmarks share: seconds, peaks of memory, and the facts that stand beside figures in their JSON."""

import json
import platform
import shlex
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relic.model import config
from relic.model.precision import native_bfloat16
from relic.model.transformer import Transformer

ROOT = Path(__file__).parents[1]
CODE = ("relic", "benchmarks/*.py")  # what figures depend on


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, on CUDA between two events; on a CPU, with one thread, those that this process had, so that
    other processes' do not count."""
    if device.type == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        call()
        return clock() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors made under it, and the most that were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in storages_of((args, kwargs))}
        for storage in storages_of(out):
            if id(storage) not in given and id(storage) not in self.storages:  # not a view
                self.storages.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def freed(self, storage: int, num_bytes: int) -> None:
        self.storages.remove(storage)
        self.now -= num_bytes


def storages_of(tree: Any) -> list[torch.UntypedStorage]:
    """Those of a tree's tensors that take memory."""
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor) and not x.is_meta]


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that a call holds at once, above what there was before: what the allocator hands out on CUDA, the bytes
    of all tensors on a CPU."""
    if device.type == "cpu":
        with Held() as held:
            call()
        return held.most
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, x: Tensor):
        self.x = x


class Graph(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps under it, each storage once, the weights aside, and the most at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self.keep, lambda kept: kept.x)
        self.now = self.most = 0
        self.owners: Counter[int] = Counter()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(self, x: Tensor) -> Kept:
        kept, storage = Kept(x), x.untyped_storage()
        place, num_bytes = storage.data_ptr(), storage.nbytes()
        if place not in self.weights:
            self.now += 0 if self.owners[place] else num_bytes
            self.owners[place] += 1
            self.most = max(self.most, self.now)
            weakref.finalize(kept, self.freed, place, num_bytes)
        return kept

    def freed(self, place: int, num_bytes: int) -> None:
        self.owners[place] -= 1
        self.now -= 0 if self.owners[place] else num_bytes


def random_transformer(cfg: config.Transformer, device: torch.device) -> Transformer:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    with device:
        model = Transformer(cfg)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model


def random_text(cfg: config.Transformer, device: torch.device) -> Tensor:
    """Text as a model takes it: token ids [1, L] or embeddings [1, L, text width]."""
    if cfg.text_vocabulary:
        return torch.randint(1, cfg.text_vocabulary, (1, cfg.text_tokens), device=device)
    return torch.randn(1, cfg.text_tokens, cfg.text_width, device=device)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def facts(device: torch.device) -> dict[str, Any]:
    """What figures were measured with."""
    commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *CODE) else "")
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit,
        "hardware": hardware(device),
        "precision": "bfloat16 autocast" if native_bfloat16(device) else "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def write(path: Path, about: dict[str, Any], rows: Sequence[Any]) -> None:
    """A JSON file of facts and of rows, which are dataclasses."""
    path.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
