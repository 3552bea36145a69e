"""Build one bucket: its files become shards and index rows, staged for the commit.

A bucket is the unit of parallel and repeated building. Its result is one Parquet file under
`staging/<plan digest>/` (`pipeline/staging.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import clean, derive, normalize, pack, prepare, sources
from pipeline.engine import map_batches
from pipeline.pack import pack_trials, plan_batches
from pipeline.prepare import PreparedTrial, prepare_table
from pipeline.recipe import Recipe
from pipeline.sources.delimited import read_delimited
from pipeline.staging import BucketResult, read_staged, refresh_files, write_staged
from pipeline.trials import Refusal, SourceFile
from shards.manifest import ShardEntry
from shards.writer import write_shard

VERSION = 2
BATCH_BYTES = 12 * 2**20
"""Input joined for one parser call: smaller pays per call, larger costs memory and cache."""

# As Parquet gives lists back, so that a bucket is the same table fresh and from staging.
_NUMBERS = pa.list_(pa.field("element", pa.float64()))
_COLUMNS = {
    **dict.fromkeys(("id", "digest", "source"), pa.utf8()),
    **dict.fromkeys(("size_bytes", "mtime_ns"), pa.int64()),
    "source_xxh3": pa.utf8(),
    **dict.fromkeys(("bucket", "n_rows", "n_rows_in", "n_missing", "n_masked"), pa.int64()),
    **dict.fromkeys((*normalize.MOMENTS, "offset", "scale"), _NUMBERS),
    "shard": pa.utf8(),
    "row_start": pa.int64(),
    "label": pa.utf8(),
}

OnFiles = Callable[[int, int], None]
"""Called with (files, bytes) that were just dealt with."""


def stage_versions() -> dict[str, int]:
    """Return the version of every stage that decides what a bucket holds."""
    stages = (sources, derive, clean, normalize, prepare, pack)
    return {m.__name__.rsplit(".")[-1]: m.VERSION for m in stages} | {"buckets": VERSION}


def plan_digest(recipe: Recipe, n_buckets: int) -> str:
    """Return the name of the staging folder: whatever changes a bucket's content changes it."""
    spec = recipe.spec.model_dump(mode="json", exclude={"split", "max_quarantined", "name"})
    del spec["source"]["obtain"]
    spec["windows"] = {"target": spec["windows"]["target"]}
    document = {"spec": spec, "stages": stage_versions(), "n_buckets": n_buckets}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def build_bucket(
    root: Path,
    asked: Sequence[SourceFile],
    recipe: Recipe,
    store: Path,
    *,
    staged: Path,
    on_files: OnFiles,
    n_workers: int | None = None,
) -> BucketResult:
    """Build a bucket, or take it from `staged` if that holds the same inputs.

    Args:
        root: Source root.
        asked: The bucket's files in path order, as the catalog knows them; they are read as they
            are now.
        recipe: The specification.
        store: Store root, where shards go.
        staged: Where the result is kept until the commit.
        on_files: Progress.
        n_workers: Threads; by default one per processor.
    """
    files, found = refresh_files(root, asked), read_staged(staged, store)
    if found is not None and found.is_exactly(files):
        on_files(len(files), sum(file.size_bytes for file in files))
        return found.result
    rows: list[dict[str, Any]] = []
    shards: list[ShardEntry] = []
    refusals: list[Refusal] = []
    trials = _prepared(root, files, recipe, refusals, on_files, n_workers)
    target_bytes = recipe.spec.shards.target_bytes
    for members in pack_trials(trials, lambda trial: trial.n_bytes, target_bytes):
        entry = _write_members(store, members)
        shards.append(entry)
        rows.extend(_located_rows(members, entry.digest))
    table = _as_table(rows, recipe.attribute_names)
    result = BucketResult(table, tuple(shards), tuple(refusals), tuple(files))
    write_staged(staged, asked, result)
    return result


def _prepared(
    root: Path,
    files: Sequence[SourceFile],
    recipe: Recipe,
    refusals: list[Refusal],
    on_files: OnFiles,
    n_workers: int | None,
) -> Iterator[PreparedTrial]:
    """Yield finished trials in file order, collecting refusals on the way."""

    def work(batch: range) -> tuple[list[PreparedTrial | Refusal], list[Refusal]]:
        tables, refused = read_delimited(root, files[batch.start : batch.stop], recipe.layout)
        return [prepare_table(table, recipe) for table in tables], refused

    batches = plan_batches([file.size_bytes for file in files], BATCH_BYTES)
    results = map_batches(work, batches, n_workers=n_workers)
    for batch, (trials, refused) in zip(batches, results, strict=True):
        refusals.extend(refused)
        for trial in trials:
            if isinstance(trial, Refusal):
                refusals.append(trial)
            else:
                yield trial
        on_files(len(batch), sum(files[i].size_bytes for i in batch))


def _write_members(store: Path, members: Sequence[PreparedTrial]) -> ShardEntry:
    names = members[0].arrays
    arrays = {name: np.concatenate([m.arrays[name] for m in members]) for name in names}
    return write_shard(store, arrays, len(members))


def _located_rows(members: Sequence[PreparedTrial], digest: str) -> Iterator[dict[str, Any]]:
    start = 0
    for member in members:
        yield {**member.row, "shard": digest, "row_start": start}
        start += member.row["n_rows"]


def _as_table(rows: list[dict[str, Any]], names: Sequence[str]) -> pa.Table | None:
    """Return the rows; every bucket has the same attributes, whatever its own trials hold."""
    if not rows:
        return None
    texts = [pa.array([row["attributes"].get(n) for row in rows], pa.utf8()) for n in names]
    fields = [pa.field(name, kind) for name, kind in _COLUMNS.items() if name in rows[0]]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    if not names:  # Parquet has no empty struct
        return table
    return table.append_column("attributes", pa.StructArray.from_arrays(texts, names=names))
