"""Spatial pooling."""

import torch

from relic.memory import pooling
from relic.memory.config import pooled_tokens


def test_the_edges_are_averaged_over_what_there_is():
    x = torch.arange(6.0).reshape(1, 2, 3, 1)  # rows 0 1 2 / 3 4 5
    assert pooling.pool(x, 2).flatten().tolist() == [2.0, 3.5]


def test_token_counts_are_the_papers():
    counts = [pooled_tokens(30, 52, stride) for stride in (1, 2, 4)]
    assert counts == [1560, 390, 104]


def test_stride_one_keeps_everything():
    x = torch.randn(2, 3, 5, 4)
    assert pooling.pool(x, 1) is x


def test_centres_lie_in_the_middle_of_their_cells():
    yx = pooling.centres(4, 6, 4)
    assert yx.shape == (1, 2, 2)
    assert yx.flatten(0, 1).tolist() == [[1.5, 1.5], [1.5, 4.5]]


def test_a_cell_at_the_edge_stands_for_what_there_is():
    found = pooling.log_cells(4, 6, 4).exp()
    torch.testing.assert_close(found, torch.tensor([[16.0, 8.0]]))
