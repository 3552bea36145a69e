"""Predictions of several models as one: mean and spread, element by element; or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import InvalidSpecError, Store
from training.metrics_quantiles import quantile_name
from training.predict import Predictions
from training.score import class_names, score_parts
from training.tables import replacing_files
from training.target import Objective

KEYS = ("trial", "row", "ahead")
PREDICTIONS = "predictions.parquet"


def average_predictions(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return one table of what several models predict of the same elements.

    What was predicted is the mean over the models, of a class the one with the highest mean
    probability. `sd_` columns are the standard deviation over the models (n - 1; NaN of one).

    Args:
        tables: `predictions.parquet` of each model, by its name.

    Raises:
        InvalidSpecError: If they are not of the same elements.
    """
    sorted_ = {name: _sorted(table) for name, table in tables.items()}
    first, *names = sorted_
    whole = sorted_[first]
    for name in names:
        if not all(whole[key].equals(sorted_[name][key]) for key in KEYS):
            raise InvalidSpecError(
                f"{name} predicts other elements ({sorted_[name].num_rows:,} rows) than {first} "
                f"({whole.num_rows:,}); wanted the same trials, rows and rows ahead of each. "
                "Evaluate all on one split with the same windows."
            )
    columns = {name: whole[name] for name in whole.column_names}
    is_class = any(name.startswith("probability_") for name in columns)
    for name in whole.column_names:
        kind, _, of = name.partition("_")
        if kind not in ("predicted", "probability"):
            continue
        values = np.stack([table[name].to_numpy() for table in sorted_.values()])
        columns[name] = pa.array(values.mean(axis=0))
        if kind == "probability" or not is_class:
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(whole), np.nan)
            columns[f"sd_{of}"] = pa.array(spread)
    return pa.table(_most_probable(columns) if is_class else columns)


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in KEYS]).combine_chunks()


def _most_probable(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns whose prediction is the class that their probabilities speak for."""
    said = [np.asarray(x) for name, x in columns.items() if name.startswith("probability_")]
    code = pa.array(np.argmax(said, axis=0).astype(np.float64))
    return {name: code if name.startswith("predicted_") else x for name, x in columns.items()}


def as_predictions(table: pa.Table, store: Store, objective: Objective) -> Predictions:
    """Return a table of predictions as what is scored: the way back of `predictions_table`."""

    def stack(*names: str) -> Any:
        return np.stack([table[name].to_numpy() for name in names], axis=1)

    parts = {
        kind: stack(*(f"{kind}_{column}" for column in objective.columns))
        for kind in ("truth", "predicted", "naive")
    }
    classes = class_names(store, objective)
    levels = [quantile_name(level) for level in objective.quantiles]
    said = [stack(*(f"predicted_{c}_{q}" for q in levels)) for c in objective.columns if levels]
    return Predictions(
        trial=pc.index_in(table["trial"], store.index.ids).to_numpy().astype(np.int64),
        row=table["row"].to_numpy(),
        ahead=table["ahead"].to_numpy().astype(np.int64),
        scores=stack(*(f"probability_{name}" for name in classes)) if classes else None,
        quantiles=np.stack(said, axis=1) if said else None,
        **parts,
    )


def write_whole(
    table: pa.Table, folder: Path, store: Store, objective: Objective
) -> dict[str, Any]:
    """Write a table of predictions to a folder, and return its metrics."""
    metrics = score_parts([as_predictions(table, store, objective)], store, objective)[1]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_files(folder) as building:
        pq.write_table(table, building / PREDICTIONS, compression="zstd")
    return metrics


def shared_trials(tables: Sequence[pa.Table]) -> int:
    """Return how many trials are in more than one table."""
    trials = [pc.unique(table["trial"]) for table in tables]
    counts = pc.value_counts(pa.chunked_array(trials))
    return sum(1 for each in counts.field("counts").to_pylist() if each > 1)
