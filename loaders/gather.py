"""From (trial, first row) to tensors: the copies and single float32 operations of delivery.

Copies run in one thread (`loaders/copying.py`); what changes values runs on as many as torch has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from loaders.codes import CodeTable, static_inputs
from loaders.copying import Fetch, Picks, is_compiled
from loaders.draws import Asked, Draws
from loaders.mapped import MappedRows
from loaders.pool import Allocate, BufferPool, plain_memory, shared_memory
from loaders.rescale import Applied, Rescale
from loaders.selection import Selection
from shards import Store

Int64 = npt.NDArray[np.int64]

NOTHING = Applied()
FEW = 16
"""Target elements per window up to which picking them one by one beats copying whole rows."""


class RowGather:
    """Delivers windows, whole trials or chunks of them, of one split.

    Args:
        store: The open version.
        selection: What to deliver of it.
        allocate: Memory for batches.
    """

    def __init__(
        self, store: Store, selection: Selection, allocate: Allocate = plain_memory
    ) -> None:
        manifest, windows, trials = store.manifest, selection.windows, selection.trials
        self._selection, self._spec, self._target = selection, windows, selection.target
        self._dense = selection.steps is not None
        self._allocate = allocate
        self.renew_pool()
        self._label = store.index.label[trials]
        self._n_rows: Int64 = store.index.n_rows[trials]
        self._length: Int64 = np.minimum(np.int64(windows.length), self._n_rows - windows.ahead)
        self._any_short = self._dense or bool((self._length < windows.length).any())
        self._may_miss = bool(manifest.counts.get("has_missing", True))
        n_channels, n_targets = len(manifest.channels), len(self._target.columns)
        # Of windows that are stored none reaches past its own row.
        longest = selection.longest
        past = (longest, windows.ahead) if manifest.layout == "rows" else (0, 0)
        at_random = selection.steps is None and selection.plan.shuffle == "global"
        self._values = MappedRows(
            store, "values", trials, n_channels, sum(past), at_random=at_random
        )
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
        self._aim([channel.name for channel in manifest.channels], apart)
        self._rescale = Rescale(
            store.delivery, trials, windows.length, self._columns, may_miss=self._may_miss
        )
        # Behind a large copy the caches are cold, and calls that do nothing take 30 us.
        self._as_stored = self._rescale.is_identity

    def _aim(self, names: list[str], apart: bool) -> None:
        """Say which elements behind a window are its forecast targets.

        Args:
            names: Of the channels.
            apart: Whether they are stored beside the windows.
        """
        is_forecast = self._target.kind == "forecast"
        chosen = self._target.columns if is_forecast else ()
        self._columns = np.array([names.index(column) for column in chosen], np.int64)
        # Where forecast targets lie from their first element on: among other channels, or alone.
        self._ahead = self._targets if apart and self._targets else self._values
        among = np.arange(len(self._target.columns)) if apart else self._columns
        offsets: Int64 = np.arange(self._spec.steps)[:, None] * self._ahead.n_columns + among
        self._offsets, self._flat_offsets = offsets, torch.from_numpy(offsets.reshape(-1))
        self._reach = (int(offsets.min(initial=0)), int(offsets.max(initial=0)))
        # Few of them are picked where the window is copied: they lie right behind it.
        beside = self._ahead is self._values and not self._dense
        self._picks = is_forecast and beside and 0 < offsets.size <= FEW

    def renew_pool(self) -> None:
        """Forget the batch memory; a forked child cannot see who still uses it."""
        self._pool = BufferPool(self._allocate)
        self._in_worker = get_worker_info() is not None

    def resolve(self, trial: Int64, start: Int64) -> Draws:
        """Look up what windows need.

        Args:
            trial: int64 `[n]`, positions in the list of trials.
            start: int64 `[n]`, first row of each window.
        """
        places = np.empty((6, len(trial)), np.int64)
        places[0] = trial
        places[1] = self._selection.trials.take(trial)
        places[2] = start
        places[3] = self._length.take(trial)
        places[4] = self._values.locate(trial, places[2])
        if self._ahead is self._values:
            places[5] = (places[3] + (self._spec.horizon - 1)) * self._values.n_columns
            places[5] += places[4]
        else:
            places[5] = self._ahead.locate(trial, places[2])
        return Draws(places, self._selection.weights.take(trial))

    def place(self, trial: Int64, start: Int64, n_rows: Int64) -> Int64:
        """Return `Draws.places` of parts of trials; trial -1 is filler."""
        places = np.zeros((6, len(trial)), np.int64)
        filler = trial < 0
        places[0] = np.where(filler, 0, trial)
        places[1] = np.where(filler, -1, self._selection.trials.take(places[0]))
        places[2], places[3] = start, n_rows
        places[4] = self._values.locate(places[0], places[2])
        return places

    def ask(self, draws: Draws, length: int) -> Asked:
        """Ask for the values of a batch; `collect` waits for them.

        Args:
            draws: The rows of the batch, filler included; its places are in C order.
            length: Steps of the batch.
        """
        parts = torch.from_numpy(draws.places).unbind()
        n, picks = draws.places.shape[1], None
        out = self._take((n, length, self._values.n_columns))
        if not is_compiled():
            ones = torch.from_numpy(np.ones((n, length), np.bool_))
            return Asked(self._values.fetch(parts[4], out), ones, parts)
        # It writes in one pass what would else be calls of their own.
        ones = torch.empty(n, length, dtype=torch.bool)
        if self._picks:
            picked = torch.empty(n, *self._offsets.shape)
            picks = Picks(parts[5], self._flat_offsets, self._reach, picked)
        return Asked(self._values.fetch(parts[4], out, picks, ones), ones, parts)

    def collect(
        self, draws: Draws, length: int, asked: Asked | None = None
    ) -> dict[str, Tensor | None]:
        """Return the tensors of a batch, which own `draws` from now on.

        Args:
            draws: The rows of the batch, filler included.
            length: Steps of the batch.
            asked: Of these rows; by default they are asked for now.

        Returns:
            All tensors of `Batch` that follow from the rows, by name.
        """
        places, weights = draws
        short: list[int] = []
        if self._any_short or places[1, -1] < 0:
            short = np.flatnonzero(places[3] < length).tolist()
        fetch, ones, parts = self.ask(draws, length) if asked is None else asked
        fetch.finish()
        position, trial, start, lengths, _, _ = parts
        applied = self._finish(fetch.out, position, lengths)
        return {
            "values": _cut(fetch.out, places[3], short, 0),
            "targets": self._copy_targets(fetch, places, length, short, applied),
            "observed": self._copy_observed(places, length, short),
            "valid": _cut(ones, places[3], short, False),
            "lengths": lengths,
            "weights": torch.from_numpy(weights),
            "trial": trial,
            "start": start,
            "regimes": applied.regimes,
            "window_offset": applied.offset,
            "window_scale": applied.scale,
            "codes": self._copy_codes(places, length, short),
            "statics": _rows_of(self._statics, places),
            "static_codes": _rows_of(self._static_codes, places),
        }

    def _finish(self, values: Tensor, position: Tensor, lengths: Tensor) -> Applied:
        """Normalize what was copied, in place, and let what is missing be 0."""
        applied = NOTHING
        if not self._as_stored:
            applied = self._rescale.values(values, position, lengths)
        if self._may_miss:
            torch.nan_to_num_(values, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return applied

    def _copy_targets(
        self, fetch: Fetch, places: Int64, length: int, short: list[int], applied: Applied
    ) -> Tensor:
        if self._target.kind == "forecast":
            if self._dense:
                return self._copy_dense(places, length, applied)
            return self._copy_forecast(fetch, places, applied)
        if self._targets is None:
            return self._labels(places)
        out = self._take((places.shape[1], length, self._targets.n_columns))
        self._targets.copy(self._targets.locate(places[0], places[2]), out)
        return _cut(out, places[3], short, np.nan)

    def _copy_forecast(self, fetch: Fetch, places: Int64, applied: Applied) -> Tensor:
        if fetch.picks is not None:
            targets = fetch.picks.out
        elif self._picks:
            targets = torch.from_numpy(self._values.pick(places[5][:, None, None] + self._offsets))
        else:
            shape = (places.shape[1], self._spec.steps, self._ahead.n_columns)
            rows = np.empty(shape, np.float32)
            self._ahead.copy(places[5], torch.from_numpy(rows))
            chosen = rows if self._ahead is self._targets else rows.take(self._columns, axis=2)
            targets = torch.from_numpy(chosen)
        if not self._as_stored:
            self._rescale.targets(targets, torch.from_numpy(places[0]), applied)
        if places[1, -1] < 0:
            targets[torch.from_numpy(places[1] < 0)] = torch.nan
        return targets

    def _copy_dense(self, places: Int64, length: int, applied: Applied) -> Tensor:
        """Return `[B, L, steps, K]`: what follows each step, NaN behind the end of its trial."""
        n, steps = places.shape[1], self._spec.steps
        n_ahead = length + steps - 1
        first = places[4] + self._spec.horizon * self._values.n_columns
        rows = self._take((n, n_ahead, self._values.n_columns))
        self._values.copy(first, rows)
        chosen = rows.numpy().take(self._columns, axis=2)
        self._rescale.targets(torch.from_numpy(chosen), torch.from_numpy(places[0]), applied)
        left = self._n_rows.take(places[0]) - places[2] - self._spec.horizon
        chosen[np.arange(n_ahead) >= left[:, None]] = np.nan
        ahead = torch.from_numpy(chosen).unfold(1, steps, 1).transpose(2, 3).contiguous()
        ahead[torch.arange(length) >= torch.from_numpy(places[3])[:, None]] = torch.nan
        return ahead

    def _labels(self, places: Int64) -> Tensor:
        label = np.where(places[1] < 0, np.float32(np.nan), self._label[places[0]])
        if self._target.classes is None:
            return torch.from_numpy(label)
        return torch.from_numpy(np.where(np.isnan(label), -1, label).astype(np.int64))

    def _copy_observed(self, places: Int64, length: int, short: list[int]) -> Tensor | None:
        if self._observed is None:
            return None
        shape = (places.shape[1], length, self._observed.n_columns)
        packed = np.empty(shape, np.uint8)
        element = self._observed.locate(places[0], places[2])
        self._observed.copy(element, torch.from_numpy(packed))
        n_columns = self._values.n_columns
        seen = np.unpackbits(packed, axis=2, count=n_columns, bitorder="little")
        return _cut(torch.from_numpy(seen.view(np.bool_)), places[3], short, False)

    def _copy_codes(self, places: Int64, length: int, short: list[int]) -> Tensor | None:
        if self._codes is None or self._code_table is None:
            return None
        shape = (places.shape[1], length, self._codes.n_columns)
        local = np.empty(shape, np.int16)
        rows = torch.from_numpy(local)
        self._codes.copy(self._codes.locate(places[0], places[2]), rows)
        _cut(rows, places[3], short, 0)  # first: what follows a trial are codes of other words
        return torch.from_numpy(self._code_table.deliver(places[0], local.view(np.uint16)))

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        """Return float32 memory for a batch; whole trials have another length each time."""
        if self._in_worker:
            return shared_memory(shape)
        take = self._pool.take_part if self._dense else self._pool.take
        return torch.from_numpy(take(shape, "float32"))


def _rows_of(matrix: npt.NDArray[Any] | None, places: Int64) -> Tensor | None:
    """Return the row of each window's trial; filler rows are 0."""
    if matrix is None:
        return None
    rows = matrix.take(places[0], axis=0)
    rows[places[1] < 0] = 0
    return torch.from_numpy(rows)


def _cut(out: Tensor, length: Int64, short: list[int], fill: float) -> Tensor:
    """Overwrite the padding of the short rows of `[B, L, ...]` with `fill`."""
    if short:
        rows = out.numpy()
        for row in short:
            rows[row, length[row] :] = fill
    return out
