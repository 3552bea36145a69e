"""NumPy's own files, `.npy` and `.npz`: headers are checked against the bytes before anything."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.files import RefusedError, count_of, quote
from pipeline.sources import decompress
from pipeline.sources.layout import positions_of
from pipeline.sources.rawfile import ReadRefusedError, parse_error

_Array = npt.NDArray[Any]

_LARGEST_ITEM = 8
_KINDS = "biufMmUS"
_COARSE_UNITS = "YMWDhm"
"""Units of dates that Arrow has no type for, or, as days, not for durations."""
_FINE_UNITS = ("s", "ms", "us", "ns")


def npy_columns(
    data: bytes, names: Sequence[str], wanted: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Return the wanted columns of one array.

    Args:
        data: A `.npy` file.
        names: What its columns are called, in order; a 1-D array is one column.
        wanted: The columns to return.

    Raises:
        RefusedError: `field_count`, `bad_shape`, `unsupported_type` or `parse_error`.
    """
    return _matrix_columns(_parse_npy(data, "the array"), names, wanted)


def npz_columns(
    data: bytes, names: Sequence[str], wanted: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Return the wanted columns of an archive of arrays.

    With `names` the archive must hold one array, whose columns they are. Without, each array is
    called as the archive says: a 1-D array `x` is the column `x`, a 2-D array `q` holds the columns
    `q_0`, `q_1` and so on (and also `q` where it has one), and a single value stands for every row.

    Args:
        data: A `.npz` file.
        names: What the columns of its one array are called; empty: it names them itself.
        wanted: The columns to return.

    Raises:
        RefusedError: As `npy_columns`, and `missing_column`, `duplicate_column`,
            `unequal_lengths` or `too_large`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        found = [member.filename.removesuffix(".npy") for member in members]
        if names:
            if len(found) != 1:
                message = (
                    f"holds {count_of(len(found), 'array')}, source.columns names the columns of "
                    "one; drop it and use the arrays' own names, or write one array"
                )
                raise RefusedError("field_count", message)
            _check_sizes(members)
            return _matrix_columns(_read_member(archive, members[0]), names, wanted)
        owners = list(dict.fromkeys(_owner_of(name, found) for name in wanted))
        needed = [members[found.index(owner)] for owner in owners]
        _check_sizes(needed)
        arrays = [_read_member(archive, member) for member in needed]
    loaded = dict(zip(owners, arrays, strict=True))
    columns = {name: _pick(name, loaded, found) for name in wanted}
    return {name: _as_column(column, name) for name, column in _equally_long(columns).items()}


def _owner_of(name: str, found: Sequence[str]) -> str:
    """Return the array that holds a column: its namesake, or `q` for `q_3`."""
    parent = re.fullmatch(r"(.+)_\d+", name)
    if name not in found and parent is not None and found.count(parent[1]) == 1:
        return parent[1]
    positions_of([name], found, advice="correct the name; column 3 of a 2-D array q is q_3")
    return name


def _pick(name: str, loaded: Mapping[str, _Array], found: Sequence[str]) -> _Array:
    owner = _owner_of(name, found)
    array = loaded[owner]
    if owner == name and array.ndim < 2:
        return array
    if owner == name and array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    n_columns = array.shape[1] if array.ndim == 2 else 0
    at = int(name.rpartition("_")[2]) if owner != name else n_columns
    if at < n_columns:
        return array[:, at]
    message = (
        f"no column {quote(name)}: array {quote(owner)} has the shape {array.shape}; "
        f"name its columns {owner}_0 and so on, or write them as arrays of one dimension"
    )
    raise RefusedError("missing_column", message, column=name)


def _equally_long(columns: dict[str, _Array]) -> dict[str, _Array]:
    """Return columns with single values repeated, or refuse unequal lengths."""
    first = next((name for name, column in columns.items() if column.ndim), None)
    if first is None:
        message = "holds single values, columns were wanted; name an array, or exclude the file"
        raise RefusedError("no_rows", message)
    n_rows = len(columns[first])
    for name, column in columns.items():
        if column.ndim and len(column) != n_rows:
            message = (
                f"column {quote(name)} has {count_of(len(column), 'row')}, {quote(first)} has "
                f"{n_rows}; record them with one clock, or name columns of one length"
            )
            raise RefusedError("unequal_lengths", message, column=name)
    return {name: c if c.ndim else np.broadcast_to(c, n_rows) for name, c in columns.items()}


def _check_sizes(members: Sequence[zipfile.ZipInfo]) -> None:
    size_bytes = sum(member.file_size for member in members)
    if size_bytes > decompress.LIMIT_BYTES:
        message = (
            f"its arrays decompress to {size_bytes} bytes, more than {decompress.LIMIT_BYTES}, the "
            "limit; split the file, or exclude it"
        )
        raise ReadRefusedError("too_large", message)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Array:
    return _parse_npy(archive.read(member), f"array {quote(member.filename)}")


def _matrix_columns(
    array: _Array, names: Sequence[str], wanted: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    matrix = array[:, None] if array.ndim == 1 else array
    if matrix.ndim != 2:
        message = (
            f"holds an array of shape {array.shape}, [rows, columns] was wanted; reshape it, one "
            "row per moment, one file per trial"
        )
        raise RefusedError("bad_shape", message)
    if matrix.shape[1] != len(names):
        message = (
            f"holds {count_of(matrix.shape[1], 'column')}, source.columns names {len(names)}; "
            "correct source.columns, or write the array as [rows, columns]"
        )
        raise RefusedError("field_count", message)
    places = positions_of(wanted, names, advice="correct the name")
    return {name: _as_column(matrix[:, at], name) for name, at in zip(wanted, places, strict=True)}


def _as_column(values: _Array, name: str) -> pa.ChunkedArray:
    kind = values.dtype.kind
    if kind in "Mm":
        unit, step = np.datetime_data(values.dtype)
        coarse = unit in _COARSE_UNITS and not (kind == "m" and unit in "YM")
        if step != 1 or not (coarse or unit in _FINE_UNITS):
            message = (
                f"column {quote(name)} has the type {values.dtype}; write times in s, ms, us or ns"
            )
            raise RefusedError("unsupported_type", message, column=name)
        values = values.astype(f"{kind}8[s]" if coarse else values.dtype)
    return pa.chunked_array([pa.array(np.ascontiguousarray(values))])


def _parse_npy(data: bytes, what: str) -> _Array:
    """Return the array that bytes hold, after its header promised just what is there."""
    stream = io.BytesIO(data)
    shape, is_fortran, dtype = _read_header(stream)
    if dtype.kind not in _KINDS or (dtype.kind in "biuf" and dtype.itemsize > _LARGEST_ITEM):
        why = " (Python objects may run code when loaded)" if dtype.hasobject else ""
        message = (
            f"{what} has the type {str(dtype)[:60]}{why}; write numbers of up to 64 bits or text"
        )
        raise RefusedError("unsupported_type", message)
    n_held = len(data) - stream.tell()
    n_promised = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or not dtype.itemsize or n_promised != n_held:
        message = (
            f"{what} has the shape {str(shape)[:60]} of {str(dtype)[:60]}, {n_promised} bytes, but "
            f"{n_held} bytes are there; copy the file again, or write it again"
        )
        raise RefusedError("parse_error", message)
    if not n_held:
        raise RefusedError("no_rows", f"{what} is empty; record it again, or exclude the file")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if is_fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except MemoryError as error:  # what Python's own parser says of too deep a nesting
        raise parse_error(error) from error
    message = f"has the npy version {version}, which is for records; write an array of numbers"
    raise RefusedError("unsupported_type", message)
