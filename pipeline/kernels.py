"""Compiled arithmetic over many trials at once: rows below each other, and where each trial ends.

No function looks past the rows of a trial, and sums run in the order of numpy's, so that a trial
has the same bits in every batch, and with or without compiled code.

Importing this module imports numba: import it where it is used.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.trials import Bool as Flags
from pipeline.trials import Float32, Float64
from pipeline.trials import Int64 as Offsets

A = TypeVar("A", bound=npt.NDArray[Any])
F = TypeVar("F", bound=Callable[..., Any])
Bits = npt.NDArray[np.uint8]

_numba: Any = import_module("numba")  # has no types
_LOCK = threading.Lock()
_OPTIONS = {"nogil": True, "error_model": "numpy"}  # every division follows numpy
_BLOCK, _LEVELS = 128, 48
MOMENTS = ("count", "shift", "sum", "sum_sq", "min", "max")


def warm_up() -> None:
    """Compile what this module offers to trials, or take it from disk."""
    values, offsets = np.zeros((1, 1)), np.array([0, 1])
    measure_moments(values, offsets)
    find_faults(values, offsets, 1.0)
    apply_affine(values, offsets, values, values + 1)
    pack_flags(np.ones((1, 1), np.bool_), offsets)


def measure_moments(values: Float64, offsets: Offsets) -> dict[str, Float64]:
    """Return the moments of present values per trial and column, as `normalize` defines them.

    Args:
        values: `[rows, columns]` float64, C order, NaN where missing.
        offsets: `[trials + 1]` int64: trial i is rows offsets[i] to offsets[i + 1].

    Returns:
        `MOMENTS`, each `[trials, columns]` float64.
    """
    out = np.zeros((len(MOMENTS), len(offsets) - 1, values.shape[1]))
    _compiled(_fill_moments)(_own(values), _own(offsets), out)
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
    own = (_own(part) for part in (values, offsets, offset, scale))
    _compiled(_fill_affine)(*own, out)
    return out


def find_faults(values: Float64, offsets: Offsets, largest: float) -> Offsets:
    """Return per trial how many values are larger than `largest`, and how many are missing."""
    out = np.empty((2, len(offsets) - 1), np.int64)
    _compiled(_fill_faults)(_own(values), _own(offsets), largest, out)
    return out


def pack_flags(flags: Flags, offsets: Offsets) -> tuple[Bits, Offsets]:
    """Return the bits of each row as bytes, the first one lowest; and how many a trial has set."""
    packed = np.empty((len(flags), (flags.shape[1] + 7) // 8), np.uint8)
    n_set = np.empty(len(offsets) - 1, np.int64)
    _compiled(_fill_bits)(_own(flags), _own(offsets), packed, n_set)
    return packed, n_set


def _own(array: A) -> A:
    """Return the array if it is as compiled code knows it, else a copy that is."""
    owned: A = np.require(array, requirements=("C", "W"))
    return owned


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    with _LOCK:
        return _compile(function)


@functools.cache
def _compile(function: Callable[..., None]) -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = _numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the cache
        compiled = _numba.njit(**_OPTIONS)(function)
    return compiled


def _inner(function: F) -> F:
    compiled: F = _numba.njit(**_OPTIONS)(function)
    return compiled


def _fill_moments(values: Float64, offsets: Offsets, out: Float64) -> None:
    n_columns, flat = values.shape[1], values.reshape(-1)
    partial, lanes = np.empty((_LEVELS, 2, n_columns)), np.empty((3, 8 * n_columns))
    centre, wide = np.empty(n_columns), np.empty(8 * n_columns)
    for trial in range(len(offsets) - 1):
        start, n = offsets[trial], offsets[trial + 1] - offsets[trial]
        count, shift, total, squares = out[0, trial], out[1, trial], out[2, trial], out[3, trial]
        _find_ends(flat, start, n, lanes, count, out[4, trial], out[5, trial])
        _find_first(values, start, n, centre)
        if n == 0:
            continue
        _add_all(flat, start, n, centre, wide, partial, lanes)
        for column in range(n_columns):
            shift[column] = centre[column] + partial[0, 0, column] / max(count[column], 1.0)
        _add_all(flat, start, n, shift, wide, partial, lanes)
        total[:], squares[:] = partial[0, 0], partial[0, 1]


@_inner
def _find_first(values: Float64, start: int, n: int, first: Float64) -> None:
    """Fill in the first present value of each column, or 0."""
    for column in range(values.shape[1]):
        first[column] = 0.0
        for row in range(start, start + n):
            if not np.isnan(values[row, column]):
                first[column] = values[row, column]
                break


@_inner
def _find_ends(
    flat: Float64, start: int, n: int, lanes: Float64, count: Float64, low: Float64, high: Float64
) -> None:
    """Fill in how many values of each column are present, the lowest and the highest."""
    n_columns, counts, lows, highs = len(count), lanes[0], lanes[1], lanes[2]
    counts[:], lows[:], highs[:] = 0.0, np.inf, -np.inf
    end = (start + n) * n_columns
    for base in range(start * n_columns, end, 8 * n_columns):  # 8 rows at a time
        block = flat[base : min(base + 8 * n_columns, end)]
        for at in range(len(block)):
            value = block[at]
            counts[at] += 0.0 if np.isnan(value) else 1.0
            lows[at] = value if value < lows[at] else lows[at]  # noqa: FURB136 - NaN is neither
            highs[at] = value if value > highs[at] else highs[at]  # noqa: FURB136
    count[:], low[:], high[:] = 0.0, np.inf, -np.inf
    for at in range(8 * n_columns):
        column = at % n_columns
        count[column] += counts[at]
        low[column] = min(low[column], lows[at])
        high[column] = max(high[column], highs[at])
    for column in range(n_columns):
        if count[column] == 0.0:
            low[column] = high[column] = np.nan
        low[column] += 0.0  # of two zeros, the one without a sign
        high[column] += 0.0


@_inner
def _add_all(
    flat: Float64, start: int, n: int, centre: Float64, wide: Float64, partial: Float64,
    lanes: Float64,
) -> None:  # fmt: skip
    """Sum deviations, and their squares, into partial[0], in the order of numpy's reduceat."""
    n_columns = len(centre)
    for at in range(8 * n_columns):
        wide[at] = centre[at % n_columns]
    _add_pairwise(flat, start + 1, n - 1, wide, partial, lanes)
    for column in range(n_columns):
        value = flat[start * n_columns + column]
        deviation = 0.0 if np.isnan(value) else value - centre[column]
        partial[0, 0, column] = deviation + partial[0, 0, column]
        partial[0, 1, column] = deviation * deviation + partial[0, 1, column]


