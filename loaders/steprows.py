"""What a plan says about one step of whole trials or chunks of them: integers, no bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


class StepRows(NamedTuple):
    """Some rows of a global step.

    Attributes:
        trial: int64 `[n]`, position in the list of trials; -1 for filler rows and empty lanes.
        start: int64 `[n]`, first row in the trial; 0 where trial is -1.
        n_rows: int64 `[n]`, valid rows; 0 where trial is -1.
        length: Steps of the batch, the same on all ranks.
        reset: bool `[n]`, True where a lane's chunk starts a trial; None but for lanes.
    """

    trial: Int64
    start: Int64
    n_rows: Int64
    length: int
    reset: npt.NDArray[Any] | None = None
