"""Build one bucket: its files become shards and index rows, staged for the commit.

A bucket is the unit of parallel and repeated building. Its result is one file under
`staging/<plan digest>/` (`pipeline/staging.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.base import INDEX_COLUMNS
from pipeline.engine import map_batches
from pipeline.files import Refusal, SourceFile
from pipeline.finish import FinishedBatch
from pipeline.members import segments, shard_form, size_of, write_members
from pipeline.pack import pack_trials, plan_batches
from pipeline.prepare import prepare_files
from pipeline.recipe import Recipe
from pipeline.spec import key_orders
from pipeline.staging import TRANSIENT, BucketResult, read_staged, refresh_files, write_staged
from pipeline.versions import STAGES
from shards.manifest import PartEntry, ShardEntry
from shards.parts import write_part

BATCH_BYTES = 12 * 2**20
"""Input joined for one parser call: smaller pays per call, larger costs memory and cache."""

OnFiles = Callable[[int, int], None]
"""Called with (files, bytes) that were just dealt with."""


def plan_digest(recipe: Recipe) -> str:
    """Return the name of what a trial becomes: whatever changes a trial's content changes it.

    Not how trials are split and packed: a trial that is stored already may lie anywhere.
    """
    spec = recipe.spec.model_dump(mode="json", exclude={"split", "max_quarantined", "name"})
    del spec["source"]["obtain"]
    shape = spec.pop("shards")
    if shape["layout"] == "rows":
        spec["windows"] = {"target": spec["windows"]["target"]}
    document = {
        "spec": spec,
        "shape": [shape["layout"], shape["format"]],
        "stages": STAGES,
        "besides": recipe.besides,
    }
    orders = key_orders(spec)
    if orders:  # `sort_keys` below cannot tell them apart
        document["orders"] = orders
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
        asked: Those of the bucket's files that must be read, in path order, as the catalog knows
            them; they are read as they are now.
        recipe: The specification.
        store: Store root, where shards go.
        staged: Where the result is kept until the commit.
        on_files: Progress.
        n_workers: Threads; by default one per processor.
    """
    if not asked:
        return BucketResult(None, (), ())
    found = read_staged(staged, store)
    if found is not None and found.is_exactly(files := refresh_files(root, asked)):
        on_files(len(files), sum(file.size_bytes for file in files))
        return found.result
    tables: list[pa.Table] = []
    shards: list[ShardEntry] = []
    read = _Read([], [])
    batches = _prepared(root, asked, recipe, read, on_files, n_workers)
    form, target_bytes = shard_form(recipe.spec), recipe.spec.shards.target_bytes
    for members in pack_trials(segments(batches, form), size_of, target_bytes):
        entry, packed = write_members(store, members, form)
        shards.append(entry)
        tables.append(packed)
        del members  # else this shard stays in memory until the next one is full
    part, rows = _write_cold(store, tables)
    refusals = _with_times(read.refusals, read.files)
    result = BucketResult(rows, tuple(shards), refusals, tuple(read.files), part=part)
    write_staged(staged, asked, result)
    return result


def _write_cold(
    store: Path, tables: Sequence[pa.Table]
) -> tuple[PartEntry, pa.Table] | tuple[None, None]:
    """Write what is known of the segments as a part, and return what the hot index needs."""
    if not tables:
        return None, None
    table = pa.concat_tables(tables).combine_chunks()
    part = write_part(store, table.drop_columns(["shard", "row_start"]))
    names = [name for name in (*INDEX_COLUMNS, "trial") if name in table.column_names]
    places = pa.array(np.arange(table.num_rows, dtype=np.int64))
    return part, table.select(names).append_column("part_row", places)


def _with_times(refusals: Sequence[Refusal], files: Sequence[SourceFile]) -> tuple[Refusal, ...]:
    """Note when each refused file was modified, unless its refusal may pass by itself."""
    if not refusals:
        return ()
    times = {file.path: file.mtime_ns for file in files}
    return tuple(
        refusal
        if refusal.code in TRANSIENT
        else dataclasses.replace(refusal, mtime_ns=times.get(refusal.source))
        for refusal in refusals
    )


class _Read(NamedTuple):
    """What becomes known while files are read: which were refused, and what each of them was."""

    refusals: list[Refusal]
    files: list[SourceFile]


def _prepared(
    root: Path,
    files: Sequence[SourceFile],
    recipe: Recipe,
    read: _Read,
    on_files: OnFiles,
    n_workers: int | None,
) -> Iterator[FinishedBatch]:
    """Yield finished batches in file order, noting what was read on the way."""

    def work(batch: range) -> tuple[FinishedBatch, Sequence[SourceFile]]:
        return _prepare_as_is(root, files[batch.start : batch.stop], recipe)

    batches = plan_batches([file.size_bytes for file in files], BATCH_BYTES)
    for done, own in map_batches(work, batches, n_workers=n_workers):
        read.refusals.extend(done.refusals)
        read.files.extend(own)
        yield done
        on_files(len(own), sum(file.size_bytes for file in own))


def _prepare_as_is(
    root: Path, files: Sequence[SourceFile], recipe: Recipe
) -> tuple[FinishedBatch, Sequence[SourceFile]]:
    """Prepare files as they are now, and return them so.

    A reader finds out by itself that a file is not the one of the catalog. Only then are the files
    looked at again, because a look costs as much as a tenth of reading a small file.
    """
    done = prepare_files(root, files, recipe)
    if any(refusal.code == "changed_while_read" for refusal in done.refusals):
        fresh = refresh_files(root, files)
        if fresh != list(files):
            return prepare_files(root, fresh, recipe), fresh
    return done, files
