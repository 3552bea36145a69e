"""Files that hold typed columns: Parquet, Arrow IPC, and NumPy's .npy and .npz."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from polars.exceptions import PanicException

from pipeline.files import Refusal, RefusedError, SourceFile
from pipeline.sources.arrowvalues import numbers_of, plain_column, texts_of
from pipeline.sources.decompress import decompress
from pipeline.sources.layout import DelimitedLayout, positions_of
from pipeline.sources.numpyfiles import npy_columns, npz_columns
from pipeline.sources.rawfile import ReadRefusedError, parse_error, read_stable, refusal_of
from pipeline.trials import NO_TEXT, Table

LIMIT_BYTES = 4 * 2**30
"""What the wanted columns of one file may take in memory: a small file can promise any size."""
_BATCH_ROWS = 65_536
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class ColumnarLayout:
    """How the files of one data set are written.

    Attributes:
        family: What they are.
        names: What the columns are called: of an npy matrix, and of the one array of an npz file;
            empty where the files say it.
        numeric: Columns wanted as float64.
        text: Columns wanted as String.
        nulls: Spellings of a missing value; those that are numbers also stand for their value.
    """

    family: Literal["parquet", "arrow", "npy", "npz"]
    names: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ("", "NA", "NaN", "nan", "null")

    def __post_init__(self) -> None:
        if not self.wanted:
            raise ValueError("no columns are wanted; name some in numeric or text")
        if len(set(self.wanted)) != len(self.wanted):
            raise ValueError(f"a column is wanted twice in numeric and text: {self.wanted}")
        if self.family in ("parquet", "arrow") and self.names:
            raise ValueError(f"names go with npy and npz; {self.family} files have their own")
        needs_names = self.family == "npy" or self.names
        if needs_names and any(self.names.count(name) != 1 for name in self.wanted):
            raise ValueError(f"names must hold each of {self.wanted} once")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the resulting tables, in order."""
        return self.numeric + self.text


def read_columnar(
    root: Path, files: Sequence[SourceFile], layout: ColumnarLayout
) -> tuple[list[Table], list[Refusal]]:
    """Read a batch of files; one bad file never stops the others.

    Refusals name rows, counted from 1, where those of text files name lines.

    Args:
        root: Source root.
        files: The catalog's records.
        layout: How the files are written.

    Returns:
        The tables, in the order of `files`, and the refusals; every file is in exactly one.
    """
    tables: list[Table] = []
    refusals: list[Refusal] = []
    for file in files:
        outcome = _read_one(root, file, layout)
        if isinstance(outcome, Table):
            tables.append(outcome)
        else:
            refusals.append(refusal_of(file, outcome))
    return tables, refusals


def table_of_columns(
    file: SourceFile, columns: pa.Table, layout: ColumnarLayout | DelimitedLayout
) -> Table:
    """Return what a file with these columns would be read as.

    Args:
        file: What to call it.
        columns: One trial, flat columns of any type.
        layout: Which columns are wanted, and what is missing in them.

    Raises:
        RefusedError: As the readers do.
    """
    positions_of(layout.wanted, columns.column_names, advice="correct the name")
    _check_size(columns.num_rows, layout)
    return _table_of(file, "", {name: columns[name] for name in layout.wanted}, layout)


def _read_one(root: Path, file: SourceFile, layout: ColumnarLayout) -> Table | RefusedError:
    try:
        raw = read_stable(root, file)
        xxh3 = xxhash.xxh3_128_hexdigest(raw)
        return _table_of(file, xxh3, _columns_of(decompress(raw), layout), layout)
    except RefusedError as refused:
        return refused
    except MemoryError as error:
        if _asks_too_much(error):
            return parse_error(error)
        raise
    except (Exception, PanicException) as error:  # noqa: BLE001 - one file must not lose its batch
        return parse_error(error)


def _asks_too_much(error: MemoryError) -> bool:
    """Whether a damaged length, and not a lack of memory, made Arrow give up."""
    asked = re.search(r"size (\d+)", str(error)) if isinstance(error, pa.ArrowMemoryError) else None
    return asked is not None and int(asked[1]) > LIMIT_BYTES


