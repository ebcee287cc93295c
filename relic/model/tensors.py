"""Safetensors files read and written one tensor at a time, so that 28 GB of weights pass through little memory; and
tensors in memory as such a file and back, without a copy.

The format: eight bytes that say how long the header is (little endian), the header (JSON: of each tensor the dtype,
the shape and where it lies), the tensors' bytes. safetensors reads a single tensor of it; its writer wants them all at
once.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Place(NamedTuple):
    """Where a tensor lies, and what it is."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def places(files: Sequence[Path]) -> dict[str, Place]:
    """All tensors of safetensors files, by name; only headers are read."""
    found: dict[str, Place] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping)
                    if name in found:
                        raise ValueError(f"tensor {name} is in {found[name].file} and in {file}; give one of them")
                    part = opened.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise ValueError(
                            f"{file}: tensor {name} is {part.get_dtype()}; allowed are {', '.join(DTYPES)}"
                        )
                    found[name] = Place(file, name, DTYPES[part.get_dtype()], tuple(part.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}") from error
    return found


def read(place: Place) -> Tensor:
    """The tensor; the file is closed again, so that its pages may leave the memory."""
    with safe_open(place.file, framework="pt") as opened:
        return opened.get_tensor(place.name)


def parts(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file of tensors on the CPU, part by part: the head, then each tensor's own memory.

    The widest types come first, as safetensors has it, so that each lies where its type may."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    yield memoryview(head({name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names}))
    for name in names:
        yield bytes_of(tensors[name])


def views(data: Tensor) -> dict[str, Tensor]:
    """The tensors of a whole safetensors file in memory, uint8 [bytes], as views of it; `parts` wrote it."""
    (length,) = struct.unpack("<Q", bytes_of(data[:8]))
    described = json.loads(bytes(bytes_of(data[8 : 8 + length])))
    found = {}
    for name, said in described.items():
        start, end = (8 + length + offset for offset in said["data_offsets"])
        found[name] = data[start:end].view(DTYPES[said["dtype"]]).view(said["shape"])
    return found


def head(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What comes before the tensors' bytes, which follow in this order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def bytes_of(tensor: Tensor) -> memoryview:
    """Its own memory, where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file of the tensors named, each made by `make` when its turn comes; beside, then renamed."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(head(tensors, metadata))
        for name, (dtype, shape) in tensors.items():
            tensor = make(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), f"{name}: {tensor.dtype}, {tensor.shape}"
            file.write(bytes_of(tensor))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
