"""Predictions of new trials by the names that their files give them, and when each row is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.files import Refusal, quote
from pipeline.transformstore import NewStore
from shards import Store
from training.config import TrainConfig, choose_windows
from training.target import Objective

Int64 = npt.NDArray[np.int64]
_UNKNOWN = ("truth_", "naive_")
"""Columns of an evaluation that need to know the target."""


class NewRows:
    """What the rows of new trials are called.

    Args:
        new: The trials, one at least.
        objective: What is predicted of them.
    """

    def __init__(self, new: NewStore, objective: Objective) -> None:
        assert new.store is not None
        self._store, self._objective = new.store, objective
        origins = [new.origins[name] for name in new.store.index.ids.to_pylist()]
        self._trials = pa.array([origin.trial for origin in origins], pa.utf8())
        self._first_row = np.array([origin.first_row for origin in origins], np.int64)

    def name(self, table: pa.Table, number: Int64, row: Int64) -> pa.Table:
        """Return predictions with the trial, row and time of the file; of a class its name.

        Args:
            table: As an evaluation writes them.
            number: int64, the trial number of each prediction.
            row: int64, its row in that trial, or trial segment; it may lie behind its end.
        """
        names = [name for name in table.column_names if not name.startswith(_UNKNOWN)]
        columns = {name: table[name] for name in names}
        columns["trial"] = self._trials.take(pa.array(number))
        columns["row"] = pa.array(row + self._first_row[number])
        if self._objective.kind == "class":
            name = f"predicted_{self._objective.columns[0]}"
            classes = pa.array(self._store.manifest.target.classes, pa.utf8())
            columns[name] = classes.take(pa.array(columns[name].to_numpy().astype(np.int64)))
        time = row_times_of(self._store, number, row)
        named = pa.table(columns)
        return named if time is None else named.add_column(3, "time", time)


def row_times_of(store: Store, number: Int64, row: Int64) -> pa.Array | None:
    """Return when rows of trials were, null behind their ends; None without a time column.

    Args:
        store: The trials.
        number: int64 `[n]`, trial numbers.
        row: int64 `[n]`, rows of them.
    """
    trials, place = np.unique(number, return_inverse=True)
    times = [store[store.index.id_of(trial)].time for trial in trials.tolist()]
    known = [time for time in times if time is not None]
    if len(known) < len(times) or not known:
        return None
    n_rows = np.array([len(time) for time in known], np.int64)
    first = np.cumsum(n_rows) - n_rows
    inside = row < n_rows[place]
    flat = np.concatenate(known)
    return pa.array(flat[first[place] + np.where(inside, row, 0)], mask=~inside)


def find_silent(new: NewStore, table: pa.Table, config: TrainConfig) -> tuple[Refusal, ...]:
    """Return new trials of which the model says nothing, as refusals.

    Args:
        new: The trials, one at least.
        table: The predictions.
        config: Of the run.
    """
    assert new.store is not None
    windows = choose_windows(config, new.store.manifest.windows)
    said, rows = set(table["trial"].unique().to_pylist()), new.store.index.n_rows
    silent: dict[str, Refusal] = {}
    for number, row_id in enumerate(new.store.index.ids.to_pylist()):
        trial, _, source = new.origins[row_id]
        if trial not in said:
            message = (
                f"trial {quote(trial)} has {rows[number]:,} rows, too few for a window of "
                f"{windows.length} (data.windows.short: {windows.short!r}); record more rows, or "
                "train with short: pad"
            )
            silent.setdefault(trial, Refusal(source, "predict", "no_window", message, trial=trial))
    return tuple(silent.values())
