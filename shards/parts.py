"""The cold index in parts: Parquet files named by their content, shared by versions like shards.

A part holds what is known of the trials that were built together. A version that changes a few
trials adds a part of their rows; what it does not change stays where it is (SPEC section 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.disk import replace_file
from shards.errors import CorruptStoreError
from shards.identity import file_promise
from shards.index import HotIndex
from shards.schema import PartEntry
from shards.tables import parquet_bytes


def part_path(store: Path, digest: str) -> Path:
    """Return where a part lies."""
    return store / "parts" / f"{digest}.parquet"


def write_part(store: Path, rows: pa.Table) -> PartEntry:
    """Write cold rows as a part, unless the store already holds the same one.

    Args:
        store: Store root.
        rows: One row at least, columns of SPEC section 9.

    Returns:
        What the manifest lists.
    """
    content = parquet_bytes(rows)
    promise = file_promise(content)
    entry = PartEntry(promise["xxh3_128"], promise["size_bytes"], rows.num_rows)
    path = part_path(store, entry.digest)
    if not path.is_file():
        replace_file(path, content)
    return entry


def read_parts(
    store: Path, parts: Sequence[PartEntry], index: HotIndex, columns: Sequence[str] | None
) -> pa.Table:
    """Return the cold rows of an index, in its order.

    Args:
        store: Store root.
        parts: As the manifest lists them.
        index: With `part` and `part_row`.
        columns: Names; None for all.

    Raises:
        CorruptStoreError: If a part is missing, damaged, or has not the rows the index names.
    """
    if index.part is None or index.part_row is None:
        raise CorruptStoreError(f"{store}: the hot index does not say where cold rows are.")
    n_rows = np.array([part.n_rows for part in parts], np.int64)
    if not _lie_inside(index, n_rows):
        raise CorruptStoreError(
            f"{store}: the hot index names cold rows that no part has. "
            f"Run: trialshards verify {store}"
        )
    used = np.bincount(index.part, minlength=len(parts)) > 0
    tables = [_read(store, parts[i], columns) for i in np.flatnonzero(used).tolist()]
    first = np.cumsum(np.where(used, n_rows, 0)) - n_rows
    joined = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    places = first[index.part] + index.part_row
    if len(places) == joined.num_rows and (np.diff(places) == 1).all():
        return joined
    return joined.combine_chunks().take(pa.array(places))


def _lie_inside(index: HotIndex, n_rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    part, row = index.part, index.part_row
    if part is None or row is None or not len(part):
        return True
    if part.min() < 0 or part.max() >= len(n_rows) or row.min() < 0:
        return False
    return bool((row < n_rows[part]).all())


def _read(store: Path, part: PartEntry, columns: Sequence[str] | None) -> pa.Table:
    path = part_path(store, part.digest)
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open "
            "another version."
        ) from error
    if table.num_rows != part.n_rows:
        raise CorruptStoreError(
            f"{path} has {table.num_rows} rows; the manifest says {part.n_rows}. "
            f"Run: trialshards verify {store}"
        )
    return table
