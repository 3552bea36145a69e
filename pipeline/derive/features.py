"""Ready-made features: NumPy on one column, started anew at each segment.

NumPy, because a call into polars costs more than a short trial's arithmetic. No value depends on
a later row, not even in its last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.trials import Bool, Float64, Int64


def _one_segment() -> Int64:
    return np.zeros(1, np.int64)


@dataclass(frozen=True)
class Clock:
    """The time axis of one trial, and what another stage computes from it.

    Attributes:
        starts: First row of each segment, ascending, beginning with 0.
        time: Seconds since 1970-01-01 UTC, or other times; None without a time column.
        zone: IANA time zone in which days begin where a feature names none.
        since_observed: `(observed [rows, C], time, starts) -> [rows, C]`: time (rows, without a
            time column) since the last true value.
        calendar_part: `(time, part, form, zone) -> [rows]`.
    """

    starts: Int64 = field(default_factory=_one_segment)
    time: Float64 | None = None
    zone: str = "UTC"
    since_observed: Callable[[Bool, Float64 | None, Int64], Float64] | None = None
    calendar_part: Callable[[Float64, str, str, str], Float64] | None = None


def lag(values: Float64, rows: int, starts: Int64) -> Float64:
    """Return the value `rows` rows earlier; NaN where that is before the segment."""
    out = np.full(len(values), np.nan)
    out[rows:] = values[:-rows]
    out[_age(starts, len(values)) < rows] = np.nan
    return out


def difference(values: Float64, rows: int, starts: Int64) -> Float64:
    """Return the change since `rows` rows earlier; NaN where either value is missing."""
    with np.errstate(invalid="ignore", over="ignore"):
        change: Float64 = values - lag(values, rows, starts)
    return change


def rolling_mean(values: Float64, rows: int, starts: Int64) -> Float64:
    """Return the mean of the present values among the last `rows` rows, the row itself included.

    Args:
        values: `[length]` float64, NaN where missing.
        rows: Rows of a window; at a segment's beginning there are fewer.
        starts: First row of each segment.

    Returns:
        `[length]` float64; NaN where no value of the window is present.
    """
    out = np.full(len(values), np.nan)
    present = ~np.isnan(values)
    for first, end in zip(starts, [*starts[1:], len(values)], strict=True):
        seen = present[first:end]
        total = _window_sums(np.where(seen, values[first:end], 0.0), rows)
        count = _window_sums(seen.astype(np.float64), rows)
        np.divide(total, count, out=out[first:end], where=count > 0)
    return out


def _age(starts: Int64, n_rows: int) -> Int64:
    """Return each row's distance from the beginning of its segment."""
    return np.arange(n_rows) - np.repeat(starts, np.diff(starts, append=n_rows))


def _window_sums(values: Float64, rows: int) -> Float64:
    """Return the sum of each value and the `rows - 1` before it.

    A window is the end of one block of `rows` values and the beginning of the next (van Herk
    1992, "A fast algorithm for local minimum and maximum filters"): nothing is subtracted, so a
    huge value is forgotten with its window, and the cost does not grow with `rows`.
    """
    n = len(values)
    rows = min(rows, n)
    if rows <= 1:
        return values
    padded = np.zeros(-(-n // rows) * rows)
    padded[:n] = values
    blocks = padded.reshape(-1, rows)
    with np.errstate(invalid="ignore", over="ignore"):
        heads = np.cumsum(blocks, axis=1)
        tails = np.cumsum(blocks[:-1, :0:-1], axis=1)[:, ::-1]
        heads[1:, :-1] += tails
    return heads.reshape(-1)[:n]
