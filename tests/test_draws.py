"""What is random in a training step."""

import torch

from relic.generate.noise import noise
from relic.train.draws import Draws


def test_a_row_draws_the_same_whoever_draws_the_others():
    whole, part = Draws((3, 7), range(6)), Draws((3, 7), range(2, 4))
    for draw in (lambda d: d.normal(2, 3), lambda d: d.uniform(4), lambda d: d.integers(100, 5)):
        assert torch.equal(draw(whole)[2:4], draw(part))


def test_rows_draw_what_they_have_in_common_alike_and_their_own_each():
    first, second = Draws((3, 7), [0]), Draws((3, 7), [1])
    assert first.shared.random() == second.shared.random()
    assert not torch.equal(first.normal(8), second.normal(8))
    assert first.shared.random() != Draws((3, 7), [0]).own[0].random()


def test_steps_and_seeds_draw_apart():
    drawn = [Draws(key, [0]).normal(8) for key in ((3, 7), (3, 8), (4, 7), (3, 7, 0), (3, 7, 1))]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_share_of_the_rows_is_chosen():
    assert abs(Draws((0,), range(2000)).chosen(0.1).float().mean().item() - 0.1) < 0.02


def test_a_walks_noise_is_a_samples_own():
    whole, part = noise((1, 2), (4, 3, 5)), noise((1, 2), (2, 3, 5), first=1)
    assert torch.equal(whole[1:3], part)
    assert not torch.equal(whole[0], whole[1])
