"""The headers of a Parquet file, page by page, before anything of it is inflated.

A few hundred bytes of Parquet can claim gigabytes: in the footer, in the header of a page, or by
repeating one long text. Decoders allocate what is claimed. So what every page claims is added up
here, and must be no more than the caller says its column can need.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.thrift import CompactReader

_MAGIC = b"PAR1"
_MOST_FOOTER = 64 * 2**20
_MOST_NODES = 20_000
_MOST_NESTED = 8
_CODECS = ("UNCOMPRESSED", "SNAPPY", "ZSTD")
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY", 9: "SPLIT"}
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_REPEATED = 2
_U32 = struct.Struct("<I")

MostOf = Callable[[Any, Any, int], tuple[int, int]]
"""Of (schema of a column, its chunk, rows of the row group): the most values it may have, and the
most bytes of all its pages when inflated, and of its texts when spelled out."""


@dataclass(frozen=True)
class Page:
    """What the header of a page claims.

    Attributes:
        kind: 0 or 3 holds values, 2 is a dictionary.
        n_values: Values, nulls included.
        start: Where its bytes begin.
        n_bytes: Bytes in the file.
        raw_bytes: Bytes when it is inflated.
    """

    kind: int
    n_values: int
    start: int
    n_bytes: int
    raw_bytes: int


def walk_file(path: Path, most_of: MostOf) -> None:
    """Refuse a file with a page that claims more than its column can need.

    Raises:
        ValueError: Naming the column.
        pa.ArrowException: If Arrow finds its footer broken.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        check_pages(raw, read_footer(path, raw), most_of)


def read_footer(path: Path, raw: Any) -> pq.FileMetaData:
    """Return what a file says of itself, if its schema is one that decoders can walk.

    Raises:
        ValueError: If it is no Parquet file, or deeper or wider than any of this format.
        pa.ArrowException: If Arrow finds it broken.
    """
    size = len(raw)
    if size < 12 or raw[:4] != _MAGIC or raw[size - 4 :] != _MAGIC:
        raise ValueError("it does not begin and end as a Parquet file")
    n_bytes = int.from_bytes(raw[size - 8 : size - 4], "little")
    if n_bytes > min(size - 12, _MOST_FOOTER):
        raise ValueError(f"its footer claims {n_bytes} bytes")
    footer = raw[size - 8 - n_bytes : size - 8]
    fields = CompactReader(footer, 0, n_bytes).struct(until=4)
    nodes, groups = fields.get(2, []), fields.get(4, [])
    if not isinstance(nodes, list) or len(nodes) > _MOST_NODES or not isinstance(groups, list):
        raise ValueError("its schema is no list, or too long a one")
    _check_histograms(groups, _leaf_levels(nodes))
    with pq.ParquetFile(path) as file:
        return file.metadata


def _leaf_levels(nodes: list[Any]) -> list[tuple[int, int]]:
    """Return how many repetition and definition levels each leaf of a schema has.

    Raises:
        ValueError: If it is nested deeper than the stack of a decoder that walks it by recursion.
    """
    leaves, above = [], [[1, 0, 0]]
    for number, node in enumerate(nodes):
        while above and above[-1][0] == 0:
            above.pop()
        children = node.get(5, 0) if isinstance(node, dict) else -1
        if not above or type(children) is not int or not 0 <= children < len(nodes):
            raise ValueError("its schema is no tree")
        kind = node.get(3, 0) if number else 0  # the root has none
        if kind not in (0, 1, _REPEATED):
            raise ValueError(f"a column has repetition {kind}")
        repeats, defines = above[-1][1] + (kind == _REPEATED), above[-1][2] + (kind != 0)
        above[-1][0] -= 1
        above.append([children, repeats, defines])
        if len(above) > _MOST_NESTED + 2:
            raise ValueError(f"its schema is nested more than {_MOST_NESTED} deep")
        if not children and number:
            leaves.append((repeats, defines))
    if any(left for left, _, _ in above):
        raise ValueError("its schema is no tree")
    return leaves


def _check_histograms(groups: list[Any], levels: list[tuple[int, int]]) -> None:
    """Refuse level histograms of other sizes than the schema has levels: Arrow aborts over them."""
    for group in groups:
        chunks = group.get(1) if isinstance(group, dict) else None
        if not isinstance(chunks, list) or len(chunks) != len(levels):
            raise ValueError("a row group has not the columns of the schema")
        for chunk, most in zip(chunks, levels, strict=True):
            meta = chunk.get(3) if isinstance(chunk, dict) else None
            if not isinstance(meta, dict):
                raise ValueError("a column says nothing of itself")  # noqa: TRY004 - of a document
            if meta.get(4) not in (0, 1, 6) or meta.get(1) not in range(8):
                raise ValueError("a column is of an unknown type or compression")
            sizes = meta.get(16, {})
            for field, level in zip((2, 3), most, strict=True):
                counts = sizes.get(field, []) if isinstance(sizes, dict) else None
                if not isinstance(counts, list) or len(counts) not in (0, level + 1):
                    raise ValueError("a column has a histogram of other levels than its schema")


