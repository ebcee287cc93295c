import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from relic.data import sampler
from relic.data.sampler import ROUND, Set

MIXED = (
    Set(size=7, share=1, weights=(0.5, 1.0, 2.0, 1.0, 1.0, 0.5, 1.0)),
    Set(size=50, first=7, share=2.5),
    Set(size=2000, first=57, share=0.5),
)


def drawn(steps: range, *, batch: int = 8, sets: Sequence[Set] = (Set(size=30),)) -> list[int]:
    return [index for step in steps for index in sampler.indices(7, step, global_batch=batch, sets=sets)]


@pytest.mark.parametrize("sets", [(Set(size=30),), MIXED])
def test_a_step_draws_the_same_whatever_was_drawn_before(sets):
    whole = [drawn(range(step, step + 1), sets=sets) for step in range(20)]
    sampler.epoch_order.cache_clear()
    sampler.round_order.cache_clear()
    assert [drawn(range(step, step + 1), sets=sets) for step in reversed(range(20))] == whole[::-1]


def test_every_round_of_a_mixture_has_the_sets_shares():
    found = drawn(range(3), batch=ROUND, sets=MIXED)
    for first in (0, ROUND, 2 * ROUND):
        counts = Counter((index >= 7) + (index >= 57) for index in found[first : first + ROUND])
        assert counts == {0: 2500, 1: 6250, 2: 1250}


def test_a_set_in_a_mixture_is_drawn_as_it_is_alone():
    batch = 400
    found = drawn(range(60), batch=batch, sets=MIXED)  # more than two rounds, and epochs of all sets
    for each in MIXED:
        mine = [index - each.first for index in found if each.first <= index < each.first + each.size]
        assert len(mine) > each.size
        assert mine == drawn(range(60), batch=batch, sets=[replace(each, first=0)])[: len(mine)]


def test_shares_are_in_any_unit():
    halves, same = ([Set(size=9, share=share), Set(size=9, first=9, share=share)] for share in (0.5, 3))
    assert drawn(range(9), sets=halves) == drawn(range(9), sets=same)


def test_sets_take_turns_in_an_order_of_the_seed_and_of_the_round():
    shares = (1.0, 1.0)
    orders = [sampler.round_order(seed, 8, number, shares)[0].tolist() for seed in (0, 1) for number in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_an_epoch_draws_every_sample_once_and_the_next_in_another_order():
    two = drawn(range(15), batch=4)
    assert sorted(two[:30]) == sorted(two[30:]) == list(range(30))
    assert two[:30] != two[30:]


def test_seeds_and_batch_sizes_have_orders_of_their_own():
    one, two = (sampler.indices(seed, 0, global_batch=8, sets=[Set(size=30)]) for seed in (1, 2))
    assert one != two
    assert drawn(range(2), batch=4) != drawn(range(1), batch=8)


def test_the_order_is_the_one_it_always_was():
    assert sampler.indices(0, 0, global_batch=10, sets=[Set(size=10)]) == [0, 1, 2, 5, 4, 8, 7, 9, 3, 6]


def test_a_sample_is_drawn_floor_or_ceil_of_its_weight_times_in_an_epoch():
    weights = tuple(np.random.default_rng(0).uniform(0.2, 3, 30))
    expected = 30 * np.array(weights) / sum(weights)
    for epoch in range(20):
        found = Counter(sampler.epoch_order(0, 8, epoch, 30, weights).tolist())
        assert all(np.floor(expected[i]) <= found[i] <= np.ceil(expected[i]) for i in range(30))


def test_draws_follow_the_weights_in_the_long_run():
    weights = (0.25, 1.0, 4.0)
    found = Counter(drawn(range(3000), batch=3, sets=[Set(size=3, weights=weights)]))
    np.testing.assert_allclose([found[i] / 9000 for i in range(3)], np.array(weights) / 5.25, atol=0.01)


def test_a_sample_of_weight_zero_is_never_drawn():
    assert set(drawn(range(500), batch=3, sets=[Set(size=3, weights=(0.0, 1.0, 0.0))])) == {1}


def test_batches_and_sets_without_samples_and_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="batch of 0 samples"):
        drawn(range(1), batch=0)
    with pytest.raises(ValueError, match="2 weights for 30 samples"):
        Set(size=30, weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="no samples"):
        Set(size=0)


def test_substitutes_are_of_the_set_by_its_weights_and_the_samples_own():
    found = list(itertools.islice(sampler.substitutes(3, replace(MIXED[0], first=100)), 4000))
    assert found[:50] == list(itertools.islice(sampler.substitutes(3, replace(MIXED[0], first=100)), 50))
    assert found[:50] != list(itertools.islice(sampler.substitutes(4, replace(MIXED[0], first=100)), 50))
    counts = [Counter(found)[index] / 4000 for index in range(100, 107)]
    np.testing.assert_allclose(counts, np.array(MIXED[0].weights) / 7, atol=0.03)


def skewed() -> np.ndarray:
    """Shares [200, 13] of walks: all go forward, many turn right, few turn left or go back, nothing else occurs."""
    rng = np.random.default_rng(0)
    share = np.zeros((200, 13))
    share[:, 0] = rng.uniform(0.6, 1, 200)
    share[:140, 9] = rng.uniform(0.1, 0.5, 140)
    share[140:160, 8] = rng.uniform(0.1, 0.5, 20)
    share[150:170, 1] = rng.uniform(0.1, 0.5, 20)
    share[::10, 12] = 0.1
    return share


def rarest_to_commonest(share: np.ndarray, weights) -> float:
    drawn_share = np.asarray(weights) @ share
    occurring = drawn_share[share.any(0)]
    return occurring.min() / occurring.max()


def test_balanced_weights_draw_rare_actions_more_often():
    share = skewed()
    weights = sampler.balanced_weights(share, bound=4)
    assert rarest_to_commonest(share, weights) > 2 * rarest_to_commonest(share, np.ones(200))
    for rare, common in ((8, 9), (1, 9)):
        assert np.array(weights)[share[:, rare] > 0].mean() > 2 * np.array(weights)[share[:, common] > 0].mean()


def test_the_sampler_draws_what_the_weights_promise():
    share = skewed()
    weights = sampler.balanced_weights(share, bound=4)
    draws = drawn(range(250), sets=[Set(size=200, weights=weights)])
    np.testing.assert_allclose(share[draws].mean(0), np.array(weights) @ share / sum(weights), atol=0.005)


def test_rounds_climb_the_sum_of_logarithms():
    share = skewed()

    def value(rounds):
        weights = np.array(sampler.balanced_weights(share, rounds=rounds))
        return np.log((weights @ share / weights.sum())[share.any(0)]).sum()

    values = [value(rounds) for rounds in (0, 1, 5, 50)]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.5


@pytest.mark.parametrize("bound", [1.0, 1.5, 4.0, 100.0])
def test_weights_stay_within_their_bound(bound):
    weights = np.array(sampler.balanced_weights(skewed(), bound=bound))
    assert weights.min() >= 1 / bound
    assert weights.max() <= bound
    assert weights.mean() == pytest.approx(1)


def test_samples_that_are_alike_have_equal_weights():
    assert sampler.balanced_weights([[0.5] * 12 + [0.0]] * 5) == pytest.approx([1.0] * 5)
    assert sampler.balanced_weights([[0.0] * 13] * 3) == (1.0, 1.0, 1.0)
