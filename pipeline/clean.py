"""Outliers and missing values, within one trial. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.files import RefusedError
from pipeline.trials import Bool, Float64, Int64

if TYPE_CHECKING:
    from pipeline.sections import CleanSpec, OutlierSpec

_MAD_TO_SD = 1.4826
"""A median absolute deviation times this is the standard deviation of normal values."""


@dataclass(frozen=True)
class Cleaned:
    """A trial after cleaning. Arrays may share memory with the values that came in.

    Attributes:
        values: `[kept rows, channels]` float64, NaN where still missing.
        observed: Same shape: the source held the value.
        keep: `[rows in]` bool: rows that were kept.
        starts: `[segments left]` int64: first kept row of each, counted in kept rows.
    """

    values: Float64
    observed: Bool
    keep: Bool
    starts: Int64


def clip_outliers(values: Float64, names: Sequence[str], spec: OutlierSpec) -> tuple[Float64, int]:
    """Move values beyond belief to the nearest allowed one, or take them as missing.

    With `deviations` a channel's median and median absolute deviation are those of the trial's
    present values within `bounds`, so that impossible values have no say. A channel whose median
    absolute deviation is 0 (at least half of its values are equal) has no outliers by it.

    Args:
        values: `[rows, channels]` float64, NaN where missing.
        names: Of the channels.
        spec: What is beyond belief.

    Returns:
        The values, the same array where none is changed; and how many are.
    """
    low, high = _bounds(names, spec)
    if spec.deviations is not None:
        possible = np.where((values >= low) & (values <= high), values, np.nan)
        middle = _medians(possible)
        spread = _MAD_TO_SD * _medians(np.abs(possible - middle))
        reach = np.where(spread > 0, spec.deviations * spread, np.inf)
        low, high = np.fmax(low, middle - reach), np.fmin(high, middle + reach)
    below, above = values < low, values > high
    n_changed = int(below.sum() + above.sum())
    if not n_changed:
        return values, 0
    if spec.then == "missing":
        return np.where(below | above, np.nan, values), n_changed
    return np.where(below, low, np.where(above, high, values)), n_changed


def _bounds(names: Sequence[str], spec: OutlierSpec) -> tuple[Float64, Float64]:
    pairs = [spec.bounds.get(name, (None, None)) for name in names]
    low = [-np.inf if pair[0] is None else pair[0] for pair in pairs]
    high = [np.inf if pair[1] is None else pair[1] for pair in pairs]
    return np.array(low, np.float64), np.array(high, np.float64)


def _medians(values: Float64) -> Float64:
    """Return the median of each column's present values; NaN where there are none."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    ordered = np.sort(values, axis=0)  # NaN last
    n_present = (~np.isnan(values)).sum(axis=0)
    columns = np.arange(values.shape[1])
    lower = ordered[np.maximum(n_present - 1, 0) // 2, columns]
    upper = ordered[np.minimum(n_present // 2, len(values) - 1), columns]
    medians: Float64 = lower + (upper - lower) / 2
    return np.where(n_present > 0, medians, np.nan)


def clean_values(values: Float64, spec: CleanSpec) -> Cleaned:
    """Fill, mask or drop what is missing in a trial without gaps; see `clean_segments`."""
    return clean_segments(values, np.zeros(1, np.int64), spec)


def clean_segments(values: Float64, starts: Int64, spec: CleanSpec) -> Cleaned:
    """Fill, mask or drop what is missing, each segment by itself.

    The share of missing values, and whether any row is left, are matters of the whole trial. A
    segment that loses all its rows is gone.

    Args:
        values: `[rows, channels]` float64, NaN where the source has no value.
        starts: `[segments]` int64: first row of each segment, increasing from 0.
        spec: What to do.

    Raises:
        RefusedError: `too_many_missing`, `still_missing` or `no_rows_left`.
    """
    observed = ~np.isnan(values)
    n_missing = observed.size - int(np.count_nonzero(observed))
    keep: Bool = np.ones(len(values), np.bool_)
    if observed.size and not n_missing:
        return Cleaned(values, observed, keep, starts)
    check_share(n_missing, observed.size, spec)
    filled = _fill(values, observed, starts, spec)
    if spec.missing == "drop":
        keep = np.asarray(observed.all(axis=1))
    missing = np.isnan(filled)
    if missing[keep].any():
        filled, keep = _finish(filled, missing, keep, spec)
    if keep.all() and len(keep):
        return Cleaned(filled, observed, keep, starts)
    if not keep.any():
        raise RefusedError("no_rows_left", f"all {len(values)} rows miss a value and were dropped.")
    return Cleaned(filled[keep], observed[keep], keep, _kept_starts(keep, starts))


def check_share(n_missing: int, n_values: int, spec: CleanSpec) -> None:
    """Refuse a trial in which too many values are missing.

    Raises:
        RefusedError: `too_many_missing`.
    """
    share = n_missing / n_values if n_values else 1.0
    if share > spec.drop_trial_if_missing:
        raise RefusedError(
            "too_many_missing",
            f"{share:.1%} of the channel values are missing; clean.drop_trial_if_missing allows "
            f"{spec.drop_trial_if_missing:.1%}.",
        )


def _kept_starts(keep: Bool, starts: Int64) -> Int64:
    """Return where segments begin once rows are dropped."""
    n_before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    begin, end = n_before[starts], n_before[np.append(starts[1:], len(keep))]
    left: Int64 = begin[begin < end]
    return left


def _fill(values: Float64, observed: Bool, starts: Int64, spec: CleanSpec) -> Float64:
    if spec.missing in ("none", "drop"):
        return values
    if spec.missing == "constant":
        return np.where(observed, values, spec.value)
    if spec.missing == "ffill":
        return forward_fill(values, observed, starts, spec.limit)
    return interpolate(values, observed, starts, spec.limit)


def _finish(filled: Float64, missing: Bool, keep: Bool, spec: CleanSpec) -> tuple[Float64, Bool]:
    if spec.then == "refuse":
        row, column = np.argwhere(missing & keep[:, None])[0]
        raise RefusedError(
            "still_missing",
            f"row {row + 1}, channel {column + 1} is missing after cleaning. Widen clean.limit, "
            "or set clean.then.",
        )
    if spec.then == "constant":
        return np.where(missing, spec.value, filled), keep
    if spec.then == "drop":
        return filled, keep & ~missing.any(axis=1)
    return filled, keep


def _last_observed(observed: Bool) -> Int64:
    """Return, per cell, the row of the last observed value at or before it; -1 without one."""
    # Channels side by side: accumulating over rows that are apart takes 4 times as long.
    rows = np.where(np.ascontiguousarray(observed.T), np.arange(len(observed)), -1)
    last: Int64 = np.maximum.accumulate(rows, axis=1, out=rows).T
    return last


def _segment_ranges(starts: Int64, n_rows: int) -> tuple[Int64, Int64]:
    """Return `[rows, 1]` the first row of each row's segment, and the first one behind it."""
    ends = np.append(starts[1:], n_rows)
    sizes = ends - starts
    return np.repeat(starts, sizes)[:, None], np.repeat(ends, sizes)[:, None]


def forward_fill(values: Float64, observed: Bool, starts: Int64, limit: int | None) -> Float64:
    """Carry each value on over at most `limit` missing rows (all of them when None)."""
    last = _last_observed(observed)
    reach = last >= _segment_ranges(starts, len(values))[0]
    if limit is not None:
        reach &= np.arange(len(values))[:, None] - last <= limit
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(reach, filled, np.nan)


def interpolate(values: Float64, observed: Bool, starts: Int64, limit: int | None) -> Float64:
    """Fill gaps of at most `limit` rows linearly in the row number; edges stay missing."""
    last = _last_observed(observed)
    following = len(values) - 1 - _last_observed(observed[::-1])[::-1]  # len(values): none follows
    begins, ends = _segment_ranges(starts, len(values))
    inside = (last >= begins) & (following < ends) & ~observed
    if limit is not None:
        inside &= following - last - 1 <= limit
    out = values.copy()
    rows = np.arange(len(values))
    for channel in np.flatnonzero(inside.any(axis=0)):
        seen, want = observed[:, channel], inside[:, channel]
        out[want, channel] = np.interp(rows[want], rows[seen], values[seen, channel])
    return out
