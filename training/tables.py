"""What an evaluation leaves on disk as tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from shards import Store
from training.metrics_quantiles import quantile_name
from training.predict import Predictions
from training.score import ErrorSums, class_names
from training.target import Objective

# One row group of predictions.parquet; smaller ones compress badly.
ROWS_PER_GROUP = 100_000


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; its files replace those of `folder` when all are written."""
    building = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    building.mkdir(parents=True, exist_ok=True)
    try:
        yield building
        folder.mkdir(exist_ok=True)
        for file in building.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_predictions(
    parts: Iterable[Predictions], path: Path, store: Store, objective: Objective
) -> Iterator[Predictions]:
    """Pass predictions on and write them on the way, a row group at a time."""
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    try:
        for part in parts:
            waiting.append(predictions_table(part, store, objective))
            writer = writer or pq.ParquetWriter(path, waiting[0].schema, compression="zstd")
            if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
            yield part
        if writer is not None and waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    finally:
        if writer is not None:
            writer.close()


def predictions_table(part: Predictions, store: Store, objective: Objective) -> pa.Table:
    """Return one row per prediction: trial id, row, rows ahead, and what was said of each column.

    `truth_`, `predicted_` and `naive_` and the column's name; with quantiles also `predicted_`, the
    name and `_q10` for the quantile .1; of a class `probability_` and its name.
    """
    table: dict[str, Any] = {
        "trial": store.index.ids.take(pa.array(part.trial)),
        "row": part.row,
        "ahead": part.ahead.astype(np.int32),
    }
    for k, column in enumerate(objective.columns):
        for name in ("truth", "predicted", "naive"):
            table[f"{name}_{column}"] = np.ascontiguousarray(getattr(part, name)[:, k])
        for q, level in enumerate(objective.quantiles):
            assert part.quantiles is not None
            said = np.ascontiguousarray(part.quantiles[:, k, q])
            table[f"predicted_{column}_{quantile_name(level)}"] = said
    for code, name in enumerate(class_names(store, objective)):
        assert part.scores is not None
        table[f"probability_{name}"] = np.ascontiguousarray(part.scores[:, code])
    return pa.table(table)


def write_trial_errors(sums: ErrorSums, store: Store, path: Path) -> pa.Table:
    """Write id, element count, RMSE and baseline RMSE of each trial, and return the table.

    Of a class the error is 1 - the probability of the true one.
    """
    trial, n, rmse, naive_rmse = sums.by_trial()
    ids = store.index.ids.take(pa.array(trial))
    table = pa.table({"trial": ids, "n": n, "rmse": rmse, "naive_rmse": naive_rmse})
    pyarrow.csv.write_csv(table, path)
    return table
