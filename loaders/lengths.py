"""The length plan: whole trials in batches of like length. Pure NumPy, no files.

A step of whole trials is padded to its longest, so a random step of trials of many lengths is
mostly padding. Sorting all trials by length leaves almost none, but then the same trials meet in
every epoch. So passes are sorted in pools of k batches in plan order, with the smallest k that
brings the padding of the epoch below its bound.

Checkpoints hold (seed, epoch, step), so what this file computes may never change; a better rule
gets another number in `LENGTHS_VERSION` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loaders.order import Int64, permute, splitmix64
from loaders.plans import DrawPlan
from loaders.steprows import StepRows

LENGTHS_VERSION = 1
_SALT = 0x6C656E67746873  # "lengths": another key than that of the order of the passes


@dataclass(frozen=True, eq=False)
class LengthEpoch:
    """One epoch of whole trials, cut into steps.

    Attributes:
        epoch: The epoch.
        n_steps: Optimizer steps, the same for all ranks.
        padding: Padded row slots / all row slots, each step as long as its longest trial on any
            rank. Filler rows do not count: whatever the lengths, they have to be there.
        pool_batches: Batches that are sorted together, k; 1: nothing is sorted.
        batch_size: G, rows per step over all ranks.
        trial: `[passes]` int64, position of the trial of each pass, step by step.
        longest: `[n_steps]` int64, L of each step.
        lengths: `[trials]` int64, rows taken of each trial.
        starts: `[trials]` int64, first row taken of each trial.
    """

    epoch: int
    n_steps: int
    padding: float
    pool_batches: int
    batch_size: int
    trial: Int64
    longest: Int64
    lengths: Int64
    starts: Int64

    def rows(self, step: int, first: int, last: int) -> StepRows:
        """Return rows `[first, last)` of the global step; filler rows follow the last pass."""
        assert 0 <= step < self.n_steps
        assert 0 <= first <= last <= self.batch_size
        taken = self.trial[step * self.batch_size + first : step * self.batch_size + last]
        trial = np.full(last - first, -1, np.int64)
        start, n_rows = np.zeros((2, last - first), np.int64)
        trial[: len(taken)] = taken
        n_rows[: len(taken)] = self.lengths[taken]
        start[: len(taken)] = self.starts[taken]
        return StepRows(trial, start, n_rows, length=int(self.longest[step]))


@dataclass(frozen=True, eq=False)
class LengthPlan:
    """Every epoch's passes over whole trials, in steps of like length.

    The passes of an epoch are taken in pools of k batches in the order of `passes`. A pool is
    sorted by length, cut into batches, and its batches go in a seeded order, so that lengths do not
    rise; rows of a batch go in the order of `passes`, so that no rank gets the long ones. k is the
    smallest power of two that brings the padding of the epoch to `max_padding`; if none does, the
    pool is the whole epoch. With k = 1 the order is that of `passes`.

    A batch of less than `batch_size` passes is the last step. It is cut out of the last pool at a
    seeded place among those where the bound is met (none: where padding is least).

    With `shuffle="none"` batches stay in the order of their pools and lengths, and the smaller one
    holds the longest of the last pool if the bound allows.

    Attributes:
        passes: Order of the passes; a draw is a pass. A trial drawn twice comes twice.
        lengths: `[trials]` int64, rows taken of each trial; at least 1 where it is drawn.
        starts: `[trials]` int64, first row taken of each trial.
        batch_size: G, rows per step over all ranks.
        max_padding: Largest share of padding in an epoch, from 0 to 1.
    """

    passes: DrawPlan
    lengths: Int64
    starts: Int64
    batch_size: int
    max_padding: float
    _kept: list[LengthEpoch] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.batch_size > 0
        assert self.lengths.shape == self.starts.shape == self.passes.n_windows.shape
        assert (self.lengths[self.passes.mean_draws > 0] > 0).all()

    @property
    def version(self) -> int:
        """What the rule is called; states of another do not fit."""
        return LENGTHS_VERSION

    def epoch(self, epoch: int) -> LengthEpoch:
        """Return the steps of `epoch`; the last two are kept, another is a few sorts away."""
        for known in tuple(self._kept):
            if known.epoch == epoch:
                return known
        made = self._cut(epoch)
        self._kept[:] = [made, *self._kept[:1]]  # one step, in the face of other threads
        return made

    def _cut(self, epoch: int) -> LengthEpoch:
        n_passes, batch_size = self.passes.n_draws, self.batch_size
        trial = self.passes.draws(epoch, 0, n_passes)[0] if n_passes else np.zeros(0, np.int64)
        lengths = self.lengths[trial]
        key = splitmix64(splitmix64(splitmix64(self.passes.seed) + epoch) ^ _SALT)
        mixed = self.passes.shuffle != "none"
        pool_batches, place, padding = _smallest_pool(
            lengths, batch_size, self.max_padding, key if mixed else None
        )
        order = _sort_pools(lengths, batch_size * pool_batches)
        whole, rest = _split_short(order, batch_size, pool_batches, place)
        if mixed and len(whole):
            batches = permute(np.arange(len(whole)), len(whole), key)
            whole = whole[batches[np.argsort(batches // pool_batches, kind="stable")]]
        order = np.concatenate([whole.ravel(), rest])
        firsts = np.arange(0, n_passes, batch_size)
        return LengthEpoch(
            epoch=epoch,
            n_steps=len(firsts),
            padding=padding,
            pool_batches=pool_batches,
            batch_size=batch_size,
            trial=trial[order],
            longest=np.maximum.reduceat(lengths[order], firsts) if n_passes else firsts,
            lengths=self.lengths,
            starts=self.starts,
        )


def _smallest_pool(
    lengths: Int64, batch_size: int, max_padding: float, key: int | None
) -> tuple[int, int, float]:
    """Return the batches of a pool, the place of the short batch, and the share of padding.

    Args:
        lengths: `[passes]` int64, in the order of the passes.
        batch_size: G.
        max_padding: The bound.
        key: Chooses a place; None: the last one.
    """
    n_rows, n_batches = int(lengths.sum()), max(1, -(-len(lengths) // batch_size))
    pool_batches = 1
    while True:
        slots = _row_slots(lengths, batch_size, pool_batches)
        padding = (slots - n_rows) / np.maximum(slots, 1)
        good = np.flatnonzero(padding <= max_padding)
        if len(good):
            place = int(good[-1 if key is None else splitmix64(key) % len(good)])
        else:
            place = int(np.argmin(padding))
        if len(good) or pool_batches >= n_batches:
            return pool_batches, place, float(padding[place])
        pool_batches *= 2


def _row_slots(lengths: Int64, batch_size: int, pool_batches: int) -> Int64:
    """Return the row slots of an epoch for each place of the short batch, in batches before it.

    Sorted, the longest of a batch is its last; moving the short batch past another one changes two.
    Without a short batch all places are alike.
    """
    head, tail = _pools(lengths, batch_size * pool_batches)
    rest = len(tail) % batch_size
    tail = np.sort(tail)
    before = tail[: len(tail) - rest].reshape(-1, batch_size)[:, -1]
    after = tail[rest:].reshape(-1, batch_size)[:, -1]
    short = rest * tail[rest - 1 :: batch_size] if rest else np.zeros(len(after) + 1, np.int64)
    slots = np.concatenate([[0], np.cumsum(before)]) + np.concatenate(
        [np.cumsum(after[::-1])[::-1], [0]]
    )
    of_head = int(np.sort(head, axis=1)[:, batch_size - 1 :: batch_size].sum())
    every: Int64 = batch_size * (slots + of_head) + short
    return every


def _pools(numbers: Int64, pool_size: int) -> tuple[Int64, Int64]:
    """Return `[pools, pool_size]`, all pools but the last, and the last one, which may be small."""
    n_head = (max(0, len(numbers) - 1) // pool_size) * pool_size
    return numbers[:n_head].reshape(-1, pool_size), numbers[n_head:]


def _sort_pools(lengths: Int64, pool_size: int) -> Int64:
    """Return `[passes]` int64, the passes by pool, then by length; ties in their order."""
    head, tail = _pools(lengths, pool_size)
    order = np.argsort(head, axis=1, kind="stable")
    order += np.arange(len(head))[:, None] * pool_size
    last = np.argsort(tail, kind="stable") + head.size
    return np.concatenate([order.ravel(), last])


def _split_short(
    order: Int64, batch_size: int, pool_batches: int, place: int
) -> tuple[npt.NDArray[np.int64], Int64]:
    """Return `[batches, batch_size]`, the full batches, and the rows of the short one.

    Within each, passes are back in their own order.
    """
    rest = len(order) % batch_size
    n_head = _pools(order, batch_size * pool_batches)[0].size
    cut = n_head + place * batch_size if rest else len(order)
    whole = np.concatenate([order[:cut], order[cut + rest :]]).reshape(-1, batch_size)
    return np.sort(whole, axis=1), np.sort(order[cut : cut + rest])
