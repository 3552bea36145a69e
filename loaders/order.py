"""The epoch plan: which window comes at which position of an epoch. Pure NumPy, no files.

An epoch is an integer quota of draws per trial. Position p of an epoch goes through a keyed
bijection to a slot; the slots of a trial are consecutive, so a look-up finds the trial and the
number of the draw in it. Nothing is stored per window: a plan of 10^12 windows costs what its
trials cost, and any position of any epoch is one evaluation away (resume is an integer).

Checkpoints hold (seed, epoch, step), so what this file computes may never change; a better order
gets another name beside it and `ORDER_VERSION` keeps them apart.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import InvalidSpecError

Int64 = npt.NDArray[np.int64]

ORDER_VERSION = 1
ROUNDS = 4
"""4 rounds match a true permutation in runs, lag and pair statistics; 2 and 3 do not."""

_MASK64 = (1 << 64) - 1
_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MOST_WINDOWS = 1 << 31  # keeps (draw x step) of the affine bijection inside int64


def splitmix64(x: int) -> int:
    """Return one output of splitmix64 for state `x`.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), constants of
    Vigna's public-domain https://prng.di.unimi.it/splitmix64.c.

    >>> hex(splitmix64(0))
    '0xe220a8397b1dcdaf'
    """
    x = (x + _GAMMA) & _MASK64
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK64
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK64
    return x ^ (x >> 31)


def permute(positions: Int64, n: int, key: int) -> Int64:
    """Return the images of `positions` under the bijection of [0, n) that `key` selects.

    Each round adds, multiplies by an odd number, masks to ceil(log2 n) bits and xors a right
    shift: all invertible, so the composition is a bijection of the power of two; images outside
    [0, n) are sent through again until they fall inside (cycle walking, below 2 turns on average).
    """
    bits = max(1, (n - 1).bit_length())
    kind = np.uint32 if bits <= 32 else np.uint64
    full = (1 << bits) - 1
    mask, last = kind(full), kind(n - 1)
    keys = [key]
    for _ in range(2 * ROUNDS):
        keys.append(splitmix64(keys[-1]))
    rounds = [
        (kind(keys[1 + i] & full), kind((keys[1 + ROUNDS + i] | 1) & full), kind(shift))
        for i, shift in enumerate([max(1, (bits + 1) // 2), max(1, (bits + 2) // 3)] * 2)
    ]
    work = np.empty(len(positions), kind)

    def scramble(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shifted = work[: len(x)]
        for add, multiply, shift in rounds:
            np.add(x, add, out=x)
            np.multiply(x, multiply, out=x)
            np.bitwise_and(x, mask, out=x)
            np.right_shift(x, shift, out=shifted)
            np.bitwise_xor(x, shifted, out=x)
        return x

    image: npt.NDArray[Any] = scramble(positions.astype(kind))
    outside = np.flatnonzero(image > last)
    while outside.size:
        again = scramble(image[outside])
        image[outside] = again
        outside = outside[again > last]
    return image.astype(np.int64)


def largest_remainder(weights: npt.NDArray[Any], total: int) -> Int64:
    """Return integers that add up to `total` in proportion to `weights`, ties to the first.

    Args:
        weights: Not negative, not all 0. A weight of 0 gets 0.
        total: Draws to share out.
    """
    chosen = np.flatnonzero(weights)
    share = np.asarray(weights, np.float64)[chosen]
    share *= total / math.fsum(share)  # fsum: the same bits on every machine
    whole = np.floor(share).astype(np.int64)
    rest = total - int(whole.sum())
    by_remainder = np.argsort(whole - share, kind="stable")
    whole[by_remainder[:rest] if rest >= 0 else by_remainder[rest:]] += 1 if rest >= 0 else -1
    quotas = np.zeros(len(weights), np.int64)
    quotas[chosen] = whole
    return quotas


def rank_rows(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the half-open range of rows of every global step that `rank` takes."""
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def worker_steps(first: int, n_steps: int, *, worker: int, n_workers: int) -> range:
    """Return the steps of `[first, n_steps)` that `worker` takes.

    DataLoader asks its workers in turn, so whole steps in turn arrive in step order.
    """
    return range(first + worker, n_steps, n_workers)


