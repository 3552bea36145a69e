"""What is fitted on train trials: normalization with scope `train`, and target statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.derive import parse_expressions
from pipeline.normalize import (
    MOMENTS,
    Affine,
    affine_from_moments,
    affine_from_values,
    coarse_channels,
    merge_moments,
    overflowing_channels,
)
from pipeline.sections import PerTrialTarget
from pipeline.spec import DatasetSpec
from shards.errors import InvalidSpecError
from shards.identity import pairs_digest
from shards.manifest import ShardEntry
from shards.maps import FileRange
from shards.version import split_pairs

Float64 = npt.NDArray[np.float64]

QUANTILE_ROWS = 2**22
"""Rows that quartiles are taken from; beyond it every k-th row of each trial, k whole."""


def fit_train(
    spec: DatasetSpec, trials: pa.Table, shards: Sequence[ShardEntry], store: Path
) -> dict[str, Any]:
    """Return `fit.json` for id-sorted trials with their splits assigned.

    It depends on the train trials alone: on their moments in id order, or for quartiles on their
    stored rows.

    Raises:
        InvalidSpecError: If statistics of train are asked for and no trial is in train.
    """
    train = trials.filter(pc.equal(trials["split"], "train"))
    n_channels = len(spec.channels)
    fit: dict[str, Any] = {
        "normalize": {"method": spec.normalize.method, "scope": normalization_scope(spec)},
        "trials_digest": pairs_digest(split_pairs(trials, "train")),
    }
    if train.num_rows == 0:
        if normalization_scope(spec) == "train":
            raise InvalidSpecError(
                f"normalize.scope is train, but no trial is in split 'train' "
                f"({trials.num_rows} trials in other splits). Mend split, or use scope: trial."
            )
        return fit
    merged = merge_moments(stack_moments(train))
    if normalization_scope(spec) == "train":
        affine = _train_affine(spec, merged, train, shards, store)
        _refuse_overflow(spec, affine, trials)
        fit["normalize"] |= {
            "offset": affine.offset.tolist(),
            "scale": affine.scale.tolist(),
            "n_trials": train.num_rows,
        }
    target = _target_statistics(spec, merged, train, n_channels)
    return fit if target is None else {**fit, "target": target}


def normalization_scope(spec: DatasetSpec) -> str:
    """Return the scope as the format knows it."""
    return "none" if spec.normalize.method == "none" else spec.normalize.scope


def stack_moments(trials: pa.Table) -> dict[str, Float64]:
    """Return the moments of trials, `[trials, channels + target columns]` each."""
    return {name: _rows(trials[name]) for name in MOMENTS}


def _rows(column: pa.ChunkedArray) -> Float64:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(column), -1)


def _train_affine(
    spec: DatasetSpec,
    merged: dict[str, Float64],
    train: pa.Table,
    shards: Sequence[ShardEntry],
    store: Path,
) -> Affine:
    if spec.normalize.method == "robust":
        return _quartiles(train, shards, store)
    channels = slice(len(spec.channels))
    return affine_from_moments(
        spec.normalize.method, {name: column[channels] for name, column in merged.items()}
    )


def _refuse_overflow(spec: DatasetSpec, affine: Affine, trials: pa.Table) -> None:
    """Refuse values of any split that the train trials' scale would make infinite."""
    moments = stack_moments(trials)
    n = len(spec.channels)
    low = np.nanmin(moments["min"][:, :n], axis=0, initial=np.inf)
    high = np.nanmax(moments["max"][:, :n], axis=0, initial=-np.inf)
    for place in np.flatnonzero(overflowing_channels(affine, low, high) & (low <= high)).tolist():
        raise InvalidSpecError(
            f"channel {spec.channels[place].name!r} reaches from {low[place]:g} to "
            f"{high[place]:g}, beyond float32 in units of the train trials' scale "
            f"{affine.scale[place]:g}. Correct those files, or use normalize.scope: trial."
        )


def _quartiles(train: pa.Table, shards: Sequence[ShardEntry], store: Path) -> Affine:
    """Read one channel at a time from the stored rows: quantiles do not merge."""
    rows = {shard.digest: _map_values(store, shard) for shard in shards}
    step = -(-sum(train["n_rows"].to_pylist()) // QUANTILE_ROWS)
    places = (train[name].to_pylist() for name in ("shard", "row_start", "n_rows"))
    parts = [rows[d][start : start + n : step] for d, start, n in zip(*places, strict=True)]
    columns = [
        affine_from_values(np.concatenate([p[:, c] for p in parts]).astype(np.float64)[:, None])
        for c in range(parts[0].shape[1])
    ]
    return Affine(
        np.concatenate([c.offset for c in columns]), np.concatenate([c.scale for c in columns])
    )


def _map_values(store: Path, shard: ShardEntry) -> npt.NDArray[np.float32]:
    """Map one shard's rows: one map per shard, since the system limits how many there may be."""
    array = shard.arrays["values"]
    path = store / "shards" / shard.digest / "values" / "c" / "0" / "0"
    data = FileRange([(path, array.size_bytes)]).bytes[: array.data_bytes]
    return data.view(np.float32).reshape(array.n_rows, array.n_columns)


def _target_statistics(
    spec: DatasetSpec, merged: dict[str, Float64], train: pa.Table, n_channels: int
) -> dict[str, Any] | None:
    """Return mean and sd of value targets in physical units, for the trainer to standardize."""
    target = spec.windows.target
    if isinstance(target, PerTrialTarget):
        if target.task == "class":
            return None
        labels = np.array([float(text) for text in train["label"].to_pylist()])
        return {"mean": [float(labels.mean())], "sd": [float(labels.std()) or 1.0]}
    if not spec.target_columns():
        return None
    sd = merged["sd"][n_channels:]
    return {
        "mean": merged["mean"][n_channels:].tolist(),
        "sd": np.where(sd > 0, sd, 1.0).tolist(),
    }


def find_warnings(spec: DatasetSpec, trials: pa.Table) -> list[str]:
    """Return what a user should know of the values, in sentences."""
    if normalization_scope(spec) == "trial" or trials.num_rows == 0:
        return []
    merged = merge_moments(stack_moments(trials))
    coarse = coarse_channels(merged)
    return [
        f"channel {channel.name!r}: float32 steps are {ratio:.1g} of its spread, so digits are "
        "lost. Subtract a constant level first (derive), or use normalize.scope: trial."
        for channel, ratio in zip(spec.channels, coarse.tolist(), strict=False)
        if ratio
    ]


def describe_lookahead(spec: DatasetSpec) -> list[str]:
    """Return the transforms that use later rows of a trial for earlier ones, in sentences."""
    ahead = []
    if spec.clean.missing == "interpolate":
        ahead.append("clean.missing: interpolate uses the next present value")
    if normalization_scope(spec) == "trial":
        ahead.append("normalize.scope: trial uses statistics of the whole trial")
    inputs = {channel.name for channel in spec.channels}
    ahead += [
        f"derive.{name} sees the whole trial"
        for name, expression in sorted(parse_expressions(spec.derive).items())
        if name in inputs and not expression.meta.is_column()  # a column under another name
    ]
    return ahead
