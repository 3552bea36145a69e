"""What an order of an epoch's draws is, whichever way it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class DrawPlan(Protocol):
    """Which windows an epoch draws, and in which order; the same for all ranks and workers.

    `EpochPlan` and `BlockPlan` have a quota of draws for each trial, `GroupPlan` for each group.
    """

    @property
    def n_windows(self) -> Int64:
        """`[trials]` int64, windows of each trial."""

    @property
    def mean_draws(self) -> Int64 | Float64:
        """`[trials]`, draws of each trial per epoch; float64 the mean where epochs differ."""

    @property
    def seed(self) -> int:
        """Any integer >= 0."""

    @property
    def shuffle(self) -> str:
        """`global`, `blocks` or `none`."""

    @property
    def n_draws(self) -> int:
        """Draws per epoch, the same in every one."""

    def n_steps(self, batch_size: int) -> int:
        """Return the optimizer steps of an epoch; the last one may be filled up."""

    def draws(self, epoch: int, first: int, last: int) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of positions `[first, last)`."""

    def draws_at(self, epoch: int, positions: Int64) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of ascending positions."""

    def offsets(self, trial: Int64, window: Int64, epoch: int, most: Int64) -> Int64:
        """Return a number from 0 to `most` for each draw, another one in each epoch."""

    def digest(self, identity: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but the seed that decides the batches."""
