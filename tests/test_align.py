"""Umeyama's similarity."""

import pytest
import torch

from relic.geometry import align, se3


def test_a_similarity_is_found_again():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(30, 3, dtype=torch.float64, generator=generator)
    rotation = se3.exp(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    translation = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = align.umeyama(source, 2.5 * source @ rotation.mT + translation)
    for value, wanted in zip(found, (torch.tensor(2.5, dtype=torch.float64), rotation, translation), strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_mirrored_set_still_gets_a_rotation():
    source = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, rotation, _ = align.umeyama(source, source * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))


def test_points_that_coincide_are_refused():
    with pytest.raises(ValueError, match="5 source points coincide"):
        align.umeyama(torch.ones(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64))


def test_a_straight_line_is_accepted():
    line = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    scale, _, _ = align.umeyama(line, 3 * line)
    torch.testing.assert_close(scale, torch.tensor(3.0, dtype=torch.float64))
