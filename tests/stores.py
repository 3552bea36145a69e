"""Small stores for tests, made through the writer alone: no pipeline, no source files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import Store, WindowSpec
from shards.cutting import Cut, cut_windows, stored_digest
from shards.identity import trial_digest
from shards.manifest import Channel, ShardEntry, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

FORECAST = TargetSchema("forecast", ("c0",))


def coded_values(trial: int, n_rows: int, n_channels: int) -> np.ndarray[Any, Any]:
    """Return rows that name themselves: value = trial * 10,000 + row + channel / 16."""
    rows = np.arange(n_rows)[:, None] + np.arange(n_channels)[None, :] / 16
    return (trial * 10_000 + rows).astype(np.float32)


SHAPES = tuple((layout, c) for layout in ("rows", "windows") for c in ("zarr", "parquet"))


class StoreShape:
    """Writes trials as shards of one layout and container.

    Args:
        layout: `rows` or `windows`.
        container: `zarr` or `parquet`.
        windows: Of the data set.
        channels: Names.
        target: Of the data set.
        codes: Names of the categorical columns.
    """

    def __init__(
        self,
        layout: str,
        container: str,
        windows: WindowSpec,
        channels: Sequence[str],
        target: TargetSchema,
        codes: Sequence[str] = (),
    ) -> None:
        ahead = target.columns if target.kind == "forecast" else ()
        cut = Cut(windows, tuple(list(channels).index(name) for name in ahead))
        self.cut = cut if layout == "windows" else None
        self.container = container
        named = {"values": channels, "targets": target.columns, "codes": codes}
        self.columns = {name: listed for name, listed in named.items() if listed}

    def write(
        self, path: Path, trials: Sequence[Mapping[str, Any]]
    ) -> tuple[ShardEntry, list[dict[str, Any]]]:
        """Write one shard; return its entry, and what the index says of where each trial is."""
        stored = [dict(arrays) for arrays in trials]
        if self.cut is not None:
            n_rows = [np.array([len(arrays["values"])]) for arrays in trials]
            pairs = zip(trials, n_rows, strict=True)
            stored = [cut_windows(arrays, n, self.cut) for arrays, n in pairs]
        pieces = {name: [part[name] for part in stored] for name in stored[0]}
        if not any(len(part) for part in pieces["values"]):
            pieces = {n: [np.zeros((1, p[0].shape[1]), p[0].dtype)] for n, p in pieces.items()}
        entry = write_shard(
            path, pieces, len(trials), container=self.container, columns=self.columns
        )
        places, start = [], 0
        for part in stored:
            n_stored = len(part["values"])
            place = {"shard": entry.digest, "row_start": start if n_stored else 0}
            places.append(place if self.cut is None else place | {"stored": stored_digest(part)})
            start += n_stored
        return entry, places


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
    layout: str = "rows",
    container: str = "zarr",
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
        layout: `rows` or `windows`.
        container: `zarr` or `parquet`.
    """
    windows = windows or WindowSpec(length=4, stride=2, steps=1)
    names = [f"c{j}" for j in range(n_channels)]
    shape = StoreShape(layout, container, windows, names, target)
    splits = list(splits or ["train"] * len(lengths))
    n_targets = len(target.columns) if target.kind == "per_step" else 0
    entries, rows = [], []
    for shard in range(n_shards):
        members = [i for i in range(len(lengths)) if i % n_shards == shard]
        if not members:
            continue
        parts = [_trial_arrays(i, lengths[i], n_channels, n_targets, missing) for i in members]
        entry, places = shape.write(path, parts)
        entries.append(entry)
        for i, part, place in zip(members, parts, places, strict=True):
            label = None if labels is None else float(labels[i])
            name = f"t{i:04d}"
            rows.append(
                {
                    "id": name, "digest": trial_digest(
                        name, part, _named(label, target),
                        weight=1.0 if weights is None else float(weights[i]),
                    ), "n_rows": lengths[i],
                    "source": f"{name}.csv", **place,
                    "split": splits[i], "weight": 1.0 if weights is None else float(weights[i]),
                    "label": label,
                }
            )  # fmt: skip
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
    draft = VersionDraft(
        name="coded",
        channels=tuple(Channel(name) for name in names),
        target=target,
        windows=windows,
        splits=tuple(dict.fromkeys(["train", *splits])),
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
        layout=layout,
        container=container,
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
