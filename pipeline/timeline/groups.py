"""Statistics of runs of rows, and where the nearest present values are."""

from __future__ import annotations

import numpy as np

from pipeline.trials import Bool, Float64, Int64


def group_mean(values: Float64, firsts: Int64) -> Float64:
    """Return the mean of the present values of each run and column; NaN where there are none.

    Deviations from the run's last value are summed, so a level costs no digits of the spread.

    Args:
        values: `[rows, columns]` float64, NaN where missing.
        firsts: `[runs]` first row of each run, increasing from 0.
    """
    if len(firsts) == len(values):
        return values
    n_columns, shape = values.shape[1], (len(firsts), values.shape[1])
    base = group_last(values, firsts)
    base[~np.isfinite(base)] = 0.0  # an infinite value stays what it is
    runs = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(values))))
    present = ~np.isnan(values)
    # bincount over all cells: add.reduceat takes 10 times as long for short runs.
    cells = (runs[:, None] * n_columns + np.arange(n_columns))[present]
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = (values - base[runs])[present]
        sums = np.bincount(cells, deviations, base.size).reshape(shape)
        counts = np.bincount(cells, minlength=base.size).reshape(shape)
        means: Float64 = base + sums / np.maximum(counts, 1)
    return np.where(counts > 0, means, np.nan)


def group_last(values: Float64, firsts: Int64) -> Float64:
    """Return the last present value of each run and column; NaN where there is none."""
    ends = np.append(firsts[1:], len(values)) - 1
    rows = last_present(~np.isnan(values))[ends]
    picked = np.take_along_axis(values, np.maximum(rows, 0), axis=0)
    return np.where(rows >= firsts[:, None], picked, np.nan)


def last_present(present: Bool) -> Int64:
    """Return `[rows, columns]` the last present row at or before each; -1 where there is none."""
    # Columns side by side: accumulating over rows that are apart takes 4 times as long.
    rows = np.where(np.ascontiguousarray(present.T), np.arange(len(present)), -1)
    return np.maximum.accumulate(rows, axis=1, out=rows).T


def next_present(present: Bool) -> Int64:
    """Return `[rows, columns]` the first present row at or behind each; `rows` if there is none."""
    return len(present) - 1 - last_present(present[::-1])[::-1]
