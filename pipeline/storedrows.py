"""What a shard holds of one trial, row by row, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from shards.windows import WindowSpec

BLOCK_ROWS = 2**16
"""Rows looked at at once: what is unpacked or copied of a long trial stays small."""


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
