"""The cold index in parts: Parquet files named by their content, shared by versions like shards.

A part holds what is known of the trials that were built together. A version that changes a few
trials adds a part of their rows; what it does not change stays where it is (SPEC section 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.disk import replace_file
from shards.errors import CorruptStoreError
from shards.identity import file_promise
from shards.implied import fill_in, leave_out, with_sources
from shards.parquetfile import read_cold, unreadable
from shards.schema import PartEntry
from shards.tables import int64_array, parquet_bytes


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
    rows, implied = leave_out(rows)
    content = parquet_bytes(rows)
    promise = file_promise(content)
    entry = PartEntry(promise["xxh3_128"], promise["size_bytes"], rows.num_rows, implied)
    path = part_path(store, entry.digest)
    # One that is there and damaged is mended: the build that writes it again needs it.
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)
    return entry


def read_parts(
    store: Path,
    parts: Sequence[PartEntry],
    part: npt.NDArray[np.integer[Any]],
    row: npt.NDArray[np.integer[Any]],
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Return cold rows, one per place, in the order of the places.

    Args:
        store: Store root.
        parts: As the manifest lists them.
        part: `[n]`, the place of each row's part in that list.
        row: `[n]`, its row in the part.
        columns: Names; None for all.

    Raises:
        CorruptStoreError: If a part is missing, damaged, or has not the rows that are named.
    """
    n_rows = np.array([part.n_rows for part in parts], np.int64)
    if len(part) and not (
        min(part.min(), row.min()) >= 0 and part.max() < len(parts) and (row < n_rows[part]).all()
    ):
        raise CorruptStoreError(
            f"{store}: the hot index names cold rows that no part has. "
            f"Run: trialshards verify {store}"
        )
    used = np.bincount(part, minlength=len(parts)) > 0
    tables = [read_part(store, parts[i], columns) for i in np.flatnonzero(used).tolist()]
    first = np.cumsum(np.where(used, n_rows, 0)) - n_rows
    joined = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    places = first[part] + row
    if len(places) == joined.num_rows and (np.diff(places) == 1).all():
        return joined
    return joined.combine_chunks().take(int64_array(places))


def read_part(store: Path, part: PartEntry, columns: Sequence[str] | None) -> pa.Table:
    """Return all rows of a part, dead ones too, as `read_parts` does."""
    promise = {"size_bytes": part.size_bytes, "xxh3_128": part.digest}
    path = part_path(store, part.digest)
    if not part.implied:
        return read_cold(store, path, promise, part.n_rows, columns)
    wanted = with_sources(columns)
    table = read_cold(store, path, promise, part.n_rows, wanted, implied=True)
    try:
        return fill_in(table, columns)
    except ValueError as error:
        raise unreadable(path, error) from error
