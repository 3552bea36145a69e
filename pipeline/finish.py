"""A batch of shaped trials into what is stored: statistics, normalization, digests, index rows.

All trials of a batch lie in one matrix, so that the work per trial is a few integers; a trial's
bits do not depend on the others in its batch (law 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import normalize
from pipeline.files import Refusal
from pipeline.loading import loaded_kernels
from pipeline.normalize import Affine, batch_affine, batch_moments, fold_sums
from pipeline.recipe import Recipe
from pipeline.sections import PerTrialTarget
from pipeline.shaped import ShapedBatch
from pipeline.spec import DatasetSpec
from pipeline.trials import Bool, Float32, Float64, Int64, Table
from shards.clock import regular_step
from shards.identity import trial_digest

# As Parquet gives lists back, so that a bucket is the same table fresh and from staging.
_NUMBERS = pa.list_(pa.field("element", pa.float64()))
_WORDS = pa.list_(pa.field("element", pa.list_(pa.field("element", pa.utf8()))))
_COLUMNS = {
    **dict.fromkeys(("id", "digest", "source"), pa.utf8()),
    **dict.fromkeys(("size_bytes", "mtime_ns"), pa.int64()),
    "source_xxh3": pa.utf8(),
    **dict.fromkeys(("bucket", "n_rows", "n_rows_in", "n_missing", "n_masked"), pa.int64()),
    **dict.fromkeys(("n_dropped", "n_merged", "n_inserted", "n_outliers"), pa.int64()),
    "trial": pa.utf8(),
    "segment": pa.int32(),
    **dict.fromkeys(("time_start", "time_end", "segment_start", "time_step"), pa.float64()),
    **dict.fromkeys((*normalize.MOMENTS, "offset", "scale"), _NUMBERS),
    "categories": _WORDS,
    "label": pa.utf8(),
}


@dataclass(frozen=True)
class FinishedBatch:
    """Trial segments as they will be stored, one after another.

    Attributes:
        arrays: `values` float32 `[rows, channels]`, and `observed`, `targets`, `codes` where the
            data set has them; the rows of all segments.
        n_rows: Rows of each segment, int64.
        rows: Their rows of the cold index, with `label` as text (or null).
        refusals: Trials that are not among them.
        time: When each row was, float64 `[rows]`; None without a time column. No part of a trial's
            digest: batches do not hold it.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    n_rows: Int64
    rows: pa.Table | None
    refusals: tuple[Refusal, ...] = ()
    time: Float64 | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all arrays."""
        return sum(a.itemsize * a.shape[1] for a in self.arrays.values())


def finish_batch(shaped: ShapedBatch, recipe: Recipe) -> FinishedBatch:
    """Measure, normalize and identify trials that were shaped."""
    spec, values, edges = recipe.spec, shaped.values, shaped.edges
    measured = values
    if shaped.targets.shape[1]:
        measured = np.concatenate([values, shaped.targets], axis=1)
    moments = batch_moments(measured, edges)
    whole = moments if len(edges) == len(shaped.trial_edges) else None
    affine = batch_affine(recipe.entries, values, shaped.trial_edges, whole)
    arrays: dict[str, npt.NDArray[Any]] = {"values": _normalize(values, affine, shaped.trial_edges)}
    packed, n_observed = _pack(shaped.observed, edges)
    if spec.clean.stores_observed():
        arrays["observed"] = packed
    if shaped.targets.shape[1]:
        arrays["targets"] = shaped.targets.astype(np.float32)
    if spec.categorical:
        arrays["codes"] = shaped.codes
    trial = np.searchsorted(shaped.trial_edges, edges[:-1], side="right") - 1
    columns = _columns(shaped, trial, recipe)
    columns |= {
        "digest": _digests(shaped, trial, arrays, columns["id"], spec),
        "n_missing": np.diff(edges) * values.shape[1] - n_observed,
        "n_masked": _count_missing(moments["count"], np.diff(edges), values.shape[1]),
        **fold_sums(moments),
    }
    if affine is not None:
        columns |= {"offset": affine.offset[trial], "scale": affine.scale[trial]}
    attributes = [shaped.attributes[i] for i in trial.tolist()]
    table = _as_table(columns, attributes, recipe.attribute_names)
    return FinishedBatch(arrays, np.diff(edges), table, time=shaped.time)


def _normalize(values: Float64, affine: Affine | None, edges: Int64) -> Float32:
    """Return values of each trial by its affine, computed in float64 and rounded once."""
    if affine is None:
        return values.astype(np.float32)
    kernels = loaded_kernels()
    if kernels is not None:
        normalized: Float32 = kernels.apply_affine(values, edges, affine.offset, affine.scale)
        return normalized
    n_rows = np.diff(edges)
    out = values - np.repeat(affine.offset, n_rows, axis=0)
    out /= np.repeat(affine.scale, n_rows, axis=0)
    return out.astype(np.float32)


def _pack(flags: Bool, edges: Int64) -> tuple[npt.NDArray[np.uint8], Int64]:
    """Return the flags of each row as bits, and how many each range of rows has set."""
    n_rows = np.diff(edges)
    if flags.all():
        row = np.packbits(np.ones((1, flags.shape[1]), np.bool_), axis=1, bitorder="little")
        return np.repeat(row, len(flags), axis=0), n_rows * flags.shape[1]
    kernels = loaded_kernels()
    if kernels is not None:
        packed: tuple[npt.NDArray[np.uint8], Int64] = kernels.pack_flags(flags, edges)
        return packed
    n_set = np.add.reduceat(np.count_nonzero(flags, axis=1), edges[:-1])
    return np.packbits(flags, axis=1, bitorder="little"), n_set


def _count_missing(count: Float64, n_rows: Int64, n_channels: int) -> Int64:
    """Return how many values of the channels are NaN, from how many are present in each."""
    present: Int64 = count[:, :n_channels].sum(axis=1).astype(np.int64)  # whole numbers: exact
    return n_rows * n_channels - present


def _columns(shaped: ShapedBatch, trial: Int64, recipe: Recipe) -> dict[str, Any]:
    """Return the columns that say where segments come from and what became of their rows.

    What is known of a whole trial only stands with its first segment.

    Args:
        shaped: The trials.
        trial: Position of each segment's trial.
        recipe: The specification.
    """
    number = np.arange(len(trial)) - np.searchsorted(trial, trial)
    at = trial.tolist()
    tables = [shaped.tables[i] for i in at]
    files = [table.file for table in tables]
    counts = {name: np.where(number == 0, n[trial], 0) for name, n in shaped.counts.items()}
    n_rows = np.diff(shaped.edges)
    columns: dict[str, Any] = {
        "id": _segment_ids(tables, trial, number),
        "source": [file.path for file in files],
        "size_bytes": [file.size_bytes for file in files],
        "mtime_ns": [file.mtime_ns for file in files],
        "source_xxh3": [table.source_xxh3 for table in tables],
        "bucket": [file.bucket for file in files],
        "n_rows": n_rows,
        "n_rows_in": n_rows + counts["n_dropped"] + counts["n_merged"] - counts["n_inserted"],
        **counts,
        "label": [shaped.labels[i] for i in at],
    }
    if recipe.has_segments:
        columns |= {"trial": [table.trial_id for table in tables], "segment": number}
    if shaped.time is not None:
        columns |= {"time_start": shaped.spans[trial, 0], "time_end": shaped.spans[trial, 1]}
        columns["segment_start"] = shaped.time[shaped.edges[:-1]]
        columns["time_step"] = regular_step(shaped.time, shaped.edges)
    if recipe.spec.categorical:
        columns["categories"] = [shaped.categories[i] for i in at]
    return columns


def _segment_ids(tables: Sequence[Table], trial: Int64, number: Int64) -> list[str]:
    """Return the trial's id; with a number from 1 where the trial has several segments."""
    torn = set(trial[number > 0].tolist())
    return [
        f"{table.trial_id}#{n + 1}" if at in torn else table.trial_id
        for table, at, n in zip(tables, trial.tolist(), number.tolist(), strict=True)
    ]


