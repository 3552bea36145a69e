"""The stored rows of the train trials, for statistics that do not follow from moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.trials import Float32, Int64
from shards.manifest import ShardEntry
from shards.maps import map_shards

QUANTILE_ROWS = 2**22
"""Rows that quartiles and regimes are taken from; beyond it every k-th of each trial, k whole."""
BLOCK_ROWS = 2**16
"""Rows measured at once: a fixed number, so that sums do not depend on how trials are cut."""


class TrainRows:
    """The stored rows of the train trials, in id order.

    Args:
        train: Their index rows, id-sorted.
        shards: Shards that hold them.
        store: Store root.
    """

    def __init__(self, train: pa.Table, shards: Sequence[ShardEntry], store: Path) -> None:
        self._shards = {shard.digest: shard for shard in shards}
        self._store = store
        self._n_rows: Int64 = train["n_rows"].to_numpy().astype(np.int64)
        self._start: Int64 = train["row_start"].to_numpy().astype(np.int64)
        self._shard: list[str] = train["shard"].to_pylist()
        self._maps: dict[str, Float32] = {}

    def sample(self, columns: Int64, trials: Int64 | None = None) -> Float32:
        """Return `[rows, columns]` of some trials: all rows, or every k-th of each if too many."""
        chosen = np.arange(len(self._n_rows)) if trials is None else trials
        step = -(-int(self._n_rows[chosen].sum()) // QUANTILE_ROWS) or 1
        parts = [self._trial(trial)[::step, columns] for trial in chosen.tolist()]
        return np.concatenate(parts)

    def blocks(self) -> Iterator[Float32]:
        """Yield all rows of all trials, joined and cut every so many rows."""
        kept: list[Float32] = []
        n_kept = 0
        for trial in range(len(self._n_rows)):
            rows = self._trial(trial)
            while n_kept + len(rows) >= BLOCK_ROWS:
                cut = BLOCK_ROWS - n_kept
                yield np.concatenate([*kept, rows[:cut]])
                kept, n_kept, rows = [], 0, rows[cut:]
            kept.append(rows)
            n_kept += len(rows)
        if n_kept:
            yield np.concatenate(kept)

    def _trial(self, trial: int) -> Float32:
        start = int(self._start[trial])
        return self._map(self._shard[trial])[start : start + int(self._n_rows[trial])]

    def _map(self, digest: str) -> Float32:
        """Map a shard's rows once: the system limits how many maps there may be."""
        if digest not in self._maps:
            shard = self._shards[digest]
            array = shard.arrays["values"]
            data = map_shards(self._store, [shard], "values").bytes[: array.data_bytes]
            rows = data.view(np.float32).reshape(array.n_rows, array.n_columns)
            self._maps[digest] = rows
        return self._maps[digest]
