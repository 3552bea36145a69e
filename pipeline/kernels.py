"""Compiled arithmetic over many trials at once: rows below each other, and where each trial ends.

No function looks past the rows of a trial, and sums run row by row in order, so that a trial has
the same bits in every batch. Importing this module imports numba: import it where it is used.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.trials import Float32, Float64

Offsets = npt.NDArray[np.int64]

_numba: Any = import_module("numba")  # has no types
_LOCK = threading.Lock()
_COUNT, _SHIFT, _SUM, _SUM_SQ, _MIN, _MAX = range(6)
MOMENTS = ("count", "shift", "sum", "sum_sq", "min", "max")


def measure_moments(values: Float64, offsets: Offsets) -> dict[str, Float64]:
    """Return the moments of present values per trial and column, as `normalize` defines them.

    Args:
        values: `[rows, columns]` float64, C order, NaN where missing.
        offsets: `[trials + 1]` int64: trial i is rows offsets[i] to offsets[i + 1].

    Returns:
        `MOMENTS`, each `[trials, columns]` float64.
    """
    out = np.zeros((len(MOMENTS), len(offsets) - 1, values.shape[1]))
    _compiled(_fill_moments)(values, offsets, out)
    return dict(zip(MOMENTS, out, strict=True))


def apply_affine(values: Float64, offsets: Offsets, offset: Float64, scale: Float64) -> Float32:
    """Return `(values - offset) / scale`, in float64 and rounded once.

    Args:
        values: `[rows, columns]` float64, C order.
        offsets: `[trials + 1]` int64.
        offset: `[trials, columns]` float64.
        scale: `[trials, columns]` float64, nowhere 0.

    Returns:
        `[rows, columns]` float32.
    """
    out = np.empty(values.shape, np.float32)
    _compiled(_fill_affine)(values, offsets, offset, scale, out)
    return out


def forward_fill(values: Float64, offsets: Offsets, limit: int | None) -> Float64:
    """Carry each value on over at most `limit` missing rows of its trial (all when None)."""
    out = np.empty_like(values)
    _compiled(_fill_forward)(values, offsets, len(values) if limit is None else limit, out)
    return out


def interpolate(values: Float64, offsets: Offsets, limit: int | None) -> Float64:
    """Fill gaps of at most `limit` rows linearly in the row number; edges stay missing."""
    out = values.copy()
    _compiled(_fill_between)(values, offsets, len(values) if limit is None else limit, out)
    return out


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    with _LOCK:
        return _compile(function)


@functools.cache
def _compile(function: Callable[..., None]) -> Callable[..., None]:
    # Every division follows numpy: nothing is raised.
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., None] = _numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        compiled = _numba.njit(**options)(function)
    return compiled


def _fill_moments(values: Float64, offsets: Offsets, out: Float64) -> None:
    n_columns = values.shape[1]
    for trial in range(len(offsets) - 1):
        count, shift, total, squares = out[0, trial], out[1, trial], out[2, trial], out[3, trial]
        low, high = out[4, trial], out[5, trial]
        first = np.zeros(n_columns)
        low[:], high[:] = np.nan, np.nan
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(n_columns):
                value = values[row, column]
                if np.isnan(value):
                    continue
                if count[column] == 0:
                    first[column] = low[column] = high[column] = value
                count[column] += 1
                shift[column] += value - first[column]
                low[column] = min(low[column], value)
                high[column] = max(high[column], value)
        for column in range(n_columns):
            shift[column] = first[column] + shift[column] / max(count[column], 1.0)
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(n_columns):
                value = values[row, column]
                if not np.isnan(value):
                    deviation = value - shift[column]
                    total[column] += deviation
                    squares[column] += deviation * deviation


def _fill_affine(
    values: Float64, offsets: Offsets, offset: Float64, scale: Float64, out: Float32
) -> None:
    for trial in range(len(offsets) - 1):
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(values.shape[1]):
                centred = values[row, column] - offset[trial, column]
                out[row, column] = centred / scale[trial, column]


def _fill_forward(values: Float64, offsets: Offsets, limit: int, out: Float64) -> None:
    n_columns = values.shape[1]
    for trial in range(len(offsets) - 1):
        last = np.full(n_columns, np.nan)
        age = np.zeros(n_columns, np.int64)
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(n_columns):
                value = values[row, column]
                if np.isnan(value):
                    age[column] += 1
                    out[row, column] = last[column] if age[column] <= limit else np.nan
                else:
                    out[row, column] = last[column] = value
                    age[column] = 0


def _fill_between(values: Float64, offsets: Offsets, limit: int, out: Float64) -> None:
    n_columns = values.shape[1]
    for trial in range(len(offsets) - 1):
        last = np.full(n_columns, -1, np.int64)
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(n_columns):
                value, start = values[row, column], last[column]
                if np.isnan(value):
                    continue
                if start >= 0 and 1 < row - start <= limit + 1:
                    before = values[start, column]
                    slope = (value - before) / (row - start)  # as numpy.interp rounds it
                    for between in range(start + 1, row):
                        out[between, column] = slope * (between - start) + before
                last[column] = row
