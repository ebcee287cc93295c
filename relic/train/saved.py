"""Reading checkpoints (train/checkpoint.py): the newest whole one, parts of its tensors, and a plain file of them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relic import artifacts, place
from relic.artifacts import MANIFEST
from relic.model import tensors
from relic.parallel.mesh import Mesh
from relic.place import Place
from relic.train.config import ExportCheckpoint
from relic.train.fragments import gap

MOVED = "a training goes on with the configuration that it began with, or elsewhere from the start"
Described = tuple[tuple[int, ...], torch.dtype]  # shape of a whole tensor, dtype


class Saved:
    """A checkpoint that is whole."""

    def __init__(self, where: Place, name: str, manifest: Mapping[str, Any]):
        self.place, self.name = where, name
        self.step: int = manifest["step"]
        self.facts: dict[str, Any] = manifest["facts"]
        self.tensors: dict[str, Described] = {}
        self.pieces: dict[str, list[tuple[int, int, int, str]]] = {}  # start, length, byte in the file, file
        for file in manifest["files"]:
            for tensor, entry in file["tensors"].items():
                self.tensors[tensor] = tuple(entry["shape"]), tensors.DTYPES[entry["dtype"]]
                self.pieces.setdefault(tensor, []).extend((*piece, file["file"]) for piece in entry["pieces"])

    def check(self, expected: Sequence[Mapping[str, Described]]) -> None:
        """ValueError where the tensors are not those that the processes, together, expect."""
        wanted = {name: described for each in expected for name, described in each.items() if math.prod(described[0])}
        for name in sorted(wanted.keys() ^ self.tensors.keys()):
            said = "has no" if name in wanted else "also has the"
            raise ValueError(f"the checkpoint {self.name} in {self.place.uri} {said} tensor {name}; {MOVED}")
        for name, (shape, dtype) in wanted.items():
            if self.tensors[name] != (shape, dtype):
                raise ValueError(
                    f"the checkpoint {self.name} in {self.place.uri} has {name} as {self.tensors[name]}, and not as "
                    f"{(shape, dtype)}; {MOVED}"
                )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened tensor, from the files that hold them."""
        dtype = self.tensors[name][1]
        found = torch.empty(stop - start, dtype=dtype)
        for begin, count, byte, file in self.pieces[name]:
            first, last = max(start, begin), min(stop, begin + count)
            if first < last:
                at = byte + (first - begin) * dtype.itemsize
                data = self.place.read(f"{self.name}/{file}", at, at + (last - first) * dtype.itemsize)
                found[first - start : last - start] = torch.frombuffer(bytearray(data), dtype=dtype)
        return found

    def whole(self, name: str) -> Tensor:
        shape = self.tensors[name][0]
        return self.read(name, 0, math.prod(shape)).view(shape)


def newest(where: Place, mesh: Mesh) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, the same for all processes, and the names of those passed over for it.

    Process 0 reads the manifests; the files are hashed by one process each."""
    passed: list[str] = []
    files = mesh.said_by_first(where.files() if mesh.is_first else None)
    for name in sorted({folder_of(file) for file in files}, reverse=True):
        manifest, fault = mesh.said_by_first(manifest_of(where, name, files) if mesh.is_first else None)
        if not fault:
            mine = (fault_of(where, name, entry, files) for entry in manifest["files"][mesh.rank :: mesh.world])
            faults = mesh.said_by_all(next(filter(None, mine), ""))
            fault = next(filter(None, faults), "")
        if not fault:
            return Saved(where, name, manifest), passed
        passed.append(name)
        if mesh.is_first:
            print(f"the checkpoint {name} in {where.uri} is passed over for an older one: {fault}", flush=True)
    return None, passed


def manifest_of(where: Place, name: str, files: Sequence[str]) -> tuple[dict[str, Any], str]:
    """A checkpoint's manifest, and what is wrong with it."""
    if f"{name}/{MANIFEST}" not in files:
        return {}, f"it has no {MANIFEST}, so its writing was cut off"
    try:
        manifest = json.loads(where.read(f"{name}/{MANIFEST}"))
    except ValueError as error:
        return {}, f"{MANIFEST} is damaged ({error})"
    if not isinstance(manifest, dict) or manifest.pop("sha256", "") != artifacts.digest(manifest):
        return {}, f"{MANIFEST} is damaged (it does not have its own sha256)"
    for tensor, (shape, pieces) in held(manifest).items():
        if (at := gap(shape, pieces)) is not None:
            return {}, f"no file of {MANIFEST} holds element {at} of {tensor}"
    return manifest, ""


def held(manifest: Mapping[str, Any]) -> dict[str, tuple[list[int], list[list[int]]]]:
    """Of every tensor the shape and all pieces."""
    found: dict[str, tuple[list[int], list[list[int]]]] = {}
    for file in manifest["files"]:
        for name, entry in file["tensors"].items():
            found.setdefault(name, (entry["shape"], []))[1].extend(entry["pieces"])
    return found


def fault_of(where: Place, name: str, entry: Mapping[str, Any], files: Sequence[str]) -> str:
    """What is wrong with a file; empty: nothing."""
    file = entry["file"]
    if f"{name}/{file}" not in files:
        return f"{file} is missing"
    size, digest = where.measured(f"{name}/{file}")
    if size != entry["bytes"]:
        return f"{file} has {size} bytes, not {entry['bytes']}"
    return "" if digest == entry["sha256"] else f"{file} has another sha256 than {MANIFEST} says"


def folder_of(file: str) -> str:
    return file.partition("/")[0]


def step_of(name: str) -> int:
    return int(name.partition("-")[0])


def export(cfg: ExportCheckpoint) -> None:
    """Writes the whole tensors of one part of the newest whole checkpoint as model.safetensors, one by one; and
    config.json, where the fact "config" has one for the part's model."""
    found, _ = newest(place.opened(cfg.source[0]), Mesh())
    if found is None:
        raise ValueError(f"{cfg.source[0]} holds no whole checkpoint; give the folder that holds STEP-… folders")
    names = {name.removeprefix(f"{cfg.part}/"): name for name in found.tensors if name.startswith(f"{cfg.part}/")}
    if not names:
        parts = sorted({"/".join(name.split("/")[:2]) for name in found.tensors})
        raise ValueError(f"part is {cfg.part!r}; allowed are {', '.join(parts)}")
    described = {short: (found.tensors[name][1], found.tensors[name][0]) for short, name in names.items()}
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    tensors.write(out / "model.safetensors", described, lambda short: found.whole(names[short]))
    config = found.facts.get("config", {}).get(cfg.part.partition("/")[0])
    if config is not None:
        artifacts.write_json(out / "config.json", config)
