"""Which samples a step takes: a pure function of (seed, step, rank, world), so that a resume is exact and elastic.

An epoch of N draws holds sample i floor(N p_i) or ceil(N p_i) times, p_i its share of the weights (systematic
resampling: one random offset, then steps of an N-th of their sum), so without weights exactly once, in an order of its
own. Only Philox's raw stream is used, which numpy keeps from version to version.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Weights = tuple[float, ...]


def indices(
    seed: int,
    step: int,
    *,
    num_samples: int,
    global_batch: int,
    weights: Weights | None = None,
    rank: int = 0,
    world: int = 1,
) -> list[int]:
    """Rank `rank`'s slice of the samples of a step's global batch; the batch does not depend on rank or world."""
    if num_samples < 1:
        raise ValueError("there are no samples to draw from")
    if world < 1 or global_batch < 1 or global_batch % world or not 0 <= rank < world:
        raise ValueError(
            f"rank {rank} of {world} cannot take its part of a batch of {global_batch}; it must divide evenly"
        )
    if weights is not None and (len(weights) != num_samples or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(
            f"there are {len(weights)} weights for {num_samples} samples; one each is needed, none negative"
        )
    share = global_batch // world
    first = step * global_batch + rank * share
    places = (divmod(place, num_samples) for place in range(first, first + share))
    return [int(epoch_order(seed, global_batch, epoch, num_samples, weights)[at]) for epoch, at in places]


@lru_cache(4)
def epoch_order(seed: int, global_batch: int, epoch: int, num_samples: int, weights: Weights | None) -> np.ndarray:
    """The N draws of an epoch in order, int64 [N]. The batch size counts, so that a stage with another has its own."""
    raw = np.random.Philox(np.random.SeedSequence([seed, global_batch, epoch])).random_raw(num_samples + 1)
    if weights is None:
        draws = np.arange(num_samples)
    else:
        ends = np.cumsum(weights)
        offset = (raw[-1] >> np.uint64(11)) / 2.0**53
        draws = np.searchsorted(ends, (np.arange(num_samples) + offset) * (ends[-1] / num_samples), side="right")
        draws = np.minimum(draws, num_samples - 1)
    return draws[np.argsort(raw[:-1], kind="stable")]


def balanced_weights(action_share: Sequence[Sequence[float]], *, bound: float = 2.0, rounds: int = 50) -> Weights:
    """Weights of mean 1 under which rare actions are drawn more often; a sample is drawn at most `bound` times as often
    as without them, and at least 1 / bound times.

    action_share [N, 13]: how much of a sample each action is active. With q_a = sum_i w_i share_ia, the weights climb
    sum_a log q_a over the actions that occur, by w_i <- w_i mean_a(share_ia / q_a) (the EM step for mixture weights;
    its first round is inverse frequency), cut to the bounds each round; without them a few clips would take it all.
    On 1038 walks in Doom, whose rarest action is a step down, the rarest goes from 0.037 of the commonest to 0.067 with
    bound 2 and to 0.103 with 4, at an effective number of samples of 67 and 32 %: hence 2."""
    if bound < 1:
        raise ValueError(f"bound is {bound}; weights are kept within 1 / bound and bound, so it must be at least 1")
    share = np.asarray(action_share, np.float64)
    share = share[:, share.any(0)]
    weights = np.ones(len(share))
    for _ in range(rounds if share.size else 0):
        weights = bounded(weights * (share / (weights @ share)).mean(1), bound)
    return tuple(weights.tolist())


def bounded(weights: np.ndarray, bound: float) -> np.ndarray:
    """Weights scaled and then cut to [1 / bound, bound], by the scale at which their mean is 1 (by bisection)."""
    low, high = -50.0, 50.0  # logarithms of the scale
    for _ in range(60):
        middle = (low + high) / 2
        cut = np.clip(np.exp(middle) * weights, 1 / bound, bound)
        low, high = (low, middle) if cut.mean() > 1 else (middle, high)
    return cut
