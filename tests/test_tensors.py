"""Safetensors files, one tensor at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from relic.model import tensors

STATE = {
    "a": torch.randn(3, 5),
    "b.c": torch.arange(7),
    "d": torch.randn(4).bfloat16(),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "fp8": torch.randn(2, 3).to(torch.float8_e4m3fn),
}
KINDS = {name: (x.dtype, tuple(x.shape)) for name, x in STATE.items()}


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x.safetensors", KINDS, STATE.__getitem__, {"format": "pt"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name].float(), x.float()) and read[name].dtype == x.dtype for name, x in STATE.items())


def test_parts_are_what_safetensors_reads_and_views_are_the_tensors() -> None:
    state = STATE | {"odd": torch.arange(3, dtype=torch.uint8), "none": torch.zeros(0, 13)}
    data = b"".join(tensors.parts(state))
    for read in (load(data), tensors.views(torch.frombuffer(bytearray(data), dtype=torch.uint8))):
        assert read.keys() == state.keys()
        assert all(read[name].shape == x.shape and read[name].dtype == x.dtype for name, x in state.items())
        assert all(torch.equal(read[name].double(), x.double()) for name, x in state.items())


def test_places_say_what_safetensors_has_written(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    found = tensors.places([tmp_path / "x.safetensors"])
    assert {name: (place.dtype, place.shape) for name, place in found.items()} == KINDS
    assert torch.equal(tensors.read(found["b.c"]), STATE["b.c"])
    assert found["a"].num_bytes == 60


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"x.safetensors is no whole safetensors file"):
        tensors.places([tmp_path / "x.safetensors"])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in "xy":
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"tensor .* is in .*x.safetensors and in .*y.safetensors; give one of them"):
        tensors.places([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


def test_a_killed_write_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def killed(name: str) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tensors.write(tmp_path / "x.safetensors", KINDS, killed)
    assert not (tmp_path / "x.safetensors").exists()
