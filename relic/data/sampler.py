"""Which samples a step takes: a pure function of (seed, step), so that a resume is exact, on any number of processes.

An epoch of N draws from a set holds sample i floor(N p_i) or ceil(N p_i) times, p_i its share of the weights
(systematic resampling: one random offset, then steps of an N-th of their sum), so without weights exactly once, in an
order of its own. Several sets take turns: of every ROUND draws each has its share, in an order of its own, and draw n
of a set is the one that it would be without the others. Only Philox's raw stream is used, which numpy keeps from
version to version.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Weights = tuple[float, ...]
ROUND = 10_000  # draws


@dataclass(frozen=True, kw_only=True)
class Set:
    """Samples that are drawn from together."""

    size: int
    first: int = 0  # number of its first sample
    share: float = 1.0  # of the draws, in the unit of the other sets'
    weights: Weights | None = None  # of the samples; None: all alike

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("there are no samples to draw from")
        weights = self.weights
        if weights is not None and (len(weights) != self.size or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(
                f"there are {len(weights)} weights for {self.size} samples; one each is needed, none negative"
            )


def indices(seed: int, step: int, *, global_batch: int, sets: Sequence[Set]) -> list[int]:
    """The samples of a step's global batch, of which every process takes its rows."""
    if global_batch < 1:
        raise ValueError(f"a batch of {global_batch} samples cannot be drawn; it must have at least 1")
    shares = tuple(each.share for each in sets)
    orders: dict[tuple[int, int], np.ndarray] = {}
    found = []
    for place in range(step * global_batch, (step + 1) * global_batch):
        which, number = turn(seed, global_batch, place, shares)
        drawn = sets[which]
        epoch, at = divmod(number, drawn.size)
        if (which, epoch) not in orders:  # to look it up is to hash all weights
            orders[which, epoch] = epoch_order(seed, global_batch, epoch, drawn.size, drawn.weights)
        found.append(drawn.first + int(orders[which, epoch][at]))
    return found


def turn(seed: int, global_batch: int, place: int, shares: tuple[float, ...]) -> tuple[int, int]:
    """The set that a draw is from, and how many draws from it come before."""
    number, at = divmod(place, ROUND)
    which, before = round_order(seed, global_batch, number, shares)
    return int(which[at]), number * int(quotas(shares)[which[at]]) + int(before[at])


@lru_cache(4)
def round_order(seed: int, global_batch: int, number: int, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The sets of a round's draws in order, int64 [ROUND], and how many draws of the round from the same set come
    before each."""
    raw = np.random.Philox(np.random.SeedSequence([seed, global_batch, number, len(shares)])).random_raw(ROUND)
    which = np.repeat(np.arange(len(shares)), quotas(shares))[np.argsort(raw, kind="stable")]
    before = np.empty(ROUND, np.int64)
    for each in range(len(shares)):
        before[which == each] = np.arange((which == each).sum())
    return which, before


@lru_cache(4)
def quotas(shares: tuple[float, ...]) -> np.ndarray:
    """The draws of a round that each set has, int64, by cumulative rounding."""
    ends = np.cumsum(shares)
    return np.diff(np.rint(ends / ends[-1] * ROUND).astype(np.int64), prepend=0)


@lru_cache(16)
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


def substitutes(index: int, drawn: Set) -> Iterator[int]:
    """Samples of a set by weight, without end, to take in the place of one of them. A function of that sample alone, so
    that every process knows them."""
    ends = np.cumsum(drawn.weights or np.ones(drawn.size))
    stream = np.random.Philox(np.random.SeedSequence([index]))
    while True:
        point = (int(stream.random_raw()) >> 11) / 2.0**53 * ends[-1]
        yield drawn.first + min(int(np.searchsorted(ends, point, side="right")), drawn.size - 1)


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
