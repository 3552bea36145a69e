"""Rows of batches: what was drawn, and what was asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loaders.copying import Fetch

Int64 = npt.NDArray[np.int64]


class Draws(NamedTuple):
    """Rows of batches with all that is looked up per trial.

    Attributes:
        places: int64 `[6, n]`, one array because a batch is a slice of it: position in the list of
            trials; trial number, -1 in filler; first row in the trial; valid rows; element of the
            mapped values where they begin; the element where the forecast target of a window does,
            in the values or, in layout windows, in the targets.
        weights: float32 `[n]`.
    """

    places: Int64
    weights: npt.NDArray[np.float32]

    def filled(self, size: int) -> Draws:
        """Return a copy with filler rows up to `size`: number -1, weight 0, the rest 0."""
        n = self.places.shape[1]
        if n == size:
            return Draws(self.places.copy(), self.weights.copy())
        places, weights = np.zeros((6, size), np.int64), np.zeros(size, np.float32)
        places[1] = -1
        places[:, :n], weights[:n] = self.places, self.weights
        return Draws(places, weights)


class Asked(NamedTuple):
    """Values of a batch that were asked for.

    Attributes:
        fetch: Of the values.
        ones: bool `[B, L]`; all True when the fetch is finished.
        parts: The rows of `Draws.places`.
    """

    fetch: Fetch
    ones: Tensor
    parts: tuple[Tensor, ...]
