"""Write a golden store from what goes into it, through the writer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from golden_cases import Golden, Trial
from golden_oracle import label_code, own_words, row_times, trial_arrays
from stores import StoreShape

from shards import Store
from shards.identity import trial_digest
from shards.manifest import Channel, EncodedInput
from shards.parts import write_part
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version

LISTS = pa.list_(pa.float64())
HOT = {
    "id": pa.utf8(), "digest": pa.utf8(), "n_rows": pa.int64(), "shard": pa.utf8(),
    "row_start": pa.int64(), "split": pa.utf8(), "weight": pa.float64(), "label": pa.float64(),
}  # fmt: skip
COLD = {
    "id": pa.utf8(), "digest": pa.utf8(), "n_rows": pa.int64(), "source": pa.utf8(),
    "stored": pa.utf8(), "trial": pa.utf8(), "segment": pa.int64(), "time_start": pa.float64(),
    "time_end": pa.float64(), "segment_start": pa.float64(), "time_step": pa.float64(),
    "offset": LISTS, "scale": LISTS, "categories": pa.list_(pa.list_(pa.utf8())),
    "cold_label": pa.utf8(),
}  # fmt: skip


def write_golden(path: Path, golden: Golden) -> Store:
    """Write the store."""
    names = list(golden.codes)
    shape = StoreShape(
        golden.layout, golden.container, golden.windows, golden.channels, golden.target, names
    )
    shards, rows = [], []
    for shard in range(golden.n_shards):
        members = golden.trials[shard :: golden.n_shards]
        entry, places = shape.write(path, _arrays(members, golden))
        shards.append(entry)
        rows += [_facts(t, golden) | place for t, place in zip(members, places, strict=True)]
    live = [not row.pop("dead") for row in rows]
    cold = _table(rows, {name: kind for name, kind in COLD.items() if name in rows[0]}, golden)
    trials = _table(rows, HOT, None)
    if golden.n_parts:
        part, part_row, parts = _write_parts(path, cold, golden.n_parts)
        trials = trials.append_column("part", part).append_column("part_row", part_row)
    else:
        parts = ()
        more = [name for name in cold.column_names if name not in (*HOT, "label")]
        for name in more:
            trials = trials.append_column(name, cold[name])
    trials = trials.filter(pa.array(live))
    draft = VersionDraft(
        name="golden",
        channels=tuple(Channel(name, "m/s" if i == 0 else "") for i, name in enumerate(golden.channels)),
        target=golden.target,
        windows=golden.windows,
        splits=tuple(dict.fromkeys(["train", *(t.split for t in golden.live)])),
        observed=golden.observed,
        normalization=_normalization(golden),
        counts=_counts(golden),
        spec={},
        trials=trials,
        shards=tuple(shards),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit=_fit(golden),
        codes=tuple(EncodedInput(name, part[0]) for name, part in golden.codes.items()),
        statics=tuple(EncodedInput(name, part[0]) for name, part in golden.statics.items()),
        layout=golden.layout,
        container=golden.container,
        parts=parts,
        tombstones=tuple(golden.tombstones),
    )
    return Store(path, publish_version(path, draft, after=None))


def _arrays(members: list[Trial], golden: Golden) -> list[dict[str, Any]]:
    """The rows of a shard's trials, with times where one of them is irregular."""
    irregular = golden.layout == "rows" and any(isinstance(t.clock, list) for t in members)
    arrays = [trial_arrays(trial) for trial in members]
    if irregular:
        for own, trial in zip(arrays, members, strict=True):
            own["time"] = np.array(row_times(trial), np.float64)[:, None]
    return arrays


def _facts(trial: Trial, golden: Golden) -> dict[str, Any]:
    statics = {name: trial.attributes.get(name) for name in golden.statics}
    facts: dict[str, Any] = {
        "id": trial.id, "dead": trial.dead, "n_rows": len(trial.values), "split": trial.split,
        "digest": trial_digest(trial.id, trial_arrays(trial), trial.label, weight=trial.weight,
                               categories=own_words(trial), statics=statics),
        "weight": trial.weight, "label": label_code(trial, golden),
        "source": f"{trial.trial or trial.id}.csv", "attributes": dict(trial.attributes),
    }  # fmt: skip
    if trial.words:
        facts["categories"] = own_words(trial)
    if trial.affine is not None:
        facts |= {"offset": trial.affine[0], "scale": trial.affine[1]}
    if golden.n_parts:
        facts["cold_label"] = None if trial.label is None else str(trial.label)
        facts |= {"trial": trial.trial or trial.id, "segment": trial.segment}
    times = row_times(trial)
    if times is not None:
        family = [t for t in golden.trials if (t.trial or t.id) == (trial.trial or trial.id)]
        every = [time for t in family for time in row_times(t) or ()]
        step = np.nan if isinstance(trial.clock, list) else trial.clock[1]  # type: ignore[index]
        facts |= {"time_start": min(every), "time_end": max(every)}
        facts |= {"segment_start": times[0], "time_step": step}
    return facts


def _table(rows: list[dict[str, Any]], kinds: dict[str, Any], golden: Golden | None) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    if "cold_label" in columns:
        columns["label"] = columns.pop("cold_label")
    names = sorted({name for row in rows for name in row["attributes"]})
    if golden is not None and names:
        texts = [pa.array([r["attributes"].get(n) for r in rows], pa.utf8()) for n in names]
        columns["attributes"] = pa.StructArray.from_arrays(texts, names=names)
    return pa.table(columns)


def _write_parts(path: Path, cold: pa.Table, n_parts: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """Deal the rows, dead ones too, out to parts; return where each row went."""
    part, part_row = [""] * len(cold), [0] * len(cold)
    entries = []
    for number in range(n_parts):
        members = list(range(number, len(cold), n_parts))
        entries.append(write_part(path, cold.take(pa.array(members))))
        for place, row in enumerate(members):
            part[row], part_row[row] = entries[-1].digest, place
    return pa.array(part), pa.array(part_row, pa.int64()), tuple(entries)


def _normalization(golden: Golden) -> dict[str, Any]:
    said = {key: golden.normalize[key] for key in ("method", "scope", "channels") if key in golden.normalize}
    return {**said, "lookahead": []}


def _counts(golden: Golden) -> dict[str, Any]:
    trials = {t.trial or t.id for t in golden.live}
    return {
        "files": len(trials), "trials": len(trials), "segments": len(golden.live),
        "rows": sum(len(t.values) for t in golden.live),
        "has_missing": any(bool(np.isnan(t.values).any()) for t in golden.live),
    }  # fmt: skip


def _fit(golden: Golden) -> dict[str, Any]:
    fit: dict[str, Any] = {"normalize": dict(golden.normalize)}
    if golden.codes:
        fit["categorical"] = [
            {"name": name, "encoding": encoding, "vocabulary": vocabulary}
            for name, (encoding, vocabulary) in golden.codes.items()
        ]
    if golden.statics:
        fit["static"] = [
            {"name": name, "encoding": encoding}
            | ({"mean": fitted[0], "sd": fitted[1]} if encoding == "number" else {"vocabulary": fitted})
            for name, (encoding, fitted) in golden.statics.items()
        ]
    return fit
