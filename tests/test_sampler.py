from collections import Counter

import numpy as np
import pytest

from relic.data import sampler


def drawn(steps: range, *, batch: int = 8, **kwargs) -> list[int]:
    return [
        index
        for step in steps
        for index in sampler.indices(7, step, global_batch=batch, **{"num_samples": 30, **kwargs})
    ]


def test_a_step_draws_the_same_whatever_was_drawn_before():
    whole = [sampler.indices(7, step, num_samples=30, global_batch=8) for step in range(20)]
    sampler.epoch_order.cache_clear()
    assert [sampler.indices(7, step, num_samples=30, global_batch=8) for step in reversed(range(20))] == whole[::-1]


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("weights", [None, tuple(np.linspace(1, 3, 30))])
def test_the_global_batch_does_not_depend_on_the_world(world, weights):
    for step in (0, 3, 17):
        parts = [drawn(range(step, step + 1), rank=rank, world=world, weights=weights) for rank in range(world)]
        assert [i for part in parts for i in part] == drawn(range(step, step + 1), weights=weights)


def test_an_epoch_draws_every_sample_once_and_the_next_in_another_order():
    two = drawn(range(15), batch=4)
    assert sorted(two[:30]) == sorted(two[30:]) == list(range(30))
    assert two[:30] != two[30:]


def test_seeds_and_batch_sizes_have_orders_of_their_own():
    assert sampler.indices(1, 0, num_samples=30, global_batch=8) != sampler.indices(
        2, 0, num_samples=30, global_batch=8
    )
    assert drawn(range(2), batch=4) != drawn(range(1), batch=8)


def test_the_order_is_the_one_it_always_was():
    assert sampler.indices(0, 0, num_samples=10, global_batch=10) == [0, 1, 2, 5, 4, 8, 7, 9, 3, 6]


def test_a_sample_is_drawn_floor_or_ceil_of_its_weight_times_in_an_epoch():
    weights = tuple(np.random.default_rng(0).uniform(0.2, 3, 30))
    expected = 30 * np.array(weights) / sum(weights)
    for epoch in range(20):
        found = Counter(sampler.epoch_order(0, 8, epoch, 30, weights).tolist())
        assert all(np.floor(expected[i]) <= found[i] <= np.ceil(expected[i]) for i in range(30))


def test_draws_follow_the_weights_in_the_long_run():
    weights = (0.25, 1.0, 4.0)
    found = Counter(drawn(range(3000), batch=3, num_samples=3, weights=weights))
    np.testing.assert_allclose([found[i] / 9000 for i in range(3)], np.array(weights) / 5.25, atol=0.01)


def test_a_sample_of_weight_zero_is_never_drawn():
    assert set(drawn(range(500), batch=3, num_samples=3, weights=(0.0, 1.0, 0.0))) == {1}


@pytest.mark.parametrize(("rank", "world", "batch"), [(0, 3, 8), (4, 4, 8), (-1, 2, 8), (0, 0, 8), (0, 1, 0)])
def test_a_batch_that_cannot_be_shared_is_refused(rank, world, batch):
    with pytest.raises(ValueError, match=f"rank {rank} of {world} .* batch of {batch}"):
        drawn(range(1), batch=batch, rank=rank, world=world)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 weights for 30 samples"):
        drawn(range(1), weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="no samples"):
        drawn(range(1), num_samples=0)


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
    draws = drawn(range(250), num_samples=200, weights=weights)
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
