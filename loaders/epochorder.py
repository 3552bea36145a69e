"""Reads an epoch of a plan batch by batch, of positions that are evaluated many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from loaders.plans import DrawPlan

Int64 = npt.NDArray[np.int64]

BLOCK = 32_768
"""Positions evaluated at once: 40-60 ns each, all look-ups included, as in larger ones; 100-160 ns
in calls of 4,096, where the few that walk on cost as much as all."""
SHORT_BLOCK = 8192
"""At first, when it is not known what follows, and where a reader takes some steps and leaves out
others: 70-100 ns each, and 0.4 MB instead of 1.7. Of 16 workers each would evaluate all else."""

Block = TypeVar("Block", bound=tuple[npt.NDArray[Any], ...])


class EpochOrder(Generic[Block]):
    """One epoch of a plan, read in batches: evaluates blocks and slices them.

    A reader that leaves out steps in between, as one of several workers does, is recognized by its
    second read; from then on nothing is evaluated but what it takes.

    Args:
        plan: The plan.
        epoch: The epoch.
        resolve: Makes columns of the `(trial, window)` of a block of draws: whatever else can be
            said about a draw is looked up per block as well, not per batch.
    """

    def __init__(
        self, plan: DrawPlan, epoch: int, resolve: Callable[[Int64, Int64], Block]
    ) -> None:
        self._plan, self._epoch, self._resolve = plan, epoch, resolve
        self._previous: tuple[int, int] | None = None
        # The block: `size` positions from each of the starts `first`, `first + every`, ...
        self._first = self._every = self._size = self._n_starts = 0
        self._block: Block | None = None

    def read(self, first: int, last: int) -> list[npt.NDArray[Any]]:
        """Return the columns at positions `[first, last)`, as views of the block."""
        at = self._find(first, last)
        if self._block is None or at < 0:
            self._block = None  # before the next one takes memory
            self._evaluate(first, last)
            at = 0
        self._previous = first, last
        part = slice(at, at + last - first)
        return [column[..., part] for column in self._block or ()]

    def _find(self, first: int, last: int) -> int:
        """Return where the positions begin in the block, or -1 if they are not there."""
        start, within = divmod(first - self._first, max(1, self._every))
        if not 0 <= start < self._n_starts or within + last - first > self._size:
            return -1
        return start * self._size + within

    def _evaluate(self, first: int, last: int) -> None:
        size, every, n_starts = last - first, 1, 1
        gap = 0 if self._previous is None else first - self._previous[0]
        if gap > size:
            every = gap
            n_starts = min(max(1, SHORT_BLOCK // size), -(-(self._plan.n_draws - first) // gap))
        else:
            follows = self._previous is not None and first == self._previous[1]
            size = min(max(size, BLOCK if follows else SHORT_BLOCK), self._plan.n_draws - first)
            every = size
        starts = first + every * np.arange(n_starts, dtype=np.int64)
        positions = (starts[:, None] + np.arange(size, dtype=np.int64)).ravel()
        # Only what is behind the last start may be cut off by the end of the epoch.
        positions = positions[: np.searchsorted(positions, self._plan.n_draws)]
        self._first, self._every, self._size, self._n_starts = first, every, size, n_starts
        self._block = self._resolve(*self._plan.draws_at(self._epoch, positions))
