"""Source files as columns of a table: how catalogs and staged buckets keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.files import Refusal, SourceFile

FILE_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("path", pa.utf8()),
    ("size_bytes", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("trial_id", pa.utf8()),
    ("attributes", pa.utf8()),  # JSON
    ("bucket", pa.int64()),
)


def file_columns(files: Sequence[SourceFile]) -> dict[str, list[Any]]:
    """Return one list per field."""
    # Many files have the same attributes, and then often the same mapping.
    texts = {id(kept): json.dumps(dict(kept)) for kept in _distinct(files)}
    lists = list(map(list, zip(*files, strict=True))) or [[] for _ in FILE_FIELDS]
    columns = {name: values for (name, _), values in zip(FILE_FIELDS, lists, strict=True)}
    return columns | {"attributes": [texts[id(held)] for held in columns["attributes"]]}


def _distinct(files: Sequence[SourceFile]) -> Iterable[Mapping[str, str]]:
    return {id(file.attributes): file.attributes for file in files}.values()


def files_to_table(files: Sequence[SourceFile]) -> pa.Table:
    """Return a table with one row per file."""
    columns = file_columns(files)
    return pa.table([columns[name] for name, _ in FILE_FIELDS], schema=pa.schema(FILE_FIELDS))


def files_from_table(table: pa.Table) -> tuple[SourceFile, ...]:
    """Undo `files_to_table`.

    Raises:
        KeyError: If a column is missing.
        TypeError: If a cell is empty.
        ValueError: If attributes are no JSON.
    """
    known: dict[str, dict[str, str]] = {}
    for text in table["attributes"].unique().to_pylist():
        known[text] = json.loads(text)
    lists = [column_list(table, name) for name, _ in FILE_FIELDS]
    lists[4] = [known[text] for text in lists[4]]
    return tuple(map(SourceFile, *lists))


def column_list(table: pa.Table, name: str) -> list[Any]:
    """Return a column as a list.

    Raises:
        TypeError: If a cell of a column of integers is empty.
    """
    column = table[name]
    if pa.types.is_integer(column.type) and column.null_count:
        raise TypeError(f"column {name!r} has empty cells")
    values: list[Any] = column.to_pylist()  # to_numpy imports pandas where that is installed
    return values


def digest_of_listing(
    seen: Mapping[str, tuple[int, int]], refusals: Sequence[Refusal], tables: str
) -> str:
    """Return the digest of a listing.

    Args:
        seen: Path -> (size in bytes, modification time in ns).
        refusals: Paths that the catalog refuses.
        tables: Digest of the attribute tables.
    """
    listed = [
        sorted([path, *as_seen] for path, as_seen in seen.items()),
        sorted([r.source, r.code, r.size_bytes] for r in refusals),
        tables,
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(listed).encode())