def check_pages(raw: Any, meta: pq.FileMetaData, most_of: MostOf) -> None:
    """Refuse a file with a page that claims more than its column can need.

    Args:
        raw: The file, a buffer.
        meta: What its footer says.
        most_of: How much a column can need.

    Raises:
        ValueError: Naming the column.
    """
    for group in range(meta.num_row_groups):
        row_group = meta.row_group(group)
        if row_group.num_columns != meta.num_columns or row_group.num_rows < 0:
            raise ValueError(f"row group {group} has {row_group.num_columns} columns")
        for place in range(row_group.num_columns):
            chunk, column = row_group.column(place), meta.schema.column(place)
            try:
                _check_chunk(raw, chunk, *most_of(column, chunk, row_group.num_rows))
                _check_count(column, chunk, row_group.num_rows)
            except ValueError as error:
                name = chunk.path_in_schema
                raise ValueError(f"column {name} of row group {group}: {error}") from error
    if sum(meta.row_group(i).num_rows for i in range(meta.num_row_groups)) != meta.num_rows:
        raise ValueError("its row groups do not have the rows of the file")


def _check_count(column: Any, chunk: Any, n_rows: int) -> None:
    if column.max_repetition_level == 0 and chunk.num_values != n_rows:
        raise ValueError(f"it has {chunk.num_values} values in {n_rows} rows")


def _check_chunk(raw: Any, chunk: Any, most_values: int, most_bytes: int) -> None:
    if chunk.file_path or chunk.compression not in _CODECS:
        raise ValueError(f"it is compressed by {chunk.compression}, or lies in another file")
    if not 0 <= chunk.num_values <= most_values:
        raise ValueError(f"it claims {chunk.num_values} values; wanted at most {most_values}")
    pages = list(_pages(raw, chunk))
    values = [page for page in pages if page.kind != _DICTIONARY]
    if sum(page.n_values for page in values) != chunk.num_values:
        raise ValueError("its pages have not as many values as it claims")
    if any(page.kind == _DICTIONARY for page in pages[1:]):
        raise ValueError("it has a dictionary behind its values")
    claimed = sum(page.raw_bytes for page in pages)
    if claimed > most_bytes:
        raise ValueError(f"its pages claim {claimed} bytes; wanted at most {most_bytes}")
    has_texts = chunk.physical_type == "BYTE_ARRAY" and len(values) < len(pages)
    if has_texts and chunk.num_values * pages[0].raw_bytes > most_bytes:
        spelled = chunk.num_values * _longest_text(raw, pages[0], chunk.compression)
        if spelled > most_bytes:
            raise ValueError(f"its texts claim {spelled} bytes; wanted at most {most_bytes}")


def _pages(raw: Any, chunk: Any) -> Iterator[Page]:
    # Without rows there is a dictionary at most.
    places = (chunk.dictionary_page_offset or 0, chunk.data_page_offset)
    begin = min((place for place in places if place), default=len(_MAGIC))
    end = begin + chunk.total_compressed_size
    if not len(_MAGIC) <= begin <= end <= len(raw) - 8:
        raise ValueError("it does not lie in the file")
    while begin < end:
        reader = CompactReader(raw, begin, end)
        head = reader.struct()
        page = _page_of(head, reader.at, plain=chunk.compression == "UNCOMPRESSED")
        begin = page.start + page.n_bytes
        if begin > end:
            raise ValueError("a page does not lie in its column")
        yield page


def _page_of(head: dict[int, Any], start: int, *, plain: bool) -> Page:
    kind, raw_bytes, n_bytes = (head.get(i, -1) for i in (1, 2, 3))
    part = head.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, -1))
    if not isinstance(part, dict):
        raise ValueError(f"a page is of kind {kind}")  # noqa: TRY004 - of a document, not an argument
    n_values, encoding = part.get(1, -1), part.get(4 if kind == _DATA_V2 else 2)
    numbers = (n_values, raw_bytes, n_bytes)
    if any(type(n) is not int or not 0 <= n < 2**31 for n in numbers):
        raise ValueError(f"a page claims {numbers} values and bytes")
    if encoding not in _ENCODINGS:
        raise ValueError(f"a page has encoding {encoding}; wanted one of {_ENCODINGS}")
    if plain and raw_bytes != n_bytes:
        raise ValueError("a page that is not compressed has two sizes")
    levels = sum(part.get(i, 0) for i in (5, 6)) if kind == _DATA_V2 else 0
    if not 0 <= levels <= min(n_bytes, raw_bytes):
        raise ValueError("the levels of a page are larger than the page")
    return Page(kind, n_values, start, n_bytes, raw_bytes)


def _longest_text(raw: Any, page: Page, compression: str) -> int:
    """Return the bytes of the longest text of a dictionary."""
    data = bytes(raw[page.start : page.start + page.n_bytes])
    if compression != "UNCOMPRESSED":
        codec = compression.lower()
        data = pa.decompress(data, page.raw_bytes, codec=codec, asbytes=True)
    size, n = int.from_bytes(data[:4], "little"), page.n_values
    if n * (4 + size) == len(data):  # digests, and many ids, are equally long
        sizes = np.frombuffer(data, np.uint8).reshape(n, 4 + size)[:, :4].copy().view("<u4")
        if (sizes == size).all():
            return size
    at, longest = 0, 0
    for _ in range(n):
        if at + 4 > len(data):
            break
        (size,) = _U32.unpack_from(data, at)
        at += 4 + size
        if size > longest:
            longest = size
    if at != len(data):
        raise ValueError("the texts of a dictionary do not add up to it")
    return longest
