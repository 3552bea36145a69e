"""One shard of a bucket: which trial segments it holds, their arrays, and their index rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.finish import FinishedBatch
from shards.manifest import ShardEntry
from shards.writer import write_shard


class Segment(NamedTuple):
    """One trial segment of a batch: its number there, its range of rows, and their bytes."""

    batch: FinishedBatch
    number: int
    start: int
    end: int
    n_bytes: int


def segments(batches: Iterable[FinishedBatch]) -> Iterator[Segment]:
    """Yield the trial segments of finished batches, in order."""
    for batch in batches:
        row_bytes = batch.row_bytes
        edges = [0, *np.cumsum(batch.n_rows).tolist()]
        for number, (start, end) in enumerate(itertools.pairwise(edges)):
            yield Segment(batch, number, start, end, (end - start) * row_bytes)


def size_of(segment: Segment) -> int:
    """Return the bytes that a segment takes in a shard."""
    return segment.n_bytes


def write_members(store: Path, members: Sequence[Segment]) -> tuple[ShardEntry, pa.Table]:
    """Write one shard, and return its entry and the index rows of its segments."""
    runs = [list(run) for _, run in itertools.groupby(members, lambda member: id(member.batch))]
    parts = {
        name: [run[0].batch.arrays[name][run[0].start : run[-1].end] for run in runs]
        for name in members[0].batch.arrays
    }
    entry = write_shard(store, parts, len(members))
    tables = [
        run[0].batch.rows.slice(run[0].number, len(run))
        for run in runs
        if run[0].batch.rows is not None
    ]
    n_rows = np.array([member.end - member.start for member in members], np.int64)
    table = pa.concat_tables(tables)
    table = table.append_column("shard", pa.array([entry.digest] * len(members), pa.utf8()))
    return entry, table.append_column("row_start", pa.array(np.cumsum(n_rows) - n_rows))
