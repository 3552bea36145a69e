"""What a shard holds of one trial, row by row, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.reader import Float32, Store
from shards.windows import WindowSpec

BLOCK_ROWS = 2**16
"""Rows looked at at once: what is unpacked or copied of a long trial stays small."""


class Window(NamedTuple):
    """A window of a version: trial number, its first row there, and how many rows are valid."""

    trial: int
    start: int
    n_valid: int


def row_blocks(
    stored: npt.NDArray[Any], n_rows: int, windows: WindowSpec | None, *, most: int = BLOCK_ROWS
) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of a trial in order, each once, in blocks.

    Args:
        stored: What its shard holds of one array: `[n_rows, columns]`, or in layout windows
            `[windows, length * columns]`.
        n_rows: Rows of the trial.
        windows: How they were cut; None in layout rows.
        most: Rows of a block, about.

    Yields:
        `[rows, columns]`. In layout windows rows that lie in no window are not among them.
    """
    if windows is None:
        for first in range(0, len(stored), most):
            yield stored[first : first + most]
        return
    if not len(stored):
        return
    n_valid = min(windows.length, n_rows - windows.ahead)
    n_fresh = min(windows.stride, n_valid)  # rows of a window that the next one does not hold
    n_columns = stored.shape[1] // windows.length
    cut = stored.reshape(len(stored), windows.length, n_columns)
    step = max(most // n_fresh, 1)
    for first in range(0, len(cut), step):
        yield cut[first : first + step, :n_fresh].reshape(-1, n_columns)
    yield cut[-1, n_fresh:n_valid]


def rows_of_window(store: Store, window: Window, array: str) -> npt.NDArray[Any]:
    """Return `[valid rows, columns]` of a window as stored."""
    (trial, start, n_valid), spec = window, store.manifest.windows
    stored = store.trial_stored(trial, array)
    if store.manifest.layout == "rows":
        return stored[start : start + n_valid]
    cut: npt.NDArray[Any] = stored[start // spec.stride].reshape(spec.length, -1)
    return cut[:n_valid]


def rows_ahead(store: Store, window: Window) -> Float32:
    """Return stored `[rows, channels]` of a window, and those that its target needs behind it.

    In layout windows the latter are NaN but for what is forecast.
    """
    (trial, start, n_valid), spec, target = window, store.manifest.windows, store.manifest.target
    if store.manifest.layout == "rows":
        return np.asarray(store.trial_stored(trial)[start : start + n_valid + spec.ahead])
    names = [channel.name for channel in store.manifest.channels]
    rows = np.full((n_valid + spec.ahead, len(names)), np.nan, np.float32)
    rows[:n_valid] = rows_of_window(store, window, "values")
    if target.kind == "forecast":
        ahead = store.trial_stored(trial, "targets")[start // spec.stride]
        columns = [names.index(name) for name in target.columns]
        rows[n_valid + spec.horizon - 1 :, columns] = ahead.reshape(spec.steps, len(columns))
    return rows
