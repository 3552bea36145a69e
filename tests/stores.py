"""Small stores for tests, made through the writer alone: no pipeline, no source files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

FORECAST = TargetSchema("forecast", ("c0",))


def coded_values(trial: int, n_rows: int, n_channels: int) -> np.ndarray[Any, Any]:
    """Return rows that name themselves: value = trial * 10,000 + row + channel / 16."""
    rows = np.arange(n_rows)[:, None] + np.arange(n_channels)[None, :] / 16
    return (trial * 10_000 + rows).astype(np.float32)


def make_store(
    path: Path,
    lengths: Sequence[int],
    *,
    n_channels: int = 3,
    n_shards: int = 1,
    windows: WindowSpec | None = None,
    splits: Sequence[str] | None = None,
    target: TargetSchema = FORECAST,
    labels: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    missing: bool = False,
    scale: tuple[float, float] | None = None,
    normalize: dict[str, Any] | None = None,
    after: str | None = None,
) -> Store:
    """Write a store whose trial i (id `t000i`) holds `coded_values(i, ...)`.

    Args:
        path: Store root.
        lengths: Rows per trial.
        n_channels: Channels `c0`, `c1`, ...
        n_shards: Shards to spread the trials over, round robin.
        windows: By default length 4, stride 2, one forecast step.
        splits: Split of each trial; by default all are train.
        target: A per_step target has columns `y0..` with value = row + column / 4.
        labels: Label of each trial.
        weights: Weight of each trial.
        missing: Make every 7th value NaN and store `observed`.
        scale: (offset, scale) of every channel with scope train, else scope none.
        normalize: That part of `fit.json`, where it says anything else.
        after: Version that this one follows.
    """
    splits = list(splits or ["train"] * len(lengths))
    n_targets = len(target.columns) if target.kind == "per_step" else 0
    entries, rows = [], []
    for shard in range(n_shards):
        members = [i for i in range(len(lengths)) if i % n_shards == shard]
        if not members:
            continue
        parts = [_trial_arrays(i, lengths[i], n_channels, n_targets, missing) for i in members]
        arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        entry = write_shard(path, arrays, len(members))
        entries.append(entry)
        start = 0
        for i, part in zip(members, parts, strict=True):
            label = None if labels is None else float(labels[i])
            name = f"t{i:04d}"
            rows.append(
                {
                    "id": name, "digest": trial_digest(
                        name, part, _named(label, target),
                        weight=1.0 if weights is None else float(weights[i]),
                    ), "n_rows": lengths[i],
                    "source": f"{name}.csv", "shard": entry.digest, "row_start": start,
                    "split": splits[i], "weight": 1.0 if weights is None else float(weights[i]),
                    "label": label,
                }
            )  # fmt: skip
            start += lengths[i]
    trials = pa.Table.from_pylist(rows)
    if labels is None:
        trials = trials.set_column(
            trials.schema.get_field_index("label"), "label", pa.nulls(len(rows), pa.float64())
        )
    fit: dict[str, Any] = {"normalize": {"method": "none", "scope": "none"}}
    if scale is not None:
        fit["normalize"] = {
            "method": "zscore", "scope": "train",
            "offset": [scale[0]] * n_channels, "scale": [scale[1]] * n_channels,
        }  # fmt: skip
    fit["normalize"] = normalize or fit["normalize"]
    said = {key: fit["normalize"].get(key) for key in ("method", "scope", "channels")}
    names = list(dict.fromkeys(["train", *splits]))
    draft = VersionDraft(
        name="coded",
        channels=tuple(Channel(f"c{j}") for j in range(n_channels)),
        target=target,
        windows=windows or WindowSpec(length=4, stride=2, steps=1),
        splits=tuple(names),
        observed=missing,
        normalization={
            **{key: part for key, part in said.items() if part is not None},
            "lookahead": [],
        },
        counts={"files": len(lengths), "trials": len(lengths), "rows": int(sum(lengths))},
        spec={},
        trials=trials,
        shards=tuple(entries),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit=fit,
    )
    return Store(path, publish_version(path, draft, after=after))


def _named(label: float | None, target: TargetSchema) -> str | float | None:
    return label if label is None or target.classes is None else target.classes[int(label)]


def _trial_arrays(
    trial: int, n_rows: int, n_channels: int, n_targets: int, missing: bool
) -> dict[str, np.ndarray[Any, Any]]:
    values = coded_values(trial, n_rows, n_channels)
    arrays = {"values": values}
    if missing:
        seen = (np.arange(values.size).reshape(values.shape) % 7) != 3
        values[~seen] = np.nan
        arrays["observed"] = np.packbits(seen, axis=1, bitorder="little")
    if n_targets:
        steps = np.arange(n_rows)[:, None] + np.arange(n_targets)[None, :] / 4
        arrays["targets"] = steps.astype(np.float32)
    return arrays
