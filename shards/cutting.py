"""From the rows of trial segments to their windows, as layout windows stores them (SPEC section 4).

Pure functions of arrays; all segments are cut at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from shards.identity import little_endian
from shards.windows import WindowSpec, count_windows

Int64 = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Cut:
    """What is cut from rows.

    Attributes:
        windows: How windows lie on a trial.
        forecast: Columns of `values` that are forecast, in order; empty for other targets.
    """

    windows: WindowSpec
    forecast: tuple[int, ...] = ()

    def window_bytes(self, arrays: Arrays) -> int:
        """Return the bytes of one window of all arrays."""
        length, steps = self.windows.length, self.windows.steps
        own = sum(int(rows.shape[1]) * rows.itemsize for rows in arrays.values())
        return length * own + steps * len(self.forecast) * arrays["values"].itemsize


def cut_windows(arrays: Arrays, n_rows: Int64, cut: Cut) -> dict[str, npt.NDArray[Any]]:
    """Return the windows of segments that lie one after another, in order.

    Args:
        arrays: `values` float32 `[rows, C]` and where there are any `observed`, `targets`, `codes`.
        n_rows: `[segments]`, rows of each; they sum to the rows of the arrays.
        cut: What to cut.

    Returns:
        The same arrays as `[windows, length * columns]`, padded behind with zeros, `targets` with
        NaN; for a forecast `targets` as `[windows, steps * K]`, the values of its columns ahead.
    """
    windows = cut.windows
    n_windows = count_windows(n_rows, windows)
    first = np.repeat(np.cumsum(n_rows) - n_rows, n_windows)
    number = np.arange(len(first)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    start = first + number * windows.stride
    valid = np.repeat(np.minimum(np.int64(windows.length), n_rows - windows.ahead), n_windows)
    out = {
        name: _copy(rows, start, valid, windows.length, np.nan if name == "targets" else 0)
        for name, rows in arrays.items()
    }
    if cut.forecast:
        at = start + valid + (windows.horizon - 1)
        ahead = at[:, None] + np.arange(windows.steps)
        out["targets"] = arrays["values"][ahead[:, :, None], np.array(cut.forecast, np.int64)]
        out["targets"] = out["targets"].reshape(len(at), windows.steps * len(cut.forecast))
    return out


def _copy(
    rows: npt.NDArray[Any], start: Int64, valid: Int64, length: int, fill: float
) -> npt.NDArray[Any]:
    """Return `[n, length * columns]`: `valid` rows from each `start` on, then `fill`."""
    rows = np.ascontiguousarray(rows)
    n_rows, width = rows.shape[0], length * rows.shape[1]
    if n_rows < length:
        out = np.full((len(start), width), fill, rows.dtype)
    else:
        runs = np.lib.stride_tricks.sliding_window_view(rows.reshape(-1), width)[:: rows.shape[1]]
        out = runs[np.minimum(start, n_rows - length)]  # short ones are written over below
    short = np.flatnonzero(valid < length)
    if len(short):
        step = np.arange(length)
        part = rows[np.minimum(start[short, None] + step, n_rows - 1)]
        part[step >= valid[short, None]] = fill
        out[short] = part.reshape(len(short), width)
    return out


def join_windows(
    stored: npt.NDArray[Any], n_rows: int, windows: WindowSpec, fill: float
) -> npt.NDArray[Any]:
    """Return a trial's rows from its windows.

    Args:
        stored: `[windows, length * columns]`, all windows of the trial in order.
        n_rows: Rows of the trial.
        windows: How they were cut.
        fill: What rows hold that lie in no window, between two or behind the last.

    Returns:
        `[n_rows, columns]`, a copy.
    """
    n_columns = stored.shape[1] // windows.length
    rows = np.full((n_rows, n_columns), fill, stored.dtype)
    if not len(stored):
        return rows
    n_valid = min(windows.length, n_rows - windows.ahead)
    start = np.arange(len(stored)) * windows.stride
    # Of a row that lies in several windows each holds the same bytes.
    at = (start[:, None] + np.arange(n_valid)).reshape(-1)
    rows[at] = stored[:, : n_valid * n_columns].reshape(-1, n_columns)
    return rows


def stored_digest(arrays: Arrays) -> str:
    """Return what a trial's stored windows hash to: the cold column `stored` (SPEC section 9)."""
    state = xxhash.xxh3_128()
    for name in sorted(arrays):
        rows = little_endian(arrays[name])
        head = f"{name}|{rows.dtype.name}|{rows.shape[0]}x{rows.shape[1]}".encode()
        state.update(len(head).to_bytes(8, "little") + head + rows.nbytes.to_bytes(8, "little"))
        if rows.size:
            state.update(rows.data.cast("B"))
    return state.hexdigest()
