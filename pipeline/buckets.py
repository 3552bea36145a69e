"""Build one bucket: its files become shards and index rows, staged for the commit.

A bucket is the unit of parallel and repeated building. Its result is one Parquet file under
`staging/<plan digest>/`, written by one rename: it is there whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import clean, derive, normalize, pack, prepare, sources
from pipeline.engine import map_batches
from pipeline.pack import pack_trials, plan_batches
from pipeline.prepare import PreparedTrial, prepare_table, source_key
from pipeline.recipe import Recipe
from pipeline.sources.delimited import read_delimited
from pipeline.trials import Refusal, SourceFile
from shards.manifest import ShardEntry
from shards.version import parquet_bytes
from shards.writer import replace_file, write_shard

VERSION = 1
BATCH_BYTES = 12 * 2**20
"""Input joined for one parser call: smaller pays per call, larger costs memory and cache."""

_TRANSIENT = ("unreadable", "changed_while_read")
"""Refusals that may pass although size and time of the file stay the same."""

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

log = logging.getLogger(__name__)

OnFiles = Callable[[int, int], None]
"""Called with (files, bytes) that were just dealt with."""


@dataclass(frozen=True)
class BucketResult:
    """What one bucket contributes to a version.

    Attributes:
        rows: Cold index rows plus `shard` (digest), `row_start`, `label` (text).
        shards: The shards they lie in.
        refusals: Files that are not in it.
        reused: Whether an earlier, unfinished build had staged it.
    """

    rows: pa.Table | None
    shards: tuple[ShardEntry, ...]
    refusals: tuple[Refusal, ...]
    reused: bool = False


def plan_digest(recipe: Recipe, n_buckets: int) -> str:
    """Return the name of the staging folder: whatever changes a bucket's content changes it."""
    spec = recipe.spec.model_dump(mode="json", exclude={"split", "max_quarantined", "name"})
    spec["windows"] = {"target": spec["windows"]["target"]}
    stages = {m.__name__: m.VERSION for m in (sources, derive, clean, normalize, prepare, pack)}
    document = {"spec": spec, "stages": {**stages, "buckets": VERSION}, "n_buckets": n_buckets}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def inputs_digest(files: Sequence[SourceFile]) -> str:
    """Return the digest of what the catalog knows of a bucket's files."""
    return hashlib.sha256("\n".join(source_key(file) for file in files).encode()).hexdigest()


def build_bucket(
    root: Path,
    files: Sequence[SourceFile],
    recipe: Recipe,
    store: Path,
    *,
    staged: Path,
    on_files: OnFiles,
    n_workers: int | None = None,
) -> BucketResult:
    """Build the bucket of `files`, or take it from `staged` if that holds the same inputs.

    Args:
        root: Source root.
        files: The bucket's files in path order.
        recipe: The specification.
        store: Store root, where shards go.
        staged: Where the result is kept until the commit.
        on_files: Progress.
        n_workers: Threads; by default one per processor.
    """
    inputs = inputs_digest(files)
    found = _read_staged(staged, inputs, store)
    if found is not None:
        on_files(len(files), sum(file.size_bytes for file in files))
        return found
    rows: list[dict[str, Any]] = []
    shards: list[ShardEntry] = []
    refusals: list[Refusal] = []
    trials = _prepared(root, files, recipe, refusals, on_files, n_workers)
    target_bytes = recipe.spec.shards.target_bytes
    for members in pack_trials(trials, lambda trial: trial.n_bytes, target_bytes):
        entry = _write_members(store, members)
        shards.append(entry)
        rows.extend(_located_rows(members, entry.digest))
    result = BucketResult(_as_table(rows), tuple(shards), tuple(refusals))
    _stage(staged, inputs, result)
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


def _as_table(rows: list[dict[str, Any]]) -> pa.Table | None:
    if not rows:
        return None
    names = sorted({name for row in rows for name in row["attributes"]})
    texts = [pa.array([row["attributes"].get(n) for row in rows], pa.utf8()) for n in names]
    fields = [pa.field(name, kind) for name, kind in _COLUMNS.items() if name in rows[0]]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    if not names:  # Parquet has no empty struct
        return table
    return table.append_column("attributes", pa.StructArray.from_arrays(texts, names=names))


def _stage(staged: Path, inputs: str, result: BucketResult) -> None:
    about = {
        "inputs": inputs,
        "shards": [shard.as_dict() for shard in result.shards],
        "refusals": [refusal.as_row() for refusal in result.refusals],
        "empty": result.rows is None,
    }
    table = pa.table({"id": pa.array([], pa.utf8())}) if result.rows is None else result.rows
    table = table.replace_schema_metadata({"trialshards": json.dumps(about)})
    replace_file(staged, parquet_bytes(table))


def _read_staged(staged: Path, inputs: str, store: Path) -> BucketResult | None:
    if not staged.is_file():
        return None
    try:
        table = pq.read_table(staged)
        about = json.loads((table.schema.metadata or {}).get(b"trialshards", b"{}"))
        shards = tuple(ShardEntry.from_dict(entry) for entry in about["shards"])
    except (OSError, ValueError, KeyError) as error:  # damaged: build the bucket again
        log.warning("%s cannot be used again: %s", staged, error)
        return None
    if about.get("inputs") != inputs:
        return None
    if not all((store / "shards" / shard.digest).is_dir() for shard in shards):
        return None
    refusals = tuple(Refusal(**row) for row in about["refusals"])
    if any(refusal.code in _TRANSIENT for refusal in refusals):
        return None
    rows = None if about["empty"] else table.replace_schema_metadata(None)
    return BucketResult(rows, shards, refusals, reused=True)
