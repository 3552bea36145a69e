"""Index rows of the base and of what was built now, as one table in id order.

What else is known of the trials stays in its parts until somebody asks for a column: a build that
changes one trial of many does not read their statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base import Base
from pipeline.delta import Delta
from pipeline.staging import BucketResult
from shards.manifest import PartEntry, ShardEntry
from shards.parts import read_parts
from shards.version import sort_by_id


@dataclass(frozen=True)
class Merged:
    """All trial segments of the next version.

    Attributes:
        store: Store root.
        index: Their index rows, sorted by id: `base.INDEX_COLUMNS`, `part`, `part_row`, `split` as
            far as the base knows it, and with gaps `trial`.
        shards: Every shard that they name, by digest.
        parts: Every part that they name, by digest.
        taken_out: Files that were read and of which tombstones leave nothing.
    """

    store: Path
    index: pa.Table
    shards: Mapping[str, ShardEntry]
    parts: Mapping[str, PartEntry]
    taken_out: frozenset[str] = frozenset()

    def cold(self, *columns: str) -> pa.Table:
        """Return cold columns, one row per index row; those that no part has are left out."""
        entries = list(self.parts.values())
        numbers = pa.array([entry.digest for entry in entries], pa.utf8())
        part = pc.index_in(self.index["part"], value_set=numbers)
        places = [column.to_numpy() for column in (part, self.index["part_row"])]
        return read_parts(self.store, entries, places[0], places[1], columns)


def merge(
    store: Path, base: Base | None, delta: Delta, results: Sequence[BucketResult]
) -> Merged | None:
    """Return what the base keeps and what was built; None without any trial.

    Args:
        store: Store root.
        base: Where the build goes on from.
        delta: What was to be read.
        results: What came of it.
    """
    tables = [_placed(result) for result in results if result.rows is not None]
    shards = {entry.digest: entry for result in results for entry in result.shards}
    parts = {result.part.digest: result.part for result in results if result.part is not None}
    if base is not None and base.reusable:
        tables.append(base.rows(delta.gone))
        shards |= {entry.digest: entry for entry in base.manifest.shards}
        parts |= {entry.digest: entry for entry in base.manifest.parts}
    if not tables:
        return None
    rows = pa.concat_tables(tables, promote_options="default").combine_chunks()
    taken_out = frozenset[str]()
    if base is not None and base.tombstones:
        rows, taken_out = _without(rows, [stone.id for stone in base.tombstones])
    rows = sort_by_id(rows)
    if not rows.num_rows:
        return None
    used = set(pc.unique(rows["part"]).to_pylist())
    parts = {digest: entry for digest, entry in parts.items() if digest in used}
    return Merged(store, rows, shards, parts, taken_out)


def _placed(result: BucketResult) -> pa.Table:
    """Return a bucket's rows with the part that they lie in, and ids as the hot index has them."""
    rows, part = result.rows, result.part
    if rows is None or part is None:
        raise AssertionError("rows lie in a part")  # build_bucket writes both or none
    at = rows.schema.get_field_index("id")
    rows = rows.set_column(at, "id", rows["id"].cast(pa.large_utf8()))
    digests = pa.array([part.digest], pa.utf8()).take(pa.array(np.zeros(len(rows), np.int64)))
    return rows.append_column("part", digests)


def _without(rows: pa.Table, ids: Sequence[str]) -> tuple[pa.Table, frozenset[str]]:
    """Leave out trials that were taken out by hand; return also files of which nothing is left."""
    trials = rows["trial" if "trial" in rows.column_names else "id"]
    out = pc.is_in(trials, value_set=pa.array(ids, trials.type))
    left, sources = rows.filter(pc.invert(out)), pc.unique(rows["source"].filter(out))
    nothing = pc.invert(pc.is_in(sources, value_set=pc.unique(left["source"])))
    return left, frozenset(sources.filter(nothing).to_pylist())


def _has_equal_times(merged: Merged, base: Base, new: pa.ChunkedArray) -> pa.Array:
    """Return whether the times in the base's shard are those of each new row, as far as is known.

    No digest of a trial tells of them. A shard holds those that are irregular.
    """
    fresh = dataclasses.replace(merged, index=merged.index.filter(new))
    cold = fresh.cold("source_xxh3", "time_step")
    if "time_step" not in cold.column_names:
        return pa.array(np.ones(cold.num_rows, np.bool_))
    regular = pc.invert(pc.is_nan(cold["time_step"]))
    if pc.all(regular).as_py():
        return regular
    old = base.rows_of(fresh.index["id"], "source_xxh3")["source_xxh3"]
    return pc.or_(regular, pc.equal(old, cold["source_xxh3"]).fill_null(False))


def keep_equal(merged: Merged, base: Base | None) -> Merged:
    """Return the rows, those whose trial is as it was at the place where the base has it.

    A file that was touched, or written again as it was, moves no row.
    """
    if base is None or not base.reusable:
        return merged
    old_parts = pa.array([entry.digest for entry in base.manifest.parts], pa.utf8())
    new = pc.invert(pc.is_in(merged.index["part"], value_set=old_parts))
    fresh = merged.index.filter(new).select(["id", "digest"])
    old = base.rows_of(fresh["id"])
    same = pc.equal(old["digest"], fresh["digest"]).fill_null(False)
    if not pc.any(same).as_py():
        return merged
    same = pc.and_(same, _has_equal_times(merged, base, new))
    index = merged.index
    for name in ("shard", "row_start"):
        own = pc.filter(index[name], new)
        kept = pc.if_else(same, old[name], own).combine_chunks()
        column = pc.replace_with_mask(index[name].combine_chunks(), new.combine_chunks(), kept)
        index = index.set_column(index.schema.get_field_index(name), name, column)
    shards = {entry.digest: entry for entry in base.manifest.shards}
    return dataclasses.replace(merged, index=index, shards={**merged.shards, **shards})
