"""When rows were measured: a beginning and a step where the times are regular (SPEC section 9)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SLACK = 4
"""Spacings of float64 that a regular time may be off its place."""


def regular_step(time: Float64, edges: Int64) -> Float64:
    """Return the step of each segment whose times its first one and the step give back.

    A segment of n rows is regular if `|t[k] - (t[0] + k * step)|` is at most 4 spacings of float64
    at its largest |t| for every k, with `step = (t[n - 1] - t[0]) / (n - 1)`, all computed in
    float64, each operation rounded once. One row is regular, with step 0. Even times of one sign
    that were rounded to float64 are regular; those of a clock whose digits were cut are not.

    Args:
        time: `[rows]` float64, of all segments; within a segment nowhere decreasing.
        edges: `[segments + 1]` int64: segment i is rows edges[i] to edges[i + 1], one at least.

    Returns:
        `[segments]` float64, NaN where a segment is irregular or holds a time that is not finite.
    """
    n_rows, first, last = np.diff(edges), time[edges[:-1]], time[edges[1:] - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        step: Float64 = (last - first) / np.maximum(n_rows - 1, 1)
        # Times do not decrease, so the largest magnitude is at an end.
        slack = SLACK * np.spacing(np.maximum(np.abs(first), np.abs(last)))
        places = np.arange(len(time), dtype=np.float64) - np.repeat(edges[:-1], n_rows)
        places *= np.repeat(step, n_rows)
        places += np.repeat(first, n_rows)
        places -= time
    off = np.maximum.reduceat(np.abs(places, out=places), edges[:-1])
    step[~(off <= slack)] = np.nan  # so that what is not a number is no place either
    return step


def row_times(segment_start: float, time_step: float, n_rows: int) -> Float64:
    """Return the times of a regular segment's rows, as `regular_step` checked them.

    Args:
        segment_start: Time of its first row.
        time_step: What `regular_step` gave; NaN makes every time NaN.
        n_rows: Rows of the segment.

    Returns:
        `[n_rows]` float64: `segment_start + k * time_step`, each operation rounded once.
    """
    return segment_start + np.arange(n_rows, dtype=np.float64) * time_step
