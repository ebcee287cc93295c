"""Patterns: periodic, and calm from afar."""

import torch

from relic.worlds import textures

U = torch.linspace(0, 1, 200)
NUM_PATTERNS = len(textures.patterns())


def along_u(number: int, u: torch.Tensor, footprint: float) -> torch.Tensor:
    """Mix and value [2, N] of a pattern at v = 0.3."""
    like = torch.ones_like(u)
    return torch.stack(textures.look_up(number * like, u, 0.3 * like, footprint * like))


def test_patterns_repeat_after_a_period():
    for number in range(NUM_PATTERNS):
        torch.testing.assert_close(along_u(number, U + 3, 0.01), along_u(number, U, 0.01), atol=1e-3, rtol=0)


def test_from_afar_a_pattern_is_nearly_its_mean():
    for number, (mix, value) in enumerate(textures.patterns().values()):
        mean = torch.tensor([mix.mean(), value.mean()]).float()
        assert (along_u(number, U, 4.0) - mean[:, None]).abs().mean() < 0.1


def test_blur_brings_nothing_of_the_patterns_below_and_above():
    for number, (mix, value) in enumerate(textures.patterns().values()):
        for found, whole in zip(along_u(number, U, 0.05), (mix, value), strict=True):
            assert whole.min() - 0.01 <= found.min() <= found.max() <= whole.max() + 0.01