class _TrialLookup:
    """Slot -> trial through a table of about two buckets per trial (4-7 ns, a search 52-200)."""

    def __init__(self, ends: Int64) -> None:
        total = int(ends[-1])
        self._ends = ends
        self._shift = max(0, (total // (2 * len(ends))).bit_length() - 1)
        edges = np.arange((total >> self._shift) + 1, dtype=np.int64) << self._shift
        self._first = np.searchsorted(ends, edges, "right").astype(np.int32)

    def __call__(self, slots: Int64) -> Int64:
        trial: Int64 = self._first[slots >> self._shift].astype(np.int64)
        for _ in range(8):
            late = np.flatnonzero(self._ends[trial] <= slots)
            if not late.size:
                return trial
            trial[late] += 1
        # Many small trials in one bucket, beside a few huge ones: search for these.
        trial[late] = np.searchsorted(self._ends, slots[late], "right")
        return trial


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Which windows an epoch draws, and in which order; the same for all ranks and workers.

    Attributes:
        n_windows: `[trials]` int64, windows of each trial.
        quotas: `[trials]` int64, draws of each trial per epoch; 0 where there are no windows.
        seed: Any integer >= 0.
        shuffle: `global`: one random order over all draws, another each epoch. `none`: by trial,
            then by window.

    Raises:
        InvalidSpecError: If a trial is too long for quotas that differ from its windows.
    """

    n_windows: Int64
    quotas: Int64
    seed: int
    shuffle: str

    def __post_init__(self) -> None:
        if not self.draws_each_once and int(self.n_windows.max()) > _MOST_WINDOWS:
            raise InvalidSpecError(
                f"a trial has {int(self.n_windows.max())} windows; balanced quotas allow at most "
                f"{_MOST_WINDOWS} per trial. Use balance='window', or a larger stride."
            )

    @cached_property
    def slots(self) -> Int64:
        """Trial i has the slots `[slots[i], slots[i + 1])`; `[trials + 1]`."""
        return np.concatenate([[0], np.cumsum(self.quotas)]).astype(np.int64)

    @property
    def n_draws(self) -> int:
        """Draws per epoch."""
        return int(self.slots[-1])

    @property
    def mean_draws(self) -> Int64:
        """`[trials]` int64, draws of each trial per epoch: its quota."""
        return self.quotas

    @cached_property
    def draws_each_once(self) -> bool:
        """Whether every epoch holds each window exactly once."""
        return self.quotas is self.n_windows or bool(np.array_equal(self.quotas, self.n_windows))

    def n_steps(self, batch_size: int) -> int:
        """Return the optimizer steps of an epoch; the last one may be filled up."""
        return -(-self.n_draws // batch_size)

    def draws(self, epoch: int, first: int, last: int) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of positions `[first, last)`; `EpochOrder` is faster."""
        return self.draws_at(epoch, np.arange(first, last, dtype=np.int64))

    def draws_at(self, epoch: int, positions: Int64) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of ascending positions."""
        slots = positions
        if self.shuffle != "none":
            slots = permute(slots, self.n_draws, splitmix64(splitmix64(self.seed) + epoch))
        trial = self._lookup(slots)
        draw = slots - self.slots[trial]
        # Each window has its own slot, so a second bijection would shuffle what is shuffled.
        return trial, draw if self.draws_each_once else self._window(trial, draw, epoch)

    def offsets(self, trial: Int64, window: Int64, epoch: int, most: Int64) -> Int64:
        """Return a number from 0 to `most` for each draw, another one in each epoch."""
        key = np.uint64(splitmix64(splitmix64(self.seed ^ _MIX2) + epoch))
        x = trial.astype(np.uint64) * np.uint64(_GAMMA) + key
        x ^= window.astype(np.uint64) * np.uint64(_MIX2)
        for mix, shift in ((_MIX1, 30), (_MIX2, 27)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(mix)
        return ((x >> np.uint64(32)) % (most + 1).astype(np.uint64)).astype(np.int64)

    def digest(self, identity: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but the seed that decides the batches.

        Args:
            identity: What the caller adds (batch size, window parameters); JSON types.
        """
        head = {"order": ORDER_VERSION, "shuffle": self.shuffle, **identity}
        state = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for numbers in (self.n_windows, self.quotas):
            state.update(np.ascontiguousarray(numbers, "<i8").data)
        return state.hexdigest()

    @cached_property
    def _lookup(self) -> _TrialLookup:
        return _TrialLookup(self.slots[1:])

    @cached_property
    def _steps(self) -> Int64:
        """Coprime to each trial's windows, near the golden section of them.

        An epoch that draws a part of a trial thereby draws windows spread evenly over it.
        """
        n = self.n_windows
        step: Int64 = np.maximum(1, np.rint(n * 0.6180339887498949)).astype(np.int64)
        bad = np.flatnonzero(np.gcd(step, n) > 1)
        while bad.size:
            step[bad] += 1
            bad = bad[np.gcd(step[bad], n[bad]) > 1]
        return step

    def _window(self, trial: Int64, draw: Int64, epoch: int) -> Int64:
        """Draws go on over the epochs; each pass over a trial is an affine bijection of it."""
        n = self.n_windows[trial]
        turn, draw = np.divmod(draw + epoch * self.quotas[trial], n)
        if self.shuffle == "none":
            return draw
        x = trial.astype(np.uint64) * np.uint64(_GAMMA) + np.uint64(splitmix64(self.seed ^ _MIX1))
        x ^= turn.astype(np.uint64) * np.uint64(_MIX2)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX1)
        offset = ((x ^ (x >> np.uint64(27))) >> np.uint64(32)).astype(np.int64)
        window: Int64 = (draw * self._steps[trial] + offset % n) % n
        return window
