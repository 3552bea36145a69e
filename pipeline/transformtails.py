"""The end of each new trial as a store: the one window whose forecast nobody has seen yet.

A window of a forecast needs rows behind it that its target is taken from, so that no window ends
with a trial. Here each trial is cut to its last rows, and rows that are not known are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.pack import pack_trials
from shards import Store, WindowSpec
from shards.redraft import redraft_version
from shards.version import publish_version
from shards.writer import write_shard

SHARD_BYTES = 64 * 2**20
_TIMES = {"segment_start", "time_step"}
"""Columns of the index that a cut trial does not have."""


def write_tails(store: Store, folder: Path, windows: WindowSpec, numbers: Sequence[int]) -> Store:
    """Write the last rows of trials, with unknown ones behind them.

    Args:
        store: What `write_new_store` wrote for a forecast.
        folder: Where the other store shall be; nothing may be there.
        windows: Those of the model.
        numbers: Trial numbers, in order.

    Returns:
        A store of those trials, each of which has one window: its last
        `min(n_rows, windows.length)` rows. Where that is less than a window and short ones are
        dropped, it has none.
    """
    draft, n_trials = redraft_version(store), len(numbers)
    n_known = np.minimum(store.index.n_rows[list(numbers)], windows.length)
    n_rows = n_known + windows.ahead
    row_bytes = 4 * len(store.manifest.channels) * (windows.length + windows.ahead)
    entries, shards, row_start = [], [], []
    for members in pack_trials(range(n_trials), lambda _: row_bytes, SHARD_BYTES):
        parts = [_tail(store, numbers[i], int(n_known[i]), windows.ahead) for i in members]
        pieces = {name: [part[name] for part in parts] for name in parts[0]}
        entry = write_shard(folder, pieces, len(members))
        entries.append(entry)
        shards += [entry.digest] * len(members)
        row_start += [0, *np.cumsum(n_rows[members])[:-1].tolist()]
    trials = draft.trials.take(pa.array(list(numbers)))
    trials = trials.drop_columns(sorted(_TIMES & {*trials.column_names}))
    for name, column in (("n_rows", n_rows), ("shard", shards), ("row_start", row_start)):
        at = trials.schema.get_field_index(name)
        trials = trials.set_column(at, name, pa.array(column))
    changed = dataclasses.replace(
        draft,
        windows=windows,
        trials=trials,
        shards=tuple(entries),
        counts={"files": n_trials, "trials": n_trials},
    )
    return Store(folder, publish_version(folder, changed, after=None))


def _tail(store: Store, number: int, n_known: int, n_unknown: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a trial: its last rows, then as many as nobody knows."""
    tail = {}
    for name in sorted(store.manifest.shards[0].arrays.keys() - {"time"}):
        rows = store.trial_rows(number, name)[-n_known:]
        fill = np.nan if name == "values" else 0
        unknown = np.full((n_unknown, rows.shape[1]), fill, rows.dtype)
        tail[name] = np.concatenate([rows, unknown])
    return tail
