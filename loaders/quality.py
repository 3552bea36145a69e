"""How well an order shuffles: trials that meet in a batch, and what storage still shows of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loaders.order import Int64, splitmix64
from loaders.plans import DrawPlan

Float64 = npt.NDArray[np.float64]

MOST_STRETCHES = 200
"""Stretches of an epoch that are looked at, where it is too long to be looked at as a whole."""


@dataclass(frozen=True)
class ShuffleQuality:
    """What an epoch's order looks like to the optimizer.

    Attributes:
        distinct_trials: Distinct trials of a batch, mean of the batches looked at.
        expected_trials: The same of a random order of the same draws, exactly.
        rank_correlation: Spearman's, of a draw's position in the epoch and its row in storage; 0
            where the draws are all of one window. -1 to 1: 1 reads storage in its order.
        n_batches: Batches looked at.
    """

    distinct_trials: float
    expected_trials: float
    rank_correlation: float
    n_batches: int

    @property
    def distinct_share(self) -> float:
        """Distinct trials of a batch over their expectation; 1 is as good as random."""
        return self.distinct_trials / self.expected_trials


def shuffle_quality(
    plan: DrawPlan, batch_size: int, epoch: int, storage: Int64, *, max_draws: int = 1_000_000
) -> ShuffleQuality:
    """Look at the full batches of an epoch, or at a part of them spread evenly over it.

    Of an epoch shorter than a batch that batch is taken as it is.

    Args:
        plan: The plan.
        batch_size: Rows per optimizer step over all ranks.
        epoch: The epoch.
        storage: `[trials]` int64, the places of the plan's trials in storage: any numbers that
            ascend with them.
        max_draws: Draws looked at, about; at least a batch.
    """
    size = min(batch_size, plan.n_draws)
    first, last = _stretches(plan.n_draws // size, max(1, max_draws // size), epoch)
    parts = [
        (np.arange(a * size, b * size), *plan.draws(epoch, a * size, b * size))
        for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]
    position, trial, window = (np.concatenate(column) for column in zip(*parts, strict=True))
    batches = np.sort(trial.reshape(-1, size), axis=1)
    distinct = 1 + np.count_nonzero(np.diff(batches, axis=1), axis=1)
    return ShuffleQuality(
        distinct_trials=float(distinct.mean()),
        expected_trials=expected_distinct(plan.mean_draws, size),
        rank_correlation=rank_correlation(position, _first_windows(plan, storage)[trial] + window),
        n_batches=len(batches),
    )


def expected_distinct(quotas: Int64 | Float64, batch_size: int) -> float:
    """Return the mean number of distinct trials in a batch of an epoch in random order.

    A batch is `batch_size` of N draws without replacement, so trial i of q_i draws is missing
    from it with the hypergeometric probability C(N - q_i, G) / C(N, G). A trial of 2.25 draws on
    average has 2 draws in three epochs of four, and 3 in one.

    Args:
        quotas: `[trials]` int64, draws of each trial, or float64, the mean of them over epochs.
        batch_size: G, at most their sum.
    """
    whole = np.floor(quotas).astype(np.int64)
    more = np.asarray(quotas - whole, np.float64)
    both, of = np.unique(np.concatenate([whole, whole + 1]), return_inverse=True)
    share = np.bincount(of, np.concatenate([1 - more, more]))
    there = (both > 0) & (share > 0)
    quota, n_trials = both[there], share[there]
    present = -np.expm1(_log_missing(round(math.fsum(quotas.tolist())), quota, batch_size))
    return math.fsum((n_trials * present).tolist())


def rank_correlation(x: Int64, y: Int64) -> float:
    """Return Spearman's rank correlation of `[n]` numbers, or 0.0 where one is constant.

    Pearson's of the ranks; equal numbers share the mean of theirs.
    """
    a, b = _ranks(x), _ranks(y)
    a -= a.mean()
    b -= b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else 0.0


def _stretches(n_batches: int, budget: int, epoch: int) -> tuple[Int64, Int64]:
    """Return first and last batches of stretches of at most `budget` batches in all."""
    if n_batches <= budget:
        return np.array([0]), np.array([n_batches])
    n_stretches = min(MOST_STRETCHES, budget)
    length = budget // n_stretches
    edges = np.array([i * n_batches // n_stretches for i in range(n_stretches + 1)])
    # At an equal distance they would beat against trials of equal length.
    chance = np.array([splitmix64(epoch + i) >> 32 for i in range(n_stretches)])
    first = edges[:-1] + chance % (np.diff(edges) - length + 1)
    return first, first + length


def _log_missing(n: int, quota: Int64, size: int) -> Float64:
    """Return ln(C(n - q, size) / C(n, size)) of each q; -inf where q draws cannot all be missing.

    The sum of ln(1 - q / (n - j)), j = 0 ... size - 1, by its integral with the first terms of
    Euler and Maclaurin about midpoints. Differences of ln(gamma) have lost every digit at
    n = 10^12; they serve where hardly anything but the trial is left, and n is small or the
    probability nothing.
    """
    left = n - quota - size
    log = np.full(len(quota), -np.inf)
    for i in np.flatnonzero((left >= 0) & (left < 100)):
        rest = n - int(quota[i])
        log[i] = (
            math.lgamma(rest + 1) - math.lgamma(rest - size + 1)
            - math.lgamma(n + 1) + math.lgamma(n - size + 1)
        )  # fmt: skip
    far = left >= 100
    # Either may be the draws and the other the batch; the smaller one cancels fewer digits.
    q, g = np.minimum(quota[far], size), np.maximum(quota[far], size)
    top, bottom = n + 0.5, n - g + 0.5
    log[far] = (
        (top - q) * np.log1p(-q / top) - (bottom - q) * np.log1p(-q / bottom)
        + q * np.log1p(-g / top)
        - (1 / (top - q) - 1 / (bottom - q) - 1 / top + 1 / bottom) / 24
    )  # fmt: skip
    return log


def _first_windows(plan: DrawPlan, storage: Int64) -> Int64:
    """Return the number of each trial's first window, counted through storage; `[trials]`."""
    order = np.argsort(storage, kind="stable")
    n_windows = plan.n_windows[order]
    first = np.empty(len(order), np.int64)
    first[order] = np.cumsum(n_windows) - n_windows
    return first


def _ranks(numbers: Int64) -> Float64:
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ranks: Float64 = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