@_inner
def _add_pairwise(
    flat: Float64, start: int, n: int, wide: Float64, partial: Float64, lanes: Float64
) -> None:
    """Sum rows into partial[0] as numpy does: by halves, and those of 128 rows in 8 lanes.

    Each level of halves keeps its sum and a task: start, rows, halves that are done. No function
    calls itself, as one that does crashes when numba takes it from disk.
    """
    tasks, level = np.zeros((_LEVELS, 3), np.int64), 0
    tasks[0, 0], tasks[0, 1] = start, n
    while level >= 0:
        begin, size, n_done = tasks[level]
        half = size // 2
        half -= half % 8
        if size <= _BLOCK:
            _add_block(flat, begin, size, wide, partial[level], lanes)
        elif n_done == 1:
            partial[level] = partial[level + 1]
        elif n_done == 2:
            partial[level] += partial[level + 1]
        if size <= _BLOCK or n_done == 2:
            level -= 1
            continue
        tasks[level, 2], level = n_done + 1, level + 1
        tasks[level, 0] = begin + half * n_done
        tasks[level, 1], tasks[level, 2] = size - half if n_done else half, 0


@_inner
def _add_block(
    flat: Float64, start: int, n: int, wide: Float64, total: Float64, lanes: Float64
) -> None:
    n_columns, plain, squared = total.shape[1], lanes[0], lanes[1]
    whole, end = (start + n - n % 8) * n_columns, (start + n) * n_columns
    total[:], lanes[:] = -0.0, -0.0
    for base in range(start * n_columns, whole, 8 * n_columns):
        block = flat[base : base + 8 * n_columns]
        for at in range(len(block)):
            value = block[at]
            deviation = 0.0 if np.isnan(value) else value - wide[at]
            plain[at] += deviation
            squared[at] += deviation * deviation
    if n >= 8:
        for part in range(2):
            own = lanes[part].reshape(8, n_columns)
            for column in range(n_columns):
                front = (own[0, column] + own[1, column]) + (own[2, column] + own[3, column])
                back = (own[4, column] + own[5, column]) + (own[6, column] + own[7, column])
                total[part, column] = front + back
    for base in range(whole, end, n_columns):
        block = flat[base : base + n_columns]
        for column in range(n_columns):
            value = block[column]
            deviation = 0.0 if np.isnan(value) else value - wide[column]
            total[0, column] += deviation
            total[1, column] += deviation * deviation


def _fill_faults(values: Float64, offsets: Offsets, largest: float, out: Offsets) -> None:
    flat, n_columns = values.reshape(-1), values.shape[1]
    for trial in range(len(offsets) - 1):
        beyond = missing = 0
        own = flat[offsets[trial] * n_columns : offsets[trial + 1] * n_columns]
        for place in range(len(own)):
            beyond += abs(own[place]) > largest
            missing += np.isnan(own[place])
        out[0, trial], out[1, trial] = beyond, missing


def _fill_bits(flags: Flags, offsets: Offsets, packed: Bits, n_set: Offsets) -> None:
    n_columns, n_bytes = flags.shape[1], packed.shape[1]
    for trial in range(len(offsets) - 1):
        found = 0
        for row in range(offsets[trial], offsets[trial + 1]):
            for place in range(n_bytes):
                bits = 0
                for bit in range(min(8, n_columns - 8 * place)):
                    flag = flags[row, 8 * place + bit]
                    bits |= flag << bit
                    found += flag
                packed[row, place] = bits
        n_set[trial] = found


def _fill_affine(
    values: Float64, offsets: Offsets, offset: Float64, scale: Float64, out: Float32
) -> None:
    for trial in range(len(offsets) - 1):
        for row in range(offsets[trial], offsets[trial + 1]):
            for column in range(values.shape[1]):
                centred = values[row, column] - offset[trial, column]
                out[row, column] = centred / scale[trial, column]