def _digests(
    shaped: ShapedBatch,
    trial: Int64,
    arrays: Mapping[str, npt.NDArray[Any]],
    ids: Sequence[str],
    spec: DatasetSpec,
) -> list[str]:
    target, bounds = spec.windows.target, shaped.edges.tolist()
    is_value = isinstance(target, PerTrialTarget) and target.task == "value"
    digests = []
    for i, (trial_id, at) in enumerate(zip(ids, trial.tolist(), strict=True)):
        begin, end = bounds[i], bounds[i + 1]
        label: str | float | None = shaped.labels[at]
        if is_value and label is not None:
            label = float(label)
        known = shaped.attributes[at]
        digests.append(
            trial_digest(
                trial_id,
                {name: array[begin:end] for name, array in arrays.items()},
                label,
                categories=shaped.categories[at],
                statics={name: known.get(name) for name in spec.static} if spec.static else None,
            )
        )
    return digests


def _as_table(
    columns: Mapping[str, Any], attributes: Sequence[Mapping[str, str]], names: Sequence[str]
) -> pa.Table:
    """Return the rows; every bucket has the same attributes, whatever its own trials hold."""
    arrays = {
        name: _lists(columns[name]) if kind == _NUMBERS else pa.array(columns[name], kind)
        for name, kind in _COLUMNS.items()
        if name in columns
    }
    table = pa.table(arrays)
    if not names:  # Parquet has no empty struct
        return table
    texts = [pa.array([known.get(name) for known in attributes], pa.utf8()) for name in names]
    return table.append_column("attributes", pa.StructArray.from_arrays(texts, names=names))


def _lists(matrix: Float64) -> pa.Array:
    n, width = matrix.shape
    edges = pa.array(np.arange(n + 1, dtype=np.int32) * width, pa.int32())
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1), pa.float64())
    return pa.ListArray.from_arrays(edges, flat, type=_NUMBERS)