def _columns_of(data: bytes, layout: ColumnarLayout) -> Mapping[str, pa.ChunkedArray]:
    if not data:
        raise ReadRefusedError("empty", "holds 0 bytes; write the file again, or exclude it")
    if layout.family == "npy":
        return npy_columns(data, layout.names, layout.wanted)
    if layout.family == "npz":
        return npz_columns(data, layout.names, layout.wanted)
    read = _read_parquet if layout.family == "parquet" else _read_arrow
    table = read(data, layout)
    # Lengths first: a damaged one may promise more rows than memory has.
    _check_size(table.num_rows, layout)
    table = table.select(layout.wanted)
    table.validate(full=True)
    return dict(zip(layout.wanted, table.columns, strict=True))


def _read_parquet(data: bytes, layout: ColumnarLayout) -> pa.Table:
    file = pq.ParquetFile(
        pa.BufferReader(data), page_checksum_verification=True, arrow_extensions_enabled=False
    )
    positions_of(layout.wanted, file.schema_arrow.names, advice="correct the name")
    n_rows = file.metadata.num_rows
    _check_size(n_rows, layout)
    batches: list[pa.RecordBatch] = []
    size_bytes = 0
    # Batch by batch, so that a text repeated by the million is noticed before memory is gone.
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(layout.wanted), use_threads=False):
        size_bytes += batch.nbytes
        if size_bytes > LIMIT_BYTES:
            raise _too_large(f"more than {size_bytes} bytes")
        batches.append(batch)
    table = pa.Table.from_batches(batches)
    if table.num_rows != n_rows:
        raise ValueError(f"{table.num_rows} rows were read, its footer promises {n_rows}")
    return table


def _read_arrow(data: bytes, layout: ColumnarLayout) -> pa.Table:
    source = pa.BufferReader(data)
    is_file = data.startswith(b"ARROW1")
    open_reader = pa.ipc.open_file if is_file else pa.ipc.open_stream
    names = open_reader(source).schema.names
    places = positions_of(layout.wanted, names, advice="correct the name")
    source.seek(0)
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=sorted(places))
    table = open_reader(source, options=options).read_all()
    if not is_file and source.tell() != len(data):
        raise ValueError(f"{len(data) - source.tell()} bytes come after its end")
    if not is_file and not data.endswith(_STREAM_END):
        message = "ends without the mark of its end, so rows may be lost; copy or write it again"
        raise ReadRefusedError("truncated", message)
    return table


def _check_size(n_rows: int, layout: ColumnarLayout | DelimitedLayout) -> None:
    if n_rows <= 0:
        raise RefusedError("no_rows", "holds no rows; record it again, or exclude it")
    if n_rows * len(layout.wanted) * 8 > LIMIT_BYTES:
        raise _too_large(f"{n_rows} rows of {len(layout.wanted)} wanted columns")


def _too_large(what: str) -> ReadRefusedError:
    message = (
        f"holds {what}, the limit is {LIMIT_BYTES} bytes in memory; split the file, or exclude it"
    )
    return ReadRefusedError("too_large", message)


def _table_of(
    file: SourceFile,
    xxh3: str,
    columns: Mapping[str, pa.ChunkedArray],
    layout: ColumnarLayout | DelimitedLayout,
) -> Table:
    plain = {name: plain_column(column) for name, column in columns.items()}
    n_rows = len(plain[layout.wanted[0]])
    _check_size(n_rows, layout)
    numbers = np.empty((n_rows, len(layout.numeric)))
    for at, name in enumerate(layout.numeric):
        numbers[:, at] = numbers_of(plain[name], name, layout.nulls)
    texts = [texts_of(plain[name], name, layout.nulls) for name in layout.text]
    text = pl.DataFrame(texts) if texts else NO_TEXT
    return Table(file, xxh3, layout.numeric, numbers, text)
