"""Rotary embedding and YaRN."""

import torch
from tiny_models import grid, turned_by

from relic.model import rope


def angles(times: list[float], frames: int = 8) -> torch.Tensor:
    return rope.angles(grid(torch.tensor(times), 2, 3), rope.frequencies(64, 8, frames))


def test_scores_depend_on_relative_positions_only():
    q, k = torch.randn(1, 6, 1, 64), torch.randn(1, 6, 1, 64)
    near = (turned_by(q, angles([2.0])) * turned_by(k, angles([0.0]))).sum(-1)
    far = (turned_by(q, angles([7.0])) * turned_by(k, angles([5.0]))).sum(-1)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


def test_rotation_keeps_lengths():
    x = torch.randn(2, 12, 3, 64)
    rotated = turned_by(x, angles([1.0, 2.0]))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_a_factor_of_one_is_plain_rope():
    assert torch.equal(rope.frequencies(64, 8, 8), rope.frequencies(64, 8, 4))


def test_yarn_keeps_fast_frequencies_and_slows_slow_ones_by_the_factor():
    plain, longer = rope.frequencies(128, 21, 21)[:, 0], rope.frequencies(128, 21, 80)[:, 0]
    assert longer[0] == plain[0]
    torch.testing.assert_close(longer[21], plain[21] * 21 / 80)


def test_space_is_left_alone_by_yarn():
    assert torch.equal(rope.frequencies(64, 8, 16)[:, 1:], rope.frequencies(64, 8, 8)[:, 1:])


def test_a_heads_channels_are_split_as_wans():
    table = rope.frequencies(128, 21, 21)
    assert [(table[:, axis] > 0).sum().item() for axis in range(3)] == [22, 21, 21]


def test_complex_and_real_numbers_turn_alike():
    x, by = torch.randn(2, 12, 3, 64), rope.cos_sin(angles([1.0, 7.0]))
    real = rope.turned_pairs(x.unflatten(-1, (-1, 2)), by).flatten(-2)
    torch.testing.assert_close(rope.turn(x, by), real, atol=1e-6, rtol=0)
