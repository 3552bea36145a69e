"""Tables of trials: read if they are the promised ones, and no more than their rows can need."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import CorruptStoreError
from shards.identity import file_promise
from shards.implied import AFFINE, DIGESTS, MOMENTS, RAW_DIGEST
from shards.pages import check_pages, read_footer
from shards.safety import OncePerProcess, check_file

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}
_SLACK = 2**20
_FEW_ROWS = 4096
_TEXT_BYTES = 8192
"""Most bytes of texts per row and column, on average: paths, ids, attributes, messages."""
_LIST_VALUES = 65_536
"""Most values of a list per row: the words of a categorical column are no more."""
_checked = OncePerProcess()


def read_cold(
    root: Path,
    path: Path,
    promise: Mapping[str, Any],
    n_rows: int,
    columns: Sequence[str] | None,
    *,
    implied: bool = False,
) -> pa.Table:
    """Return columns of a table of trials that may be trusted; those it has not are left out.

    Args:
        root: Store root.
        path: The file.
        promise: Its `size_bytes` and `xxh3_128` of the manifest.
        n_rows: Rows it must have.
        columns: Names; None for all.
        implied: Whether it is a part that leaves out what follows from others.

    Raises:
        CorruptStoreError: Naming the file.
    """
    admit_table(root, path, promise, n_rows, implied=implied)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = None if columns is None else list(columns)
            table = file.read(columns=wanted, use_threads=n_rows > _FEW_ROWS)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return table


def unreadable(path: Path, error: Exception) -> CorruptStoreError:
    """Return the error that a file of a version is not what it should be."""
    return CorruptStoreError(
        f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open another "
        "version."
    )


def admit_table(
    root: Path,
    path: Path,
    promise: Mapping[str, Any],
    n_rows: int | None,
    *,
    implied: bool = False,
) -> None:
    """Refuse a Parquet file of a store that is not the promised one, or not fit to be decoded.

    A file is looked at once per process.

    Args:
        root: Store root.
        path: The file.
        promise: Its `size_bytes` and `xxh3_128` of the manifest.
        n_rows: Rows it must have; None where nothing promises them, and then those the footer
            claims, at most one per byte.
        implied: As for `read_cold`.

    Raises:
        CorruptStoreError: Naming the file.
    """
    found = check_file(root, path)
    if found.st_size != promise["size_bytes"]:
        wanted = promise["size_bytes"]
        raise unreadable(path, ValueError(f"it has {found.st_size} bytes, promised are {wanted}"))

    def look() -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            if file_promise(raw) != promise:
                raise ValueError(f"its bytes are not those the manifest promises: {promise}")
            meta = read_footer(path, raw)
            rows = meta.num_rows if n_rows is None else n_rows
            if meta.num_rows != rows or not 0 <= rows <= max(len(raw), n_rows or 0):
                raise ValueError(f"it has {meta.num_rows} rows; the manifest says {rows}")
            check_types(meta.schema.to_arrow_schema(), implied=implied)
            check_pages(raw, meta, _cold_bytes)

    try:
        _checked.check(found, f"{promise} {n_rows} {implied}", look)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def check_types(schema: pa.Schema, *, implied: bool = False) -> None:
    """Refuse a table of trials whose columns are not of the types that SPEC section 9 says.

    Args:
        schema: Of the table.
        implied: Whether its digests are bytes.

    Raises:
        ValueError: Naming the column.
    """
    for field in schema:
        kind, known = field.type, _TYPES.get(field.name)
        if implied and field.name in DIGESTS:
            known = _is_raw_digest
        if known is not None and not (pa.types.is_null(kind) or known(kind)):
            raise ValueError(f"column {field.name} is of type {kind}")
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("a column comes twice")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_raw_digest(kind: pa.DataType) -> bool:
    return bool(kind == RAW_DIGEST)


def _is_row(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))


def _is_words(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) else None
    return inner is not None and pa.types.is_list(inner) and _is_text(inner.value_type)


def _is_attributes(kind: pa.DataType) -> bool:
    texts = pa.types.is_struct(kind) and [field.type for field in kind]
    return texts is not False and all(_is_text(t) or pa.types.is_null(t) for t in texts)


_TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    **dict.fromkeys(("id", "digest", "source", "source_xxh3", "trial"), _is_text),
    **dict.fromkeys(("n_rows", "size_bytes", "mtime_ns", "segment"), pa.types.is_integer),
    **dict.fromkeys(("time_step", "segment_start"), pa.types.is_floating),
    **dict.fromkeys((*MOMENTS, *AFFINE), _is_row),
    "categories": _is_words,
    "attributes": _is_attributes,
}


def _cold_bytes(column: Any, chunk: Any, n_rows: int) -> tuple[int, int]:
    """Return the most values and bytes of a column of a table of trials."""
    n_values = n_rows * (_LIST_VALUES if column.max_repetition_level else 1)
    if chunk.physical_type == "BYTE_ARRAY":
        return n_values, _SLACK + n_rows * _TEXT_BYTES * (8 if column.max_repetition_level else 1)
    width = _WIDTHS.get(chunk.physical_type)
    if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length == RAW_DIGEST.byte_width:
        width = column.length
    if width is None:
        raise ValueError(f"it is of type {chunk.physical_type}")
    # Levels and a dictionary that was given up come on top of the values.
    return n_values, _SLACK + chunk.num_values * (2 * width + 4)
