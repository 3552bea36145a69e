"""Normalization of scope `window` in NumPy: statistics of a window's own rows (SPEC section 5).

A stream does the same on tensors, in the same order, bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shards.affine import Delivery

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Statistics = tuple[Float64, Float64]
"""Offset and scale, `[C]` each."""

_SMALLEST, _LARGEST = 1e-30, 1e30


def rescale_window(delivery: Delivery, stored: Float32, delivered: Float32, length: int) -> None:
    """Normalize the channels of scope `window` in place.

    Args:
        delivery: Of the store.
        stored: float32 `[n, C]`, the valid rows of one window as they are stored.
        delivered: float32 `[n, C]`, the same rows with all other scopes applied.
        length: L of the window; rows that it lacks are padding.
    """
    for method, places in delivery.windowed.items():
        offset, scale = window_statistics(method, stored[:, places].astype(np.float64), length)
        moved = stored[:, places] - offset.astype(np.float32)
        delivered[:, places] = moved * (1.0 / scale).astype(np.float32)


def window_statistics(method: str, values: Float64, length: int) -> Statistics:
    """Return float64 offset and scale of a window, `[C]`.

    Args:
        method: `zscore`, `minmax` or `robust`.
        values: float64 `[n, C]`, NaN where missing.
        length: L of the window, at least n.

    Returns:
        Offset 0, scale 1 where nothing is present, scale 1 where all present values are equal.
    """
    rows = np.full((length, values.shape[1]), np.nan)
    rows[: len(values)] = values
    present = ~np.isnan(rows)
    offset, scale = _METHODS[method](rows, present)
    empty = ~present.any(axis=0)
    usable = (scale > _SMALLEST) & ~empty
    return np.where(empty, 0.0, offset), np.where(usable, scale, 1.0)


def _zscore(rows: Float64, present: Bool) -> Statistics:
    n = np.maximum(present.sum(axis=0), 1).astype(np.float64)
    least = _least(rows, present)
    mean = least + fold_sum(np.where(present, rows - least, 0.0)) / n
    deviation = np.where(present, rows - mean, 0.0)
    total, squares = fold_sum(deviation), fold_sum(deviation * deviation)
    return mean, np.sqrt(np.maximum((squares - total * total / n) / n, 0.0))


def _minmax(rows: Float64, present: Bool) -> Statistics:
    least = _least(rows, present)
    return least, -_least(-rows, present) - least


def _robust(rows: Float64, present: Bool) -> Statistics:
    ordered = np.sort(np.where(present, rows, np.inf), axis=0)
    last = np.maximum(present.sum(axis=0) - 1, 0)
    column = np.arange(rows.shape[1])
    with np.errstate(invalid="ignore"):  # a column without a value is infinite throughout
        low, median, high = (_quantile(ordered, last, share) for share in (0.25, 0.5, 0.75))
        reach = np.maximum(np.abs(ordered[0] - median), np.abs(ordered[last, column] - median))
        scale = np.where(high - low > _SMALLEST, high - low, 1.0)
        return median, np.where(scale * _LARGEST > reach, scale, reach)


def _quantile(ordered: Float64, last: npt.NDArray[np.int64], share: float) -> Float64:
    place = last * share
    below = np.floor(place)
    first, column = below.astype(np.int64), np.arange(ordered.shape[1])
    lower, upper = ordered[first, column], ordered[np.minimum(first + 1, last), column]
    result: Float64 = lower + (upper - lower) * (place - below)
    return result


def _least(rows: Float64, present: Bool) -> Float64:
    """Return `[C]`; 0 where nothing is present."""
    least = np.where(present, rows, np.inf).min(axis=0)
    return np.where(least == np.inf, 0.0, least)


def fold_sum(rows: Float64) -> Float64:
    """Return the sum over the rows `[L, C]`: the second half of them is added to the first."""
    n_rows, rows = len(rows), rows.copy()
    while n_rows > 1:
        half = (n_rows + 1) // 2
        rows[: n_rows - half] += rows[half:n_rows]
        n_rows = half
    total: Float64 = rows[0]
    return total


_METHODS = {"zscore": _zscore, "minmax": _minmax, "robust": _robust}
