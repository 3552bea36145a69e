"""Small stores with categorical columns and static attributes, made as the build makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from stores import FORECAST, StoreShape, coded_values

from pipeline.codes import CATEGORIES, check_statics, encode_columns, fit_codes
from pipeline.spec import DatasetSpec
from shards import Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, EncodedInput, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version

Words = Sequence[str | None]


@dataclass(frozen=True)
class TextTrial:
    """One trial as a source would say it.

    Attributes:
        columns: Texts of each categorical column, equally many.
        attributes: Name -> text.
        values: float32 `[rows, channels]`; by default `coded_values`.
        label: Its label.
    """

    columns: Sequence[Words]
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    split: str = "train"
    n_rows: int = 0
    values: Any = None
    label: float | None = None

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else self.n_rows


def text_spec(categorical: Mapping[str, str], static: Any = (), **sections: Any) -> DatasetSpec:
    """Return a specification with these inputs."""
    return DatasetSpec.model_validate(
        {
            "name": "texts", "source": {"files": "*.csv"}, "channels": ["c0", "c1"],
            "categorical": dict(categorical), "static": static or {},
            "windows": {"length": 4, "target": {"kind": "forecast", "channels": ["c0"]}},
            **sections,
        }
    )  # fmt: skip


def text_store(
    path: Path,
    trials: Sequence[TextTrial],
    spec: DatasetSpec,
    *,
    n_shards: int = 1,
    windows: WindowSpec | None = None,
    target: TargetSchema | None = None,
    layout: str = "rows",
    container: str = "zarr",
) -> Store:
    """Write a store whose trial i has the id `t000i`."""
    rows, entries = [], []
    target, windows = target or FORECAST, windows or WindowSpec(length=4, stride=2, steps=1)
    channels = [f"c{j}" for j in range(_n_channels(trials))]
    shape = StoreShape(layout, container, windows, channels, target, tuple(spec.categorical))
    for shard in range(min(n_shards, len(trials))):
        members = range(shard, len(trials), n_shards)
        made = [_prepare(i, trials[i], spec) for i in members]
        entry, places = shape.write(path, [part for part, _ in made])
        entries.append(entry)
        rows += [row | place for (_, row), place in zip(made, places, strict=True)]
    table = _table(sorted(rows, key=lambda row: row["id"]), trials)
    names = tuple(dict.fromkeys(["train", *(trial.split for trial in trials)]))
    draft = VersionDraft(
        name="texts",
        channels=tuple(Channel(name) for name in channels),
        target=target,
        windows=windows,
        splits=names,
        observed=False,
        normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"files": len(trials), "trials": len(trials), "rows": sum(map(len, trials))},
        spec={},
        trials=table,
        shards=tuple(entries),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={
            "normalize": {"method": "none", "scope": "none"},
            **fit_codes(spec, table.filter(pc.equal(table["split"], "train"))),
        },
        codes=tuple(EncodedInput(*entry) for entry in spec.categorical.items()),
        statics=tuple(EncodedInput(*entry) for entry in spec.static.items()),
        layout=layout,
        container=container,
    )
    return Store(path, publish_version(path, draft, after=None))


def _n_channels(trials: Sequence[TextTrial]) -> int:
    return 2 if trials[0].values is None else trials[0].values.shape[1]


def _prepare(i: int, trial: TextTrial, spec: DatasetSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    values = coded_values(i, len(trial), 2) if trial.values is None else trial.values
    arrays: dict[str, Any] = {"values": values}
    categories: list[list[str]] = []
    if spec.categorical:
        named = dict(zip(spec.categorical, trial.columns, strict=True))
        frame = pl.DataFrame(named, schema=dict.fromkeys(named, pl.String))
        arrays["codes"], categories = encode_columns(frame)
    statics = check_statics(trial.attributes, spec)
    digest = trial_digest(f"t{i:04d}", arrays, trial.label, categories=categories, statics=statics)
    row = {
        "id": f"t{i:04d}", "digest": digest, "n_rows": len(values), "source": f"t{i:04d}.csv",
        "split": trial.split, "weight": 1.0, "categories": categories,
    }  # fmt: skip
    return arrays, row


def _table(rows: list[dict[str, Any]], trials: Sequence[TextTrial]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    labels = pa.array([trial.label for trial in trials], pa.float64())
    table = table.append_column("label", labels)
    categories = table["categories"].to_pylist()
    table = table.drop_columns("categories")
    if any(categories):
        table = table.append_column("categories", pa.array(categories, CATEGORIES))
    names = sorted({name for trial in trials for name in trial.attributes})
    if names:
        texts = [pa.array([t.attributes.get(n) for t in trials], pa.utf8()) for n in names]
        table = table.append_column("attributes", pa.StructArray.from_arrays(texts, names=names))
    return table


def slow_codes(trial: TextTrial, trials: Sequence[TextTrial]) -> np.ndarray[Any, Any]:
    """Return int64 `[rows, columns]` as delivered: word by word, as the text says it."""
    codes = np.zeros((len(trial), len(trial.columns)), np.int64)
    for j, words in enumerate(trial.columns):
        train = {w.strip() for t in trials if t.split == "train" for w in t.columns[j] if w}
        vocabulary = sorted(train - {""}, key=lambda word: word.encode())
        for i, word in enumerate(words):
            known = (word or "").strip() in vocabulary
            codes[i, j] = vocabulary.index(word.strip()) + 1 if known else 0
    return codes
