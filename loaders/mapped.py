"""One array of all shards of a split as one flat tensor.

All shards are mapped into one address range, so one call fetches a whole batch at the speed of a
block copy, from 1 shard or 1,000.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.coldrows import ColdRows, memory_bytes
from loaders.copying import Fetch, FlatWindows, Picks
from shards import Store

Int64 = npt.NDArray[np.int64]


class MappedRows:
    """One array of all shards that hold the given trials, as one flat tensor.

    Args:
        store: The open version.
        array: Array name.
        trials: Trial numbers; a look-up takes the position in this list.
        n_columns: Columns of one step.
        most_rows: Rows that one look-up may reach past the first; more rows than a trial has are
            read harmlessly.
        at_random: Whether look-ups come from all over the trials.
    """

    def __init__(
        self, store: Store, array: str, trials: Int64, n_columns: int, most_rows: int,
        *, at_random: bool = False,
    ) -> None:  # fmt: skip
        index = store.index
        shards, place = np.unique(index.shard[trials], return_inverse=True)
        spec = store.manifest.shards[int(shards[0])].arrays[array]
        files = store.map_array(array, shards.tolist(), tail_bytes=most_rows * spec.row_bytes)
        item_bytes = spec.row_bytes // spec.n_columns
        self.n_columns = n_columns
        self._width = spec.n_columns
        self._stride = store.manifest.windows.stride if store.manifest.layout == "windows" else None
        self._first: Int64 = files.offsets[place] // item_bytes
        self._first += index.row_start[trials] * self._width
        # Few of torch's kernels know uint16; int16 moves the same bits.
        self._array = files.bytes.view("int16" if spec.dtype == "uint16" else spec.dtype)
        with warnings.catch_warnings():  # the map is read-only, and so is all use of it here
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._windows = FlatWindows(torch.from_numpy(self._array))
        is_cold = at_random and spec.row_bytes * int(index.n_rows[trials].sum()) > memory_bytes()
        self._cold = ColdRows(self._array) if is_cold else None
        self._reach = most_rows * self._width

    def locate(self, trial: Int64, row: Int64) -> Int64:
        """Return the element where the window at `row` of `trial` (a position in the list) begins.

        In layout rows it begins with that row; in layout windows it is a row of its own.
        """
        element = self._first.take(trial)
        element += (row if self._stride is None else row // self._stride) * self._width
        return element

    def pick(self, element: Int64) -> npt.NDArray[Any]:
        """Return single elements, in the shape asked for."""
        return self._array.take(element)

    def copy(self, element: Int64, out: Tensor) -> None:
        """Copy what follows each of `element` into a row of `out`.

        Args:
            element: int64 `[n]`, C order, from `locate`.
            out: `[n, n_rows, columns]`, contiguous.
        """
        self.fetch(torch.from_numpy(element), out).finish()

    def fetch(
        self, element: Tensor, out: Tensor, picks: Picks | None = None, ones: Tensor | None = None
    ) -> Fetch:
        """Ask for what follows each of `element`; see `copy` and `FlatWindows.fetch`."""
        if self._cold is not None:
            self._cold.ask(element.numpy(), max(self._reach, out.shape[1] * out.shape[2]))
        return self._windows.fetch(element, out, picks, ones)
