"""The gather on a device: integers travel there, batches are made of rows that lie there.

The same copies and single float32 operations as in `loaders/gather.py`, in the same order, so the
bits are the same. Rows behind the end of a trial are its last one again until they are blanked.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.codes import CodeTable, static_inputs
from loaders.devicerows import DeviceRows
from loaders.draws import Asked, Draws
from loaders.rescale import Applied, Rescale
from loaders.selection import Selection
from shards import Store

Int64 = npt.NDArray[np.int64]


class DeviceGather:
    """Delivers what `RowGather` does, of rows on a device. It never waits for the device.

    Args:
        store: The open version, of layout rows.
        selection: What to deliver of it.
        device: Where.
        rows: The rows there.
        first: int64 `[n]`, the row of `rows` where each trial begins.
    """

    def __init__(
        self, store: Store, selection: Selection, device: torch.device, rows: DeviceRows,
        first: Int64,
    ) -> None:  # fmt: skip
        manifest, windows, trials = store.manifest, selection.windows, selection.trials
        self._selection, self._spec, self._target = selection, windows, selection.target
        self._device, self._rows, self._first = device, rows.arrays, first
        self._dense = selection.steps is not None
        n_rows: Int64 = store.index.n_rows[trials].astype(np.int64)
        self._length: Int64 = np.minimum(np.int64(windows.length), n_rows - windows.ahead)
        self._may_miss = bool(manifest.counts.get("has_missing", True))
        self._n_channels = len(manifest.channels)
        names = [channel.name for channel in manifest.channels]
        chosen = self._target.columns if self._target.kind == "forecast" else ()
        columns = np.array([names.index(column) for column in chosen], np.int64)
        self._rescale = Rescale(
            store.delivery, trials, windows.length, columns, may_miss=self._may_miss
        ).to(device)
        self._columns, self._n_rows = self._send(columns), self._send(n_rows)
        self._label = self._send(self._labels(store.index.label[trials]))
        self._code_table = self._code_first = None
        if manifest.codes:
            tables = CodeTable(store, trials).tables
            self._code_table, self._code_first = (self._send(table) for table in tables)
        self._statics, self._static_codes = (
            None if table is None else self._send(table) for table in static_inputs(store, trials)
        )

    def renew_pool(self) -> None:
        """Do nothing: there is no memory of the host's to forget."""

    def lying(self, rows: DeviceRows, first: Int64) -> DeviceGather:
        """Return a gather of the same trials that lie elsewhere."""
        other = copy.copy(self)
        other._rows, other._first = rows.arrays, first
        return other

    def resolve(self, trial: Int64, start: Int64) -> Draws:
        """Look up what windows need; see `RowGather.resolve`. Places are rows of the device."""
        places = np.zeros((6, len(trial)), np.int64)
        places[0] = trial
        places[1] = self._selection.trials.take(trial)
        places[2] = start
        places[3] = self._length.take(trial)
        places[4] = self._first.take(trial) + places[2]
        return Draws(places, self._selection.weights.take(trial))

    def place(self, trial: Int64, start: Int64, n_rows: Int64) -> Int64:
        """Return `Draws.places` of parts of trials; trial -1 is filler."""
        places = np.zeros((6, len(trial)), np.int64)
        filler = trial < 0
        places[0] = np.where(filler, 0, trial)
        places[1] = np.where(filler, -1, self._selection.trials.take(places[0]))
        places[2], places[3] = start, n_rows
        places[4] = np.where(filler, 0, self._first.take(places[0]) + places[2])
        return places

    def collect(
        self, draws: Draws, length: int, _: Asked | None = None
    ) -> dict[str, Tensor | None]:
        """Return the tensors of a batch on the device; see `RowGather.collect`."""
        short = bool((draws.places[3] < length).any())
        at = _Places(self._send_draws(draws), length, short)
        values, applied = self._take_values(at)
        return {
            "values": values,
            "targets": self._take_targets(at, applied),
            "observed": self._take_observed(at),
            "valid": at.valid,
            "lengths": at.lengths,
            "weights": at.weights,
            "trial": at.trial,
            "start": at.start,
            "regimes": applied.regimes,
            "window_offset": applied.offset,
            "window_scale": applied.scale,
            "codes": self._take_codes(at),
            "statics": at.of_trial(self._statics, 0),
            "static_codes": at.of_trial(self._static_codes, 0),
        }

    def _take_values(self, at: _Places) -> tuple[Tensor, Applied]:
        values = self._pick("values", at.rows)
        applied = self._rescale.values(values, at.position, at.lengths)
        if self._may_miss:
            torch.nan_to_num_(values, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return at.cut(values, 0.0), applied

    def _take_targets(self, at: _Places, applied: Applied) -> Tensor:
        if self._target.kind == "forecast":
            return self._take_dense(at, applied) if self._dense else self._take_ahead(at, applied)
        if self._target.kind == "per_step":
            return at.cut(self._pick("targets", at.rows), torch.nan)
        label = at.of_trial(self._label, torch.nan if self._target.classes is None else -1)
        assert label is not None
        return label

    def _take_ahead(self, at: _Places, applied: Applied) -> Tensor:
        """Return `[B, steps, K]`, what follows each window."""
        first = at.first + at.lengths + (self._spec.horizon - 1)
        rows = first[:, None] + _steps(self._spec.steps, self._device)
        targets = self._pick_targets(rows.masked_fill_(at.filler[:, None], 0), at, applied)
        return targets.masked_fill_(at.filler[:, None, None], torch.nan)

    def _take_dense(self, at: _Places, applied: Applied) -> Tensor:
        """Return `[B, L, steps, K]`: what follows each step, NaN behind the end of its trial."""
        steps, horizon = self._spec.steps, self._spec.horizon
        length = at.rows.shape[1]
        ahead = _steps(length + steps - 1, self._device) + horizon
        left = (self._n_rows[at.position] - at.start)[:, None]
        rows = at.first[:, None] + torch.minimum(ahead, left - 1)
        chosen = self._pick_targets(rows.masked_fill_(at.filler[:, None], 0), at, applied)
        chosen.masked_fill_((ahead >= left)[:, :, None], torch.nan)
        targets = chosen.unfold(1, steps, 1).transpose(2, 3).contiguous()
        return targets.masked_fill_(~at.valid[:, :, None, None], torch.nan)

    def _pick_targets(self, rows: Tensor, at: _Places, applied: Applied) -> Tensor:
        """Return the forecast columns of rows `[B, n]`, normalized."""
        places = rows[:, :, None] * self._n_channels + self._columns
        flat = self._rows["values"].view(-1)
        stored = flat.index_select(0, places.view(-1)).view(places.shape)
        targets = stored.clone()
        self._rescale.targets(targets, at.position, applied)
        # What is missing keeps its bits on a host; a GPU has one NaN for all.
        return torch.where(stored.isnan(), stored, targets) if self._may_miss else targets

    def _take_observed(self, at: _Places) -> Tensor | None:
        if "observed" not in self._rows:
            return None
        packed = self._pick("observed", at.rows)
        bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=self._device)
        seen = bits.bitwise_and_(1).flatten(2)[..., : self._n_channels].bool()
        return at.cut(seen, False)

    def _take_codes(self, at: _Places) -> Tensor | None:
        if self._code_table is None or self._code_first is None:
            return None
        local = self._pick("codes", at.rows).long().bitwise_and_(0xFFFF)
        at.cut(local, 0)  # first: 0 is the only code that all trials have
        local += self._code_first[at.position][:, None]
        return self._code_table.index_select(0, local.view(-1)).view(local.shape).long()

    def _pick(self, array: str, rows: Tensor) -> Tensor:
        """Return rows `[B, L]` of an array, `[B, L, columns]`."""
        stored = self._rows[array]
        return stored.index_select(0, rows.view(-1)).view(*rows.shape, stored.shape[1])

    def _labels(self, label: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return the target of each trial as delivered."""
        if self._target.classes is None:
            return label.astype(np.float32)
        return np.where(np.isnan(label), -1, label).astype(np.int64)

    def _send_draws(self, draws: Draws) -> Tensor:
        """Return int64 `[6, n]` on the device: the first places, and the bits of the weights."""
        places, weights = draws
        places[5] = 0
        places[5].view(np.float32)[: len(weights)] = weights
        return self._send(places)

    def _send(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":  # torch keeps page-locked memory until its copy is done
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


class _Places:
    """The places of a batch on the device, and what follows from them alone.

    Args:
        sent: int64 `[6, n]`, of `DeviceGather._send_draws`.
        length: L.
        short: Whether any row has fewer valid steps.
    """

    def __init__(self, sent: Tensor, length: int, short: bool) -> None:
        self.position, self.trial, self.start, self.lengths, self.first = sent[:5]
        self.weights = sent[5].view(torch.float32)[: sent.shape[1]]
        self.filler = self.trial < 0
        step = _steps(length, sent.device)
        self.valid = step < self.lengths[:, None]
        last = (self.lengths - 1).clamp_(min=0)
        self.rows = self.first[:, None] + torch.minimum(step, last[:, None])
        self._padding = ~self.valid if short else None

    def cut(self, out: Tensor, fill: float) -> Tensor:
        """Overwrite the padding of `[B, L, columns]` with `fill`, in place."""
        return out if self._padding is None else out.masked_fill_(self._padding[:, :, None], fill)

    def of_trial(self, table: Tensor | None, fill: float) -> Tensor | None:
        """Return the row of each trial of a table; `fill` in filler rows."""
        if table is None:
            return None
        rows = table[self.position]
        return rows.masked_fill_(self.filler.view(-1, *[1] * (rows.dim() - 1)), fill)


@lru_cache(maxsize=64)
def _steps(length: int, device: torch.device) -> Tensor:
    """Return 0, 1, ... on a device; nobody writes to it."""
    with torch.inference_mode(False):  # others than who asks first use it as well
        return torch.arange(length, device=device)
