"""The epoch plan by group: classes are drawn alike, and no trial of one is left out. No files.

A group of 90 trials that gets 50 draws an epoch cannot draw each trial in each epoch, and with a
quota per trial the same 40 would come in none. So the quota is the group's: the windows of its
trials lie end to end, and each is drawn before any comes again, over as many epochs as that takes.
The order is that of an `EpochPlan` whose trials are the groups, which makes any position of any
epoch one evaluation away here as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from loaders.order import EpochPlan, Int64, _TrialLookup
from loaders.plans import Float64
from shards.errors import InvalidSpecError

GROUP_ORDER_VERSION = 1

_NARROW = 1 << 31  # a product of two numbers below it fits int64
_MOST = 1 << 46
"""Windows and draws in all: 16 bits more fit int64, and 2^16 epochs of draws."""


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Which windows an epoch draws where groups of trials, not trials, have quotas.

    Every epoch draws exactly `quotas[g]` windows of group g. Over the epochs each window of a group
    comes once before any comes again; how often a trial comes differs from epoch to epoch, about
    its share of what its group gets.

    Attributes:
        n_windows: `[trials]` int64, windows of each trial.
        groups: `[trials]` int64, number of the group of each trial, from 0; that of a trial without
            windows does not matter.
        quotas: `[groups]` int64, draws of each group per epoch; 0 where it has no windows.
        seed: Any integer >= 0.
        shuffle: `global`: one random order over all draws, another each epoch.

    Raises:
        InvalidSpecError: If there are more than 2^46 windows or draws.
    """

    n_windows: Int64
    groups: Int64
    quotas: Int64
    seed: int
    shuffle: str = field(default="global", init=False)

    def __post_init__(self) -> None:
        assert self.groups.shape == self.n_windows.shape
        assert (self._units.n_windows[self.quotas > 0] > 0).all()
        most = max(numbers.sum(dtype=np.float64) for numbers in (self.n_windows, self.quotas))
        if most > _MOST:
            raise InvalidSpecError(
                f"a split has {most:.0f} windows or draws; balance by groups of trials allows at "
                f"most {_MOST}. Use balance='window', or a larger stride."
            )

    @property
    def n_draws(self) -> int:
        """Draws per epoch."""
        return self._units.n_draws

    @cached_property
    def mean_draws(self) -> Float64:
        """`[trials]` float64, draws of each trial per epoch on average over the epochs."""
        each = self.quotas / np.maximum(1, self._units.n_windows)
        mean = np.zeros(len(self.n_windows))
        mean[self._members] = self.n_windows[self._members] * each[self.groups[self._members]]
        return mean

    def n_steps(self, batch_size: int) -> int:
        """Return the optimizer steps of an epoch; the last one may be filled up."""
        return self._units.n_steps(batch_size)

    def draws(self, epoch: int, first: int, last: int) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of positions `[first, last)`; `EpochOrder` is faster."""
        return self.draws_at(epoch, np.arange(first, last, dtype=np.int64))

    def draws_at(self, epoch: int, positions: Int64) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of ascending positions."""
        group, place = self._units.draws_at(epoch, positions)
        place += self._first_of[group]
        member = self._lookup(place)
        return self._members[member], place - self._edges[member]

    def offsets(self, trial: Int64, window: Int64, epoch: int, most: Int64) -> Int64:
        """Return a number from 0 to `most` for each draw, another one in each epoch."""
        return self._units.offsets(trial, window, epoch, most)

    def digest(self, identity: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but the seed that decides the batches.

        Args:
            identity: What the caller adds (batch size, window parameters); JSON types.
        """
        trials = hashlib.sha256()
        for numbers in (self.n_windows, self.groups):
            trials.update(np.ascontiguousarray(numbers, "<i8").data)
        order = {"version": GROUP_ORDER_VERSION, "trials": trials.hexdigest()}
        return self._units.digest({**identity, "group_order": order})

    @cached_property
    def _members(self) -> Int64:
        """Trials with windows, by group and in it by position."""
        busy = np.flatnonzero(self.n_windows)
        return busy[np.argsort(self.groups[busy], kind="stable")]

    @cached_property
    def _edges(self) -> Int64:
        """Windows before each of `_members`, then all of them."""
        return np.concatenate([[0], np.cumsum(self.n_windows[self._members])]).astype(np.int64)

    @cached_property
    def _lookup(self) -> _TrialLookup:
        return _TrialLookup(self._edges[1:])

    @cached_property
    def _units(self) -> _Groups:
        n_windows = np.zeros(len(self.quotas), np.int64)
        np.add.at(n_windows, self.groups[self._members], self.n_windows[self._members])
        return _Groups(n_windows, self.quotas, self.seed, self.shuffle)

    @cached_property
    def _first_of(self) -> Int64:
        """Windows of `_members` before each group."""
        first: Int64 = np.cumsum(self._units.n_windows) - self._units.n_windows
        return first


class _Groups(EpochPlan):
    """An epoch whose trials are groups, and may have more than 2^31 windows."""

    def __post_init__(self) -> None:
        """Allow what `GroupPlan` allows."""

    @cached_property
    def _wide(self) -> bool:
        return int(self.n_windows.max()) > _NARROW

    def _window(self, trial: Int64, draw: Int64, epoch: int) -> Int64:
        if not self._wide:
            return super()._window(trial, draw, epoch)
        n = self.n_windows[trial]
        turn, draw = np.divmod(draw + epoch * self.quotas[trial], n)
        # 31 bits of chance, scaled to the whole of the group.
        start = self.offsets(trial, turn, 0, np.minimum(n, _NARROW) - 1)
        start *= np.maximum(1, n // _NARROW)
        return (multiply_modulo(draw, self._steps[trial], n) + start) % n


def multiply_modulo(x: Int64, y: Int64, n: Int64) -> Int64:
    """Return x * y % n without a product beyond int64.

    Args:
        x: `[n]`, from 0 to n - 1.
        y: `[n]`, from 0 to n - 1.
        n: `[n]`, at most 2^46.
    """
    product = np.zeros_like(x)
    for shift in (32, 16, 0):
        product = ((product << 16) + x * ((y >> shift) & 0xFFFF)) % n
    return product
