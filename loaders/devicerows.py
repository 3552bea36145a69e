"""The rows of trials on a device: uploaded once, as they are stored, compactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.device import mark
from loaders.selection import Selection
from shards import Store

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

STAGING_BYTES = 32 << 20
"""Of each of two buffers; larger ones copy no faster."""


class Kind(NamedTuple):
    """What a row of an array is: its dtype on the device, columns and bytes."""

    dtype: torch.dtype
    n_columns: int
    row_bytes: int


def delivered_arrays(store: Store, selection: Selection) -> tuple[str, ...]:
    """Return the names of the arrays of a store whose rows a stream delivers."""
    manifest = store.manifest
    return (
        "values",
        *(["observed"] if manifest.observed else []),
        *(["targets"] if selection.target.kind == "per_step" else []),
        *(["codes"] if manifest.codes else []),
    )


class RowSource:
    """The stored rows of the trials that a stream draws, in layout rows.

    A trial is named by its position in the list of trials.

    Attributes:
        n_rows: `[n]` int64, rows of each trial; 0 for those that are never drawn.
        storage: `[m]` int64, those that are drawn, in storage order.
        kinds: Name of each array -> what its rows are.
    """

    def __init__(self, store: Store, selection: Selection) -> None:
        index, trials = store.index, selection.trials
        shards, self._file = np.unique(index.shard[trials], return_inverse=True)
        self._start: Int64 = index.row_start[trials].astype(np.int64)
        drawn = selection.plan.mean_draws > 0
        self.n_rows: Int64 = np.where(drawn, index.n_rows[trials], 0).astype(np.int64)
        order = np.lexsort((self._start, self._file))
        self.storage: Int64 = order[self.n_rows[order] > 0]
        self.kinds: dict[str, Kind] = {}
        self._store, self._shards = store, shards.tolist()
        self._maps: dict[str, tuple[Bytes, Int64]] = {}
        for name in delivered_arrays(store, selection):
            spec = store.manifest.shards[self._shards[0]].arrays[name]
            # Few of torch's kernels know uint16; int16 moves the same bits.
            dtype = np.dtype("int16" if spec.dtype == "uint16" else spec.dtype)
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            self.kinds[name] = Kind(kind, spec.n_columns, spec.row_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of all arrays."""
        return sum(kind.row_bytes for kind in self.kinds.values())

    def runs(self, name: str, members: Int64) -> Iterator[Bytes]:
        """Yield the rows of some trials as bytes of the map, neighbours in one piece.

        Args:
            name: Array name.
            members: `[m]` int64, trials in storage order.
        """
        data, offsets = self._map(name)
        width = self.kinds[name].row_bytes
        begin = offsets[self._file[members]] + self._start[members] * width
        end = begin + self.n_rows[members] * width
        first = np.flatnonzero(np.append(True, begin[1:] != end[:-1])[: len(members)])
        last = np.append(first[1:] - 1, len(members) - 1)[: len(first)]
        for low, high in zip(begin[first].tolist(), end[last].tolist(), strict=True):
            yield data[low:high]

    def _map(self, name: str) -> tuple[Bytes, Int64]:
        if name not in self._maps:
            files = self._store.map_array(name, self._shards)
            self._maps[name] = files.bytes, files.offsets
        return self._maps[name]


class Staging:
    """Two buffers through which bytes go to a device; one is filled while the other is copied.

    They are page-locked for CUDA. For one thread at a time.

    Args:
        device: Where to.
        size_bytes: Of each buffer.
    """

    def __init__(self, device: torch.device, size_bytes: int = STAGING_BYTES) -> None:
        self._device = device
        locked = device.type == "cuda"
        self._buffers = [
            torch.empty(size_bytes, dtype=torch.uint8, pin_memory=locked) for _ in range(2)
        ]
        self._done: list[Any] = [None, None]

    def send(self, parts: Iterable[Bytes], out: Tensor) -> None:
        """Copy parts one behind the other, on this thread's stream.

        Args:
            parts: On the host.
            out: uint8 `[bytes]` on the device, as long as all of them.
        """
        at = filled = 0
        self._await()
        for part in parts:
            rest = torch.from_numpy(part) if part.flags.writeable else _read_only(part)
            while len(rest):
                room = self._buffers[0][filled:]
                taken = min(len(room), len(rest))
                room[:taken].copy_(rest[:taken])
                rest, filled = rest[taken:], filled + taken
                if filled == len(self._buffers[0]):
                    at, filled = self._flush(out, at, filled), 0
        self._flush(out, at, filled)

    def _flush(self, out: Tensor, at: int, filled: int) -> int:
        """Begin the copy of the buffer that is filled, and turn to the other one."""
        out[at : at + filled].copy_(self._buffers[0][:filled], non_blocking=True)
        self._done[0] = mark(self._device)
        self._buffers.reverse()
        self._done.reverse()
        self._await()
        return at + filled

    def _await(self) -> None:
        if self._done[0] is not None:
            self._done[0].synchronize()


def _read_only(part: Bytes) -> Tensor:
    """Return a tensor over a read-only map, which nobody writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(part)


class DeviceRows:
    """Room for rows on a device.

    Attributes:
        arrays: Name -> `[rows, columns]`, as stored; uint16 as the int16 of the same bits.

    Args:
        kinds: What the rows are.
        n_rows: Rows.
        device: Where.
    """

    def __init__(self, kinds: dict[str, Kind], n_rows: int, device: torch.device) -> None:
        self.arrays = {
            # One row at least: filler rows are gathered as well, before they are blanked.
            name: torch.empty((max(1, n_rows), kind.n_columns), dtype=kind.dtype, device=device)
            for name, kind in kinds.items()
        }

    def fill(self, source: RowSource, members: Int64, first: int, staging: Staging) -> None:
        """Copy the rows of trials, one behind the other, from row `first` on.

        Args:
            source: Where from.
            members: `[m]` int64, trials in storage order.
            first: First row.
            staging: What the bytes go through.
        """
        n_rows = int(source.n_rows[members].sum())
        for name, rows in self.arrays.items():
            out = rows[first : first + n_rows].view(torch.uint8).reshape(-1)
            staging.send(source.runs(name, members), out)


def place_all(source: RowSource, device: torch.device) -> tuple[DeviceRows, Int64]:
    """Upload the rows of all trials that are drawn.

    Returns:
        The rows, and int64 `[n]`: the first row of each trial, 0 for those that are not there.
    """
    rows = DeviceRows(source.kinds, int(source.n_rows.sum()), device)
    rows.fill(source, source.storage, 0, Staging(device))
    return rows, first_rows(source.storage, source.n_rows)


def first_rows(members: Int64, n_rows: Int64) -> Int64:
    """Return int64 `[n]`, where each trial begins if `members` lie one behind the other, else 0."""
    first = np.zeros(len(n_rows), np.int64)
    first[members] = np.cumsum(n_rows[members]) - n_rows[members]
    return first
