"""One shard of a bucket: which trial segments it holds, their arrays, and their index rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.finish import FinishedBatch
from pipeline.sections import ForecastTarget, PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.trials import Bool, Int64
from shards.cutting import Cut, cut_windows, stored_digest
from shards.manifest import ShardEntry
from shards.windows import count_windows
from shards.writer import write_shard

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Form:
    """What shards of a data set look like.

    Attributes:
        container: `zarr` or `parquet`.
        columns: Names of the columns of each array, as the manifest knows them.
        cut: How windows are cut; None in layout rows.
    """

    container: str
    columns: Mapping[str, Sequence[str]]
    cut: Cut | None


def shard_form(spec: DatasetSpec) -> Form:
    """Return what the shards of a data set look like."""
    target, names = spec.windows.target, [channel.name for channel in spec.inputs()]
    ahead = target.channels if isinstance(target, ForecastTarget) else ()
    own = (target.attribute,) if isinstance(target, PerTrialTarget) else spec.target_columns()
    columns = {"values": names, "targets": ahead or own, "codes": tuple(spec.categorical)}
    cut = Cut(spec.windows.arithmetic(), tuple(names.index(name) for name in ahead))
    return Form(
        spec.shards.format,
        {name: listed for name, listed in columns.items() if listed},
        cut if spec.shards.layout == "windows" else None,
    )


class Segment(NamedTuple):
    """One trial segment of a batch: its number there, its range of rows, and their bytes."""

    batch: FinishedBatch
    number: int
    start: int
    end: int
    n_bytes: int


def segments(batches: Iterable[FinishedBatch], form: Form) -> Iterator[Segment]:
    """Yield the trial segments of finished batches, in order."""
    for batch in batches:
        if batch.rows is None:  # all its files were refused
            continue
        n_bytes = batch.n_rows * batch.row_bytes
        if form.cut is not None:
            n_windows = count_windows(batch.n_rows, form.cut.windows)
            n_bytes = n_windows * form.cut.window_bytes(batch.arrays)
        elif batch.time is not None:
            n_bytes = n_bytes + 8 * batch.n_rows * _is_irregular(batch.rows)
        edges = [0, *np.cumsum(batch.n_rows).tolist()]
        ranges = zip(itertools.pairwise(edges), n_bytes.tolist(), strict=True)
        for number, ((start, end), size) in enumerate(ranges):
            yield Segment(batch, number, start, end, size)


def size_of(segment: Segment) -> int:
    """Return the bytes that a segment takes in a shard, uncompressed."""
    return segment.n_bytes


def write_members(
    store: Path, members: Sequence[Segment], form: Form
) -> tuple[ShardEntry, pa.Table]:
    """Write one shard, and return its entry and the index rows of its segments."""
    runs = [list(run) for _, run in itertools.groupby(members, lambda member: id(member.batch))]
    tables = [
        run[0].batch.rows.slice(run[0].number, len(run))
        for run in runs
        if run[0].batch.rows is not None
    ]
    table = pa.concat_tables(tables)
    parts = [
        {name: rows[run[0].start : run[-1].end] for name, rows in run[0].batch.arrays.items()}
        for run in runs
    ]
    n_stored: Int64 = np.array([member.end - member.start for member in members], np.int64)
    if form.cut is not None:
        rows_of = [np.array([m.end - m.start for m in run], np.int64) for run in runs]
        parts = [cut_windows(part, n, form.cut) for part, n in zip(parts, rows_of, strict=True)]
        n_stored = count_windows(n_stored, form.cut.windows)
        table = table.append_column("stored", pa.array(_digests(parts, rows_of, form.cut)))
    elif _is_irregular(table).any():
        for part, run in zip(parts, runs, strict=True):
            part["time"] = _times(run)
    pieces = {name: [part[name] for part in parts] for name in parts[0]}
    if not n_stored.any():  # no shard without rows: one that no trial names
        pieces = {name: [np.zeros((1, p[0].shape[1]), p[0].dtype)] for name, p in pieces.items()}
    entry = write_shard(store, pieces, len(members), container=form.container, columns=form.columns)
    first = np.where(n_stored > 0, np.cumsum(n_stored) - n_stored, 0)
    table = table.append_column("shard", pa.array([entry.digest] * len(members), pa.utf8()))
    return entry, table.append_column("row_start", pa.array(first))


def _is_irregular(rows: pa.Table | None) -> Bool:
    """Return, per segment, whether its times do not follow from the first and a step."""
    if rows is None or "time_step" not in rows.column_names:
        return np.zeros(0 if rows is None else rows.num_rows, np.bool_)
    return np.asarray(np.isnan(rows["time_step"].to_numpy()))


def _times(run: Sequence[Segment]) -> npt.NDArray[np.float64]:
    """Return float64 `[rows, 1]`, when the rows of a run of segments were."""
    time = run[0].batch.time
    if time is None:  # a batch that has `time_step` has times
        raise ValueError("a batch says that its times are irregular, but not what they are")
    return np.ascontiguousarray(time[run[0].start : run[-1].end, None])


def _digests(parts: Sequence[Arrays], rows_of: Sequence[Int64], cut: Cut) -> list[str]:
    """Return what each segment's windows hash to."""
    digests = []
    for part, n_rows in zip(parts, rows_of, strict=True):
        edges = [0, *np.cumsum(count_windows(n_rows, cut.windows)).tolist()]
        for start, end in itertools.pairwise(edges):
            digests.append(stored_digest({name: rows[start:end] for name, rows in part.items()}))
    return digests
