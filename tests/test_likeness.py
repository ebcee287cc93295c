"""How like a place a frame is."""

import numpy as np
import pytest

from relic.evaluate import likeness


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 36, 3), np.uint8)


def test_the_ssim_of_equal_pictures_is_one_and_falls_with_noise():
    one, other = pictures(2), pictures(2, seed=1)
    assert likeness.ssim(one, one) == pytest.approx(1)
    near = (0.9 * one + 0.1 * other).astype(np.uint8)
    assert (likeness.ssim(one, other) < 0.1).all()
    assert (likeness.ssim(one, near) > 0.9).all()


def test_ssim_is_the_formula_of_its_source_at_each_window():
    a, b = (pictures(1, seed)[0, :11, :12] for seed in (0, 1))
    far = (np.arange(11) - 5) ** 2
    weight = np.exp(-(far[:, None] + far) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for left in (0, 1):
        for c in range(3):
            x, y = (z[:, left : left + 11, c].astype(float) for z in (a, b))
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            cov = (weight * (x - mx) * (y - my)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert likeness.ssim(a, b) == pytest.approx(np.mean(values))


def test_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="10x36"):
        likeness.ssim(pictures(1)[:, :10], pictures(1)[:, :10])


def test_true_frames_are_recognised_and_shuffled_ones_at_chance():
    frames = pictures(400).reshape(20, 20, 24, 36, 3)
    known, places = likeness.fingerprints(frames), np.arange(20)
    assert likeness.recognised(known, known, places, 0).all()
    mixed = known.reshape(400, -1)[np.random.default_rng(0).permutation(400)].reshape(known.shape)
    assert likeness.recognised(mixed, known, places, 1).mean() < 0.03  # 3 of 400 places would do


def test_a_place_is_recognised_in_its_own_walk_only():
    known = likeness.fingerprints(pictures(6).reshape(2, 3, 24, 36, 3))
    assert likeness.recognised(known[:, [2]], known, np.array([1]), 1).all()
    assert not likeness.recognised(known[::-1, [2]], known, np.array([1]), 1).any()


def test_the_interval_holds_the_mean_and_narrows_with_more_walks():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    few, many = likeness.interval(values[:25]), likeness.interval(values)
    assert few.low < few.mean < few.high
    assert few.high - few.low == pytest.approx(4 / 5, rel=0.3)  # 4 standard deviations over the root of 25
    assert many.high - many.low < 0.4 * (few.high - few.low)


def test_a_share_of_the_gain_is_taken_walk_by_walk():
    whole = np.random.default_rng(0).normal(3.0, 1.0, 50)
    assert likeness.ratio(0.9 * whole, whole) == pytest.approx((0.9, 0.9, 0.9))
