"""Rows at equal distances in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.files import RefusedError
from pipeline.sections import ResampleSpec
from pipeline.timeline.groups import group_last, group_mean, last_present, next_present
from pipeline.trials import Float64, Int64

_MOST_ROWS = 10_000_000
_MOST_PER_ROW = 1_000
_FINEST = 2.0**50
"""Bins from time 0; beyond, float64 no longer tells places within one."""


@dataclass(frozen=True)
class Bins:
    """Resampled rows.

    Attributes:
        time: `[bins]` float64: where each bin begins.
        numbers: `[bins, columns]` float64, NaN where missing.
        rows: `[bins]` int64: the last input row in the bin, -1 where there is none.
        starts: `[segments]` int64: first bin of each segment; the first is 0.
    """

    time: Float64
    numbers: Float64
    rows: Int64
    starts: Int64


@dataclass(frozen=True)
class _Places:
    """Where rows are, counted in bins: `exact`, its `slack`, and the `bin` itself, all `[rows]`."""

    exact: Float64
    slack: Float64
    bin: Int64


def resample_rows(time: Float64, numbers: Float64, starts: Int64, spec: ResampleSpec) -> Bins:
    """Return one row per bin `[k * every, (k + 1) * every)`, timed at the bin's beginning.

    `mean` and `last` are of all present values in the bin. A segment goes from the bin of its
    first row to that of its last. A bin with rows from both sides of a gap belongs to the segment
    before the gap, and the one behind begins at its next bin; a segment without a bin of its own
    is gone. So `max_gap` decides where segments begin and which empty bins there are, but never a
    value.

    `interpolate` is linear in time between a segment's own present values. Its bins are those
    that begin within the segment, from first row to last; a segment between two such moments has
    none, and is gone.

    Args:
        time: `[rows]` float64, finite, strictly increasing; not empty.
        numbers: `[rows, columns]` float64, NaN where missing.
        starts: First row of each segment.
        spec: Distance and method.

    Raises:
        RefusedError: `too_many_rows`, `resample_too_fine` or `resample_no_rows`.
    """
    every = spec.every.amount
    places = _places(time, every)
    if spec.method == "interpolate":
        lows, highs = _grid_ranges(places, starts)
    else:
        lows, highs = _bin_ranges(places.bin, starts)
    own = np.flatnonzero(lows <= highs)
    if not own.size:
        raise RefusedError(
            "resample_no_rows",
            f"no multiple of source.time.resample.every ({every:g}) lies between the "
            "first and the last time; a smaller distance, or method mean, leaves rows.",
        )
    bins, bin_starts = _enumerate(lows[own], highs[own], len(time))
    behind = np.searchsorted(places.bin, bins, side="right") - 1
    filled = (behind >= 0) & (places.bin[behind] == bins)
    if spec.method == "interpolate":
        segments = np.repeat(own, highs[own] - lows[own] + 1)
        moments = _moments(time, places, bins, every)
        out = _interpolate(time, numbers, starts, moments, segments)
    else:
        change = places.bin[1:] != places.bin[:-1]
        firsts = np.flatnonzero(np.concatenate([[True], change]))
        out = np.full((len(bins), numbers.shape[1]), np.nan)
        out[filled] = (group_mean if spec.method == "mean" else group_last)(numbers, firsts)
    rows = np.where(filled, behind, -1)
    return Bins(_moment(bins, every), out, rows, bin_starts)


def _places(time: Float64, every: float) -> _Places:
    """Return the bin of each row; 0.3 is in bin 3 of 0.1, although 0.3 / 0.1 < 3 in float64."""
    with np.errstate(over="ignore"):
        exact = time / every
    farthest = float(np.abs(exact).max())
    if farthest > _FINEST:
        raise RefusedError(
            "resample_too_fine",
            f"source.time.resample.every is {every:g}; at times around "
            f"{float(np.abs(time).max()):g} float64 holds no such distance. Set source.time.unit "
            "if times are in another unit.",
        )
    slack = 1e-9 + 4 * np.finfo(np.float64).eps * np.abs(exact)
    return _Places(exact, slack, np.floor(exact + slack).astype(np.int64))


def _bin_ranges(bins: Int64, starts: Int64) -> tuple[Int64, Int64]:
    """Return first and last bin of each segment; of a bin in two, the first segment has it."""
    lows = bins[starts]
    highs = bins[np.append(starts[1:], len(bins)) - 1]
    taken = np.append(lows[0] - 1, highs[:-1])
    # The next bin with a row, not the next bin: the gap itself is no row of any segment.
    shared = np.flatnonzero(lows <= taken)
    after = np.searchsorted(bins, taken[shared], side="right")
    lows[shared] = np.where(
        after < len(bins), bins[np.minimum(after, len(bins) - 1)], highs[-1] + 1
    )
    return lows, highs


def _grid_ranges(places: _Places, starts: Int64) -> tuple[Int64, Int64]:
    """Return the first and the last multiple within each segment; none where first > last."""
    ends = np.append(starts[1:], len(places.bin)) - 1
    lows = np.ceil(places.exact[starts] - places.slack[starts]).astype(np.int64)
    highs = places.bin[ends]
    taken = np.maximum.accumulate(np.append(lows[0] - 1, highs[:-1]))
    return np.maximum(lows, taken + 1), highs


def _enumerate(lows: Int64, highs: Int64, n_rows: int) -> tuple[Int64, Int64]:
    """Return all bins of all segments, and the place of each segment's first one."""
    counts = highs - lows + 1
    total, most = int(counts.sum()), max(_MOST_ROWS, _MOST_PER_ROW * n_rows)
    if total > most:
        raise RefusedError(
            "too_many_rows",
            f"source.time.resample makes {total:,} rows from {n_rows:,}; at most {most:,} are "
            "made. Set source.time.max_gap, or a larger distance.",
        )
    starts = np.cumsum(counts) - counts
    return np.repeat(lows - starts, counts) + np.arange(total, dtype=np.int64), starts


