"""Missing values and time, within one trial. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.trials import Bool, Float64, RefusedError

if TYPE_CHECKING:
    from pipeline.sections import CleanSpec

VERSION = 1


@dataclass(frozen=True)
class Cleaned:
    """A trial after cleaning.

    Attributes:
        values: `[kept rows, channels]` float64, NaN where still missing.
        observed: Same shape: the source held the value.
        keep: `[rows in]` bool: rows that were kept.
    """

    values: Float64
    observed: Bool
    keep: Bool


def clean_values(values: Float64, spec: CleanSpec) -> Cleaned:
    """Fill, mask or drop what is missing.

    Args:
        values: `[rows, channels]` float64, NaN where the source has no value.
        spec: What to do.

    Raises:
        RefusedError: `too_many_missing`, `still_missing` or `no_rows_left`.
    """
    observed = ~np.isnan(values)
    share = 1.0 - observed.mean() if observed.size else 1.0
    if share > spec.drop_trial_if_missing:
        raise RefusedError(
            "too_many_missing",
            f"{share:.1%} of the channel values are missing; clean.drop_trial_if_missing allows "
            f"{spec.drop_trial_if_missing:.1%}.",
        )
    filled = _fill(values, observed, spec)
    keep: Bool = np.ones(len(values), np.bool_)
    if spec.missing == "drop":
        keep = np.asarray(observed.all(axis=1))
    missing = np.isnan(filled)
    if missing[keep].any():
        filled, keep = _finish(filled, missing, keep, spec)
    if not keep.any():
        raise RefusedError("no_rows_left", f"all {len(values)} rows miss a value and were dropped.")
    return Cleaned(filled[keep], observed[keep], keep)


def _fill(values: Float64, observed: Bool, spec: CleanSpec) -> Float64:
    if observed.all() or spec.missing in ("none", "drop"):
        return values
    if spec.missing == "constant":
        return np.where(observed, values, spec.value)
    if spec.missing == "ffill":
        return forward_fill(values, observed, spec.limit)
    return interpolate(values, observed, spec.limit)


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


def _last_observed(observed: Bool) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return, per cell, the row of the last observed value at or before it; -1 without one."""
    rows = np.where(observed, np.arange(len(observed))[:, None], -1)
    return np.maximum.accumulate(rows, axis=0)


def forward_fill(values: Float64, observed: Bool, limit: int | None) -> Float64:
    """Carry each value on over at most `limit` missing rows (all of them when None)."""
    last = _last_observed(observed)
    age = np.arange(len(values))[:, None] - last
    reach = (last >= 0) & (age <= (len(values) if limit is None else limit))
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(reach, filled, np.nan)


def interpolate(values: Float64, observed: Bool, limit: int | None) -> Float64:
    """Fill gaps of at most `limit` rows linearly in the row number; edges stay missing."""
    last = _last_observed(observed)
    following = len(values) - 1 - _last_observed(observed[::-1])[::-1]  # len(values): none follows
    gap = following - last - 1
    inside = (last >= 0) & (following < len(values)) & ~observed
    if limit is not None:
        inside &= gap <= limit
    out = values.copy()
    rows = np.arange(len(values))
    for channel in np.flatnonzero(inside.any(axis=0)):
        seen, want = observed[:, channel], inside[:, channel]
        out[want, channel] = np.interp(rows[want], rows[seen], values[seen, channel])
    return out


def check_time(time: Float64, column: str) -> None:
    """Refuse a time axis that is missing somewhere, stands still or runs backwards.

    Raises:
        RefusedError: `time_missing` or `time_not_increasing`.
    """
    bad = np.flatnonzero(~np.isfinite(time))
    if bad.size:
        raise RefusedError(
            "time_missing", f"row {bad[0] + 1} has no time in column {column!r}.", column=column
        )
    step = np.flatnonzero(np.diff(time) <= 0)
    if step.size:
        row = int(step[0])
        raise RefusedError(
            "time_not_increasing",
            f"column {column!r} goes from {time[row]:g} to {time[row + 1]:g} at row {row + 2}; "
            "wanted strictly increasing times. Sort the file and remove duplicate rows.",
            column=column,
        )
