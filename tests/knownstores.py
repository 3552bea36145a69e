"""Small stores whose trials have ids, attributes, segments, times and parts of a test's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from stores import FORECAST, coded_values

from shards import Store, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.parts import write_part
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

_HOT = ("shard", "row_start", "split", "weight", "label")


@dataclass(frozen=True)
class Known:
    """One row of the index.

    Attributes:
        id: Of the trial, or of the segment.
        trial: Of the trial, where it is a segment.
        clock: (start, step) of regular times, or irregular times.
        affine: (offset, scale) of all channels, for scope `trial`.
    """

    id: str
    n_rows: int = 8
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    split: str = "train"
    weight: float = 1.0
    label: float | None = None
    trial: str | None = None
    segment: int = 0
    clock: tuple[float, float] | Sequence[float] | None = None
    affine: tuple[float, float] | None = None


def known_store(
    path: Path,
    rows: Sequence[Known],
    *,
    n_parts: int = 0,
    n_shards: int = 1,
    target: TargetSchema = FORECAST,
    normalize: Mapping[str, Any] | None = None,
) -> Store:
    """Write a store whose row i holds `coded_values(i, n_rows, 2)`.

    Args:
        path: Store root.
        rows: The trials, in any order.
        n_parts: Files of the cold index, in which the rows take turns; 0 keeps it in the version.
        n_shards: Shards, in which the rows take turns.
        target: Of the data set.
        normalize: That part of `fit.json`; by default nothing is normalized.
    """
    timed = any(len(row.clock or ()) > 2 for row in rows)
    shards, cold = [], []
    for shard in range(n_shards):
        start, parts, members = 0, [], list(enumerate(rows))[shard::n_shards]
        for i, row in members:
            arrays = {"values": coded_values(i, row.n_rows, 2)}
            label: Any = row.label
            if label is not None and target.classes is not None:
                label = target.classes[int(label)]
            digest = trial_digest(row.id, arrays, label, weight=row.weight)
            if timed:
                clock = row.clock if len(row.clock or ()) > 2 else np.zeros(row.n_rows)
                arrays["time"] = np.asarray(clock, np.float64)[:, None]
            parts.append(arrays)
            cold.append({**_facts(row), "digest": digest, "row_start": start, "at": shard})
            start += row.n_rows
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        shards.append(write_shard(path, joined, len(members)))
    names = {name for row in rows for name in row.attributes}
    table = pa.Table.from_pylist([{**row, "shard": shards[row.pop("at")].digest} for row in cold])
    table = table.set_column(
        table.schema.get_field_index("label"), "label",
        pa.array([row["label"] for row in cold], pa.float64()),
    )  # fmt: skip
    if names:  # in the order of the cold rows, each part with the names of its own
        table = table.drop_columns(["attributes"])
        table = table.append_column("attributes", _attributes([row["attributes"] for row in cold]))
    else:
        table = table.drop_columns(["attributes"])
    table, parts = _in_parts(path, table, n_parts)
    normalize = normalize or {"method": "none", "scope": "none"}
    draft = VersionDraft(
        name="known", channels=(Channel("u", "m/s"), Channel("v")), target=target
        if target is not FORECAST else TargetSchema("forecast", ("u",)),
        windows=WindowSpec(length=4, stride=2, steps=1),
        splits=tuple(dict.fromkeys(["train", *(row.split for row in rows)])), observed=False,
        normalization={k: normalize[k] for k in ("method", "scope")} | {"lookahead": []},
        counts={"trials": len(rows), "segments": len(rows), "rows": sum(r.n_rows for r in rows)},
        spec={}, trials=table, shards=tuple(shards), parts=parts,
        quarantine=QUARANTINE_SCHEMA.empty_table(), fit={"normalize": dict(normalize)},
    )  # fmt: skip
    return Store(path, publish_version(path, draft, after=None))


def _facts(row: Known) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": row.id, "source": f"{row.trial or row.id}.csv", "n_rows": row.n_rows,
        "split": row.split, "weight": row.weight, "label": row.label,
        "trial": row.trial or row.id, "segment": row.segment, "attributes": dict(row.attributes),
    }  # fmt: skip
    regular = len(row.clock or ()) == 2
    start, step = row.clock if regular else ((row.clock or [np.nan])[0], np.nan)  # type: ignore[misc]
    facts |= {"segment_start": float(start), "time_step": float(step)}
    if row.affine is not None:
        facts |= {"offset": [row.affine[0]] * 2, "scale": [row.affine[1]] * 2}
    return facts


def _attributes(rows: Sequence[Mapping[str, str | None]]) -> pa.Array:
    names = sorted({name for row in rows for name in row})
    texts = [pa.array([row.get(name) for row in rows], pa.utf8()) for name in names]
    return pa.StructArray.from_arrays(texts, names=names)


def _in_parts(path: Path, table: pa.Table, n_parts: int) -> tuple[pa.Table, tuple[Any, ...]]:
    """Return the rows with their places, and the parts; a part has only attributes of its own."""
    if not n_parts:
        return table, ()
    entries, pieces = [], []
    for part in range(min(n_parts, table.num_rows)):
        rows = table.take(pa.array(range(part, table.num_rows, n_parts)))
        own = rows.drop_columns(list(_HOT))
        if "attributes" in own.column_names:
            said = own["attributes"].to_pylist()
            said = [{k: v for k, v in row.items() if v is not None} for row in said]
            own = own.drop_columns(["attributes"])
            if any(said):
                own = own.append_column("attributes", _attributes(said))
        entries.append(write_part(path, own))
        keep = rows.select(["id", "digest", "n_rows", *_HOT])
        keep = keep.append_column("part", pa.array([entries[-1].digest] * len(rows)))
        pieces.append(keep.append_column("part_row", pa.array(np.arange(len(rows)))))
    return pa.concat_tables(pieces), tuple(entries)