def _moment(bins: Int64, every: float) -> Float64:
    return bins.astype(np.float64) * every


def _moments(time: Float64, places: _Places, bins: Int64, every: float) -> Float64:
    """Return when bins begin: at the time of a row that is there up to rounding."""
    moments = _moment(bins, every)
    nearest = np.rint(places.exact)
    there = np.abs(places.exact - nearest) <= places.slack
    wanted = nearest[there].astype(np.int64)
    found = np.minimum(np.searchsorted(bins, wanted), len(bins) - 1)
    same = bins[found] == wanted
    moments[found[same]] = time[there][same]
    return moments


def _interpolate(
    time: Float64, numbers: Float64, starts: Int64, moments: Float64, segments: Int64
) -> Float64:
    """Return `[moments, columns]`: on the line between the neighbouring present values.

    Args:
        time: `[rows]`.
        numbers: `[rows, columns]`, NaN where missing.
        starts: First row of each segment.
        moments: Where values are wanted, increasing.
        segments: The segment each of them is in; values of others are not looked at.
    """
    n_rows = len(time)
    ends = np.append(starts[1:], n_rows)
    first, last = starts[segments], ends[segments] - 1
    moments = np.clip(moments, time[first], time[last])
    before = np.searchsorted(time, moments, side="right") - 1
    after = np.where(time[before] == moments, before, before + 1)
    present = ~np.isnan(numbers)
    past, ahead = last_present(present)[before], next_present(present)[after]
    inside = (past >= first[:, None]) & (ahead <= last[:, None])
    past, ahead = np.where(inside, past, 0), np.where(inside, ahead, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (np.take_along_axis(numbers, at, axis=0) for at in (past, ahead))
        span = time[ahead] - time[past]
        share = (moments[:, None] - time[past]) / np.where(span > 0, span, 1.0)
        return np.where(inside, np.where(span > 0, low + (high - low) * share, low), np.nan)
