"""Who is who among the processes of a training."""

import os

import pytest
import ranks
import torch

import relic
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel


@pytest.mark.parametrize(
    ("cfg", "world", "batch", "said"),
    [
        (Parallel(), 3, 4, "a batch of 4 samples cannot be shared by 3 groups of 1 process"),
        (Parallel(sequence=2), 4, 3, "a batch of 3 samples cannot be shared by 2 groups of 2 process"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(cfg: Parallel, world: int, batch: int, said: str) -> None:
    mesh = meshes.Mesh(device="cpu")
    mesh.cfg, mesh.groups = cfg, world // cfg.sequence
    with pytest.raises(ValueError, match=said):
        mesh.rows(batch)


def test_a_sequence_that_the_processes_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence is 2; it must divide the 3 processes"):
        meshes.Mesh(Parallel(sequence=2), world=3, device="cpu")


def test_pieces_are_the_rows_in_order() -> None:
    mesh = meshes.Mesh(Parallel(samples=3), device="cpu")
    assert mesh.pieces(8) == [range(0, 3), range(3, 6), range(6, 8)]
    assert sum(mesh.share(piece, 8) for piece in mesh.pieces(8)) == pytest.approx(1)


def told() -> tuple[int, int, range, list[int]]:
    mesh = meshes.joined(Parallel(sequence=2))
    return mesh.rank, mesh.group, mesh.rows(4), mesh.said_by_all(mesh.rank)


def test_neighbours_share_rows_and_groups_do_not() -> None:
    found = ranks.run(told, 4)
    assert [(rank, group, list(rows)) for rank, group, rows, _ in found] == [
        (0, 0, [0, 1]), (1, 0, [0, 1]), (2, 1, [2, 3]), (3, 1, [2, 3]),
    ]  # fmt: skip
    assert all(said == [0, 1, 2, 3] for *_, said in found)


def averaged() -> list[torch.Tensor]:
    mesh = meshes.joined(Parallel(bucket=5))  # so that a bucket is full, and a tensor larger than one
    tensors = [torch.full(shape, float(mesh.rank)) for shape in ((2,), (2, 2), (7,), ())]
    mesh.average(tensors)
    return tensors


def test_tensors_become_their_means() -> None:
    for tensors in ranks.run(averaged, 2):
        assert [tuple(tensor.shape) for tensor in tensors] == [(2,), (2, 2), (7,), ()]
        assert all((tensor == 0.5).all() for tensor in tensors)


def other_version() -> str:
    if os.environ["RANK"] == "1":
        relic.__version__ = "0.0.0"
    with pytest.raises(ValueError, match="all processes must have the same") as error:
        meshes.joined(Parallel())
    return str(error.value)


def test_versions_that_differ_are_said_by_all() -> None:
    for said in ranks.run(other_version, 2):
        assert "0.0.0" in said
        assert "in process 1" in said
