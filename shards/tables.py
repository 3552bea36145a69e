"""Tables as Parquet bytes, with the encodings that suit statistics of trials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 32_768
"""Rows of a row group: what is decoded to know one trial of a million."""


def int64_array(values: npt.NDArray[np.int64]) -> pa.Array:
    """Return whole numbers as an Arrow array.

    `pa.array` would load pandas where it is installed, to ask whether it got one of its own.
    """
    values = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as Parquet, zstd."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=GROUP_ROWS, compression="zstd", write_page_checksum=True,
        **_encodings(table),
    )  # fmt: skip
    return bytes(sink.getvalue())


def _encodings(table: pa.Table) -> dict[str, Any]:
    """Say that floats have their bytes regrouped, and that everything else gets a dictionary.

    Hardly any two statistics are equal: a dictionary of them would take longer than all the rest,
    and be thrown away in the end.
    """
    repeating: list[str] = []
    regrouped: dict[str, str] = {}
    for field in table.schema:
        leaves, kind = list(_leaves(field.type, field.name)), field.type
        kind = kind.value_type if pa.types.is_list(kind) else kind
        if pa.types.is_floating(kind):
            regrouped |= dict.fromkeys(leaves, "BYTE_STREAM_SPLIT")
        else:
            repeating += leaves
    return {"use_dictionary": repeating, "column_encoding": regrouped} if regrouped else {}


def _leaves(kind: pa.DataType, path: str) -> Iterator[str]:
    """Yield the columns of Parquet that a column is kept in."""
    if pa.types.is_list(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    else:
        yield path
