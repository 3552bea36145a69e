"""From (trial, first row) to tensors: the copies and single float32 operations of delivery.

All shards of a split are mapped into one address range, so one `index_select` over an overlapping
strided view fetches a whole batch at the speed of a block copy, from 1 shard or 1,000. It runs on
as many threads as torch has. Of 2 MiB on an idle machine of 2 cores: 1 thread 0.19 ms, 2 threads
0.12 ms. Where other processes want the cores too, threads wait for each other: 2 were then seen
1.1 to 9 times slower than 1 (`torch.set_num_threads(1)`; DataLoader workers have one anyway).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.codes import CodeTable, static_inputs
from loaders.pool import BufferPool
from loaders.rescale import Applied, Rescale
from loaders.selection import Selection
from shards import Store

Int64 = npt.NDArray[np.int64]

FEW = 16
"""Target elements per window up to which picking them one by one beats copying whole rows."""


class MappedRows:
    """One array of all shards that hold the given trials, as one flat tensor.

    Args:
        store: The open version.
        array: Array name.
        trials: Trial numbers; a look-up takes the position in this list.
        n_columns: Columns of one step.
        most_rows: Rows that one look-up may reach past the first; more rows than a trial has are
            read harmlessly.
    """

    def __init__(
        self, store: Store, array: str, trials: Int64, n_columns: int, most_rows: int
    ) -> None:
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
            self._flat = torch.from_numpy(self._array)
        self._views: dict[int, Tensor] = {}

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

    def copy(self, element: Tensor, out: npt.NDArray[Any]) -> Tensor:
        """Copy what follows each of `element` into a row of `out`.

        Args:
            element: `[n]` int64, from `locate`.
            out: `[n, n_rows, columns]`, C order.

        Returns:
            `[n, n_rows * columns]`, sharing the memory of `out`.
        """
        width = out.shape[1] * out.shape[2]
        rows = torch.from_numpy(out.reshape(len(out), width))
        if width not in self._views:
            shape = (self._flat.numel() - width + 1, width)
            self._views[width] = self._flat.as_strided(shape, (1, 1))
        torch.index_select(self._views[width], 0, element, out=rows)
        return rows


class Draws(NamedTuple):
    """Draws of the plan with all that is looked up per trial.

    Attributes:
        places: int64 `[6, n]`, one array because a batch is a slice of it: position in the list of
            trials; trial number; first row of the window in the trial; valid rows; element of the
            mapped values where the window begins; the element where its forecast target does, in
            the values or, in layout windows, in the targets.
        weights: float32 `[n]`.
    """

    places: Int64
    weights: npt.NDArray[np.float32]

    def filled(self, size: int) -> Draws:
        """Return a copy with filler rows up to `size`: number -1, weight 0, the rest 0."""
        n = self.places.shape[1]
        if n == size:
            return Draws(self.places.copy(), self.weights.copy())
        places, weights = np.zeros((6, size), np.int64), np.zeros(size, np.float32)
        places[1] = -1
        places[:, :n], weights[:n] = self.places, self.weights
        return Draws(places, weights)


class WindowGather:
    """Delivers windows of one split.

    Args:
        store: The open version.
        selection: The trials and windows to deliver.
    """

    def __init__(self, store: Store, selection: Selection) -> None:
        manifest, windows, trials = store.manifest, selection.windows, selection.trials
        self._selection, self._spec, self._target = selection, windows, manifest.target
        self._pool = BufferPool()
        self._label = store.index.label[trials]
        n_rows = store.index.n_rows[trials]
        self._length: Int64 = np.minimum(np.int64(windows.length), n_rows - windows.ahead)
        self._any_short = bool((self._length < windows.length).any())
        self._may_miss = bool(manifest.counts.get("has_missing", True))
        n_channels, n_targets = len(manifest.channels), len(self._target.columns)
        # Of windows that are stored none reaches past its own row.
        past = (windows.length, windows.ahead) if manifest.layout == "rows" else (0, 0)
        self._values = MappedRows(store, "values", trials, n_channels, sum(past))
        self._observed = self._targets = None
        if manifest.observed:
            n_bytes = -(-n_channels // 8)
            self._observed = MappedRows(store, "observed", trials, n_bytes, past[0])
        apart = self._target.kind == "forecast" and manifest.layout == "windows"
        if self._target.kind == "per_step" or apart:
            self._targets = MappedRows(store, "targets", trials, n_targets, past[0])
        self._codes = self._code_table = None
        if manifest.codes:
            self._codes = MappedRows(store, "codes", trials, len(manifest.codes), past[0])
            self._code_table = CodeTable(store, trials)
        self._statics, self._static_codes = static_inputs(store, trials)
        names = [channel.name for channel in manifest.channels]
        chosen = self._target.columns if self._target.kind == "forecast" else ()
        self._columns = np.array([names.index(column) for column in chosen], np.int64)
        # Where forecast targets lie from their first element on: among other channels, or alone.
        self._ahead = self._targets if apart and self._targets else self._values
        among = np.arange(n_targets) if apart else self._columns
        self._offsets = np.arange(windows.steps)[:, None] * self._ahead.n_columns + among
        self._rescale = Rescale(
            store.delivery, trials, windows.length, self._columns, may_miss=self._may_miss
        )

    def renew_pool(self) -> None:
        """Forget the batch memory; a forked child cannot see who still uses it."""
        self._pool = BufferPool()

    def resolve(self, trial: Int64, window: Int64) -> Draws:
        """Look up what the draws of a block need."""
        places = np.empty((6, len(trial)), np.int64)
        places[0] = trial
        places[1] = self._selection.trials.take(trial)
        np.multiply(window, self._spec.stride, out=places[2])
        places[3] = self._length.take(trial)
        places[4] = self._values.locate(trial, places[2])
        if self._ahead is self._values:
            places[5] = (places[3] + (self._spec.horizon - 1)) * self._values.n_columns
            places[5] += places[4]
        else:
            places[5] = self._ahead.locate(trial, places[2])
        return Draws(places, self._selection.weights.take(trial))

    def collect(self, draws: Draws, size: int) -> dict[str, Tensor | None]:
        """Return the tensors of a batch.

        Args:
            draws: The batch's draws, at most `size`; the rest is filler.
            size: Rows of the batch.

        Returns:
            All tensors of `Batch` by name.
        """
        places, weights = draws.filled(size)
        short: list[int] = []
        if self._any_short or size > len(draws.weights):
            short = np.flatnonzero(places[3] < self._spec.length).tolist()
        values, applied = self._copy_values(places, short)
        return {
            "values": values,
            "targets": self._copy_targets(places, short, applied),
            "observed": self._copy_observed(places, short),
            "valid": _cut(np.ones((size, self._spec.length), np.bool_), places[3], short, False),
            "lengths": torch.from_numpy(places[3]),
            "weights": torch.from_numpy(weights),
            "trial": torch.from_numpy(places[1]),
            "start": torch.from_numpy(places[2]),
            "regimes": applied.regimes,
            "window_offset": applied.offset,
            "window_scale": applied.scale,
            "codes": self._copy_codes(places, short),
            "statics": _rows_of(self._statics, places),
            "static_codes": _rows_of(self._static_codes, places),
        }

    def _copy_values(self, places: Int64, short: list[int]) -> tuple[Tensor, Applied]:
        shape = (places.shape[1], self._spec.length, self._values.n_columns)
        out = self._pool.take(shape, "float32")
        rows = self._values.copy(torch.from_numpy(places[4]), out)
        position, lengths = torch.from_numpy(places[0]), torch.from_numpy(places[3])
        applied = self._rescale.values(rows.view(shape), position, lengths)
        if self._may_miss:
            torch.nan_to_num_(rows, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return _cut(out, places[3], short, 0), applied

    def _copy_targets(self, places: Int64, short: list[int], applied: Applied) -> Tensor:
        if self._target.kind == "forecast":
            return self._copy_forecast(places, applied)
        if self._targets is None:
            return self._labels(places)
        shape = (places.shape[1], self._spec.length, self._targets.n_columns)
        out = self._pool.take(shape, "float32")
        self._targets.copy(torch.from_numpy(self._targets.locate(places[0], places[2])), out)
        return _cut(out, places[3], short, np.nan)

    def _copy_forecast(self, places: Int64, applied: Applied) -> Tensor:
        if self._offsets.size <= FEW:
            chosen = self._ahead.pick(places[5][:, None, None] + self._offsets)
        else:
            shape = (places.shape[1], self._spec.steps, self._ahead.n_columns)
            rows = np.empty(shape, np.float32)
            self._ahead.copy(torch.from_numpy(places[5]), rows)
            chosen = rows if self._ahead is self._targets else rows.take(self._columns, axis=2)
        targets = torch.from_numpy(chosen)
        self._rescale.targets(targets, torch.from_numpy(places[0]), applied)
        if places[1, -1] < 0:
            chosen[places[1] < 0] = np.nan
        return targets

    def _labels(self, places: Int64) -> Tensor:
        label = np.where(places[1] < 0, np.float32(np.nan), self._label[places[0]])
        if self._target.classes is None:
            return torch.from_numpy(label)
        return torch.from_numpy(np.where(np.isnan(label), -1, label).astype(np.int64))

    def _copy_observed(self, places: Int64, short: list[int]) -> Tensor | None:
        if self._observed is None:
            return None
        shape = (places.shape[1], self._spec.length, self._observed.n_columns)
        packed = np.empty(shape, np.uint8)
        self._observed.copy(torch.from_numpy(self._observed.locate(places[0], places[2])), packed)
        n_columns = self._values.n_columns
        seen = np.unpackbits(packed, axis=2, count=n_columns, bitorder="little")
        return _cut(seen.view(np.bool_), places[3], short, False)

    def _copy_codes(self, places: Int64, short: list[int]) -> Tensor | None:
        if self._codes is None or self._code_table is None:
            return None
        shape = (places.shape[1], self._spec.length, self._codes.n_columns)
        local = np.empty(shape, np.int16)
        self._codes.copy(torch.from_numpy(self._codes.locate(places[0], places[2])), local)
        _cut(local, places[3], short, 0)  # first: what follows a trial are codes of other words
        return torch.from_numpy(self._code_table.deliver(places[0], local.view(np.uint16)))


def _rows_of(matrix: npt.NDArray[Any] | None, places: Int64) -> Tensor | None:
    """Return the row of each window's trial; filler rows are 0."""
    if matrix is None:
        return None
    rows = matrix.take(places[0], axis=0)
    rows[places[1] < 0] = 0
    return torch.from_numpy(rows)


def _cut(out: npt.NDArray[Any], length: Int64, short: list[int], fill: float) -> Tensor:
    """Overwrite the padding of the short rows of `[B, L, ...]` with `fill`."""
    for row in short:
        out[row, length[row] :] = fill
    return torch.from_numpy(out)
