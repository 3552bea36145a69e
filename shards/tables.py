"""Tables as Parquet bytes, with the encodings that suit statistics of trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 32_768
"""Rows of a row group: what is decoded to know one trial of a million."""
_LEVEL = 7
"""Of zstd: statistics of trials are read seldom and kept for long."""
_DICTIONARY = "DICTIONARY"
_SAMPLE_ROWS = 1024
_FEW_ROWS = 16


def int64_array(values: npt.NDArray[np.int64]) -> pa.Array:
    """Return whole numbers as an Arrow array.

    `pa.array` would load pandas where it is installed, to ask whether it got one of its own.
    """
    values = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as Parquet, zstd.

    The types of its columns are those that Parquet itself knows: texts come back as utf8.
    """
    return _write(table, _encodings(table), _LEVEL)


def _write(table: pa.Table, encodings: Mapping[str, str], level: int) -> bytes:
    """Return a table as Parquet, each leaf in its encoding, those without one by dictionary.

    Neither the types of Arrow nor the least and greatest values of columns are written: of a few
    trials they take more than what is known of them, and nobody asks.
    """
    chosen = {leaf: kind for leaf, kind in encodings.items() if kind != _DICTIONARY}
    leaves = [leaf for field in table.schema for leaf in _leaves(field.type, field.name)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", compression_level=level,
        write_page_checksum=True, write_statistics=False, store_schema=False,
        use_dictionary=[leaf for leaf in leaves if leaf not in chosen],
        column_encoding=chosen or None,
    ) as writer:  # fmt: skip
        writer.write_table(table, row_group_size=GROUP_ROWS)
        if table.schema.metadata:  # it goes with the types of Arrow
            writer.add_key_value_metadata(table.schema.metadata)
    return bytes(sink.getvalue())


def _encodings(table: pa.Table) -> dict[str, str]:
    """Return the encoding of each leaf that makes the first rows of the table smallest.

    No rule would do: means of decimals are best left as they are, those of a few different lengths
    by dictionary, those of measured noise with their bytes regrouped.
    """
    floats: list[str] = []
    others: list[str] = []
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        leaves = floats if pa.types.is_floating(kind) else others
        leaves += _leaves(field.type, field.name)
    if not floats:
        return {}
    if table.num_rows < _FEW_ROWS:  # whatever it takes is little
        return dict.fromkeys(floats, "PLAIN")
    sample = table.slice(0, _SAMPLE_ROWS)
    plain = dict.fromkeys((*floats, *others), "PLAIN")
    tries = [{}, plain, {**plain, **dict.fromkeys(floats, "BYTE_STREAM_SPLIT")}]
    sizes = [_leaf_sizes(_write(sample, tried, level=1)) for tried in tries]
    found = {}
    for leaf in plain:
        _, best = min((size[leaf], number) for number, size in enumerate(sizes))
        found[leaf] = tries[best].get(leaf, _DICTIONARY)
    return found


def _leaf_sizes(content: bytes) -> dict[str, int]:
    """Return the bytes that each leaf of a Parquet file of one row group takes."""
    group = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    columns = (group.column(place) for place in range(group.num_columns))
    return {column.path_in_schema: column.total_compressed_size for column in columns}


def _leaves(kind: pa.DataType, path: str) -> Iterator[str]:
    """Yield the columns of Parquet that a column is kept in."""
    if pa.types.is_list(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    else:
        yield path
