"""Checkpoints of a training."""

import torch

from relic.train.checkpoint import Checkpoint


def test_what_was_saved_comes_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    Checkpoint(tmp_path / "c.pt", {"layer": layer}, 0).save(7)
    other = torch.nn.Linear(3, 2)
    assert Checkpoint(tmp_path / "c.pt", {"layer": other}, 0).load() == 7
    assert torch.equal(other.weight, layer.weight)


def test_nothing_saved_means_step_zero(tmp_path):
    assert Checkpoint(tmp_path / "c.pt", {}, 0).load() == 0


def test_a_half_written_file_is_never_read(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", {"layer": torch.nn.Linear(1, 1)}, 0)
    checkpoint.save(1)
    (tmp_path / "c.new").write_bytes(b"half")
    assert checkpoint.load() == 1


def test_it_saves_only_when_due(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", {}, every_s=3600)
    checkpoint.save_if_due(1)
    assert not checkpoint.path.exists()
    checkpoint.every_s = -1
    checkpoint.save_if_due(2)
    assert checkpoint.load() == 2
