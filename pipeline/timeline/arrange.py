"""Rows in the order of time: sorted, one per moment, cut where time is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.files import RefusedError
from pipeline.sections import TimeSpec
from pipeline.timeline.groups import group_mean
from pipeline.timeline.resample import resample_rows
from pipeline.trials import Float64, Int64


@dataclass(frozen=True)
class Arranged:
    """A trial's rows in the order of time.

    Rows in == rows here + `n_merged` - `n_inserted`. Arrays may be the ones that came in.

    Attributes:
        time: `[rows]` float64, strictly increasing.
        numbers: `[rows, columns]` float64, NaN where missing.
        text_rows: `[rows]` int64: the row of the input that texts are taken from, -1 for none.
        starts: `[segments]` int64: first row of each segment; the first is 0.
        n_merged: Rows of the input that are no rows of their own any more.
        n_inserted: Rows that resampling made where the input has none.
    """

    time: Float64
    numbers: Float64
    text_rows: Int64
    starts: Int64
    n_merged: int
    n_inserted: int


def arrange_rows(time: Float64, numbers: Float64, spec: TimeSpec) -> Arranged:
    """Sort rows, merge equal times, find segments, resample: in this order, as the spec says.

    Sorting is stable. Of rows with equal times `first` and `last` keep one row as it is, missing
    numbers included; `mean` takes each column's present numbers, and the first row's text. A
    longer step than `max_gap` begins a segment. For resampling see `resample_rows`.

    Args:
        time: `[rows]` float64, finite.
        numbers: `[rows, columns]` float64, NaN where missing.
        spec: What to do.

    Raises:
        RefusedError: `time_not_increasing`, `time_duplicate`, `too_many_rows`,
            `resample_too_fine` or `resample_no_rows`.
    """
    n_rows_in = len(time)
    rows = np.arange(n_rows_in, dtype=np.int64)
    if not (time[1:] >= time[:-1]).all():
        rows = _sorted(time, spec)
        time, numbers = time[rows], numbers[rows]
    equal = time[1:] == time[:-1]
    if equal.any():
        firsts = np.flatnonzero(np.concatenate([[True], ~equal]))
        numbers, rows = _merge(time, numbers, rows, firsts, spec)
        time = time[firsts]
    starts = _segments(time, spec)
    n_inserted = 0
    if spec.resample is not None and len(time):
        bins = resample_rows(time, numbers, starts, spec.resample)
        texts = np.where(bins.rows < 0, -1, rows[bins.rows])
        time, numbers, rows, starts = bins.time, bins.numbers, texts, bins.starts
        n_inserted = int((texts < 0).sum())
    n_merged = n_rows_in + n_inserted - len(time)
    return Arranged(time, numbers, rows, starts, n_merged, n_inserted)


def _sorted(time: Float64, spec: TimeSpec) -> Int64:
    if spec.unsorted == "refuse":
        row = int((time[1:] < time[:-1]).argmax())
        raise RefusedError(
            "time_not_increasing",
            f"column {spec.column!r} goes from {show_time(time[row], spec)} to "
            f"{show_time(time[row + 1], spec)} at row {row + 2}; wanted strictly increasing times. "
            "Sort the file, or set 'source.time.unsorted: sort'.",
            column=spec.column,
        )
    return np.argsort(time, kind="stable")


def _merge(
    time: Float64, numbers: Float64, rows: Int64, firsts: Int64, spec: TimeSpec
) -> tuple[Float64, Int64]:
    """Return the numbers and the text row of each moment; `firsts` are its first rows."""
    if spec.duplicates == "refuse":
        first = int((time[1:] == time[:-1]).argmax())
        raise RefusedError(
            "time_duplicate",
            f"column {spec.column!r} has {show_time(time[first], spec)} at row {rows[first] + 1} "
            f"and at row {rows[first + 1] + 1}; wanted one row per time. Remove duplicate rows, or "
            "set 'source.time.duplicates' to first, last or mean.",
            column=spec.column,
        )
    if spec.duplicates == "mean":
        return group_mean(numbers, firsts), rows[firsts]
    chosen = firsts
    if spec.duplicates == "last":
        chosen = np.concatenate([firsts[1:], [len(time)]]) - 1
    return numbers[chosen], rows[chosen]


def _segments(time: Float64, spec: TimeSpec) -> Int64:
    """Return the first row of each segment."""
    if spec.max_gap is None or len(time) < 2:
        return np.zeros(1, np.int64)
    with np.errstate(over="ignore"):
        step = np.diff(time)
    # 0.3 - 0.2 is a little more than 0.1: a step that is as long as allowed must not be a gap.
    slack = 1e-9 * spec.max_gap.amount + 2 * np.spacing(np.abs(time).max())
    breaks = np.flatnonzero(step > spec.max_gap.amount + slack) + 1
    return np.concatenate([[0], breaks]).astype(np.int64)


def show_time(time: float, spec: TimeSpec) -> str:
    """Return a time as a reader of the file knows it."""
    if spec.is_date:
        return str(np.datetime64(round(time * 1e6), "us")).removesuffix(".000000") + "Z"
    if spec.format == "clock":
        minutes, second = divmod(time, 60)
        return f"{int(minutes // 60):02d}:{int(minutes % 60):02d}:{second:02.6g}"
    return f"{time:.15g}" + (" s" if spec.unit else "")
