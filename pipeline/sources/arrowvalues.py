"""One column of any flat Arrow type as float64 numbers, or as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import RefusedError, quote
from pipeline.trials import Float64

_EXACT = 2**53
"""Below it float64 holds every integer."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_SECONDS = 86_400
_TYPE_LIMIT = 60


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with dictionaries decoded and extension types taken off."""
    if isinstance(column.type, pa.BaseExtensionType):
        storage = column.type.storage_type
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], storage)
    if pa.types.is_dictionary(column.type):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.value_type)
    return column


def numbers_of(column: pa.ChunkedArray, name: str, nulls: Sequence[str]) -> Float64:
    """Return a column as numbers.

    Integers, floats, booleans and decimals become the nearest float64; dates and times become
    seconds since 1970-01-01 UTC, where a time without a zone is taken as UTC; times of day become
    seconds since midnight, durations seconds; text is parsed as in a text file.

    Args:
        column: Flat values, after `plain_column`.
        name: What messages call it.
        nulls: Spellings of a missing value; those that are numbers also stand for their value.

    Returns:
        `[rows]` float64; null, NaN and `nulls` are the positive quiet NaN.

    Raises:
        RefusedError: `infinite`, `inexact_integer`, `not_a_number` or `unsupported_type`.
    """
    done: list[Float64] = []
    row = 1
    for chunk in column.chunks:
        values = _convert(chunk, _Place(name, row, nulls))
        values[np.isnan(values)] = math.nan  # one NaN of all, as digests see bits
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise bad_value("infinite", "is infinite as float64", row + int(infinite[0]), name)
        done.append(values)
        row += len(values)
    return np.concatenate(done) if done else np.empty(0)


def texts_of(column: pa.ChunkedArray, name: str, nulls: Sequence[str]) -> pl.Series:
    """Return a column as text, blanks and tabs around each value aside, as in a text file.

    Integral numbers have no point ("3"), others their shortest spelling; dates and times are
    ISO 8601, with a Z where they have a zone.

    Args:
        column: Flat values, after `plain_column`.
        name: What messages call it.
        nulls: Spellings of a missing value.

    Returns:
        String, null where missing.

    Raises:
        RefusedError: `encoding` or `unsupported_type`.
    """
    kind, is_time = column.type, pa.types.is_timestamp(column.type)
    if not _has_text(kind):
        raise _unsupported(kind, name, "text")
    if is_time and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))
    try:
        text = column.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        message = f"column {quote(name)} holds text that is not UTF-8; write it again as UTF-8"
        raise RefusedError("encoding", message, column=name) from error
    series = pl.Series(name, pl.from_arrow(text), pl.String).str.strip_chars(" \t")
    if is_time:
        series = series.str.replace(" ", "T", literal=True)
    if pa.types.is_floating(kind):
        nulls = [*nulls, "nan"]
    missing = series.is_in(list(nulls))
    return series.to_frame().select(pl.when(~missing).then(pl.col(name))).to_series()


def bad_value(code: str, said: str, row: int, name: str, text: str = "") -> RefusedError:
    """Return the refusal of one value."""
    shown = f": {quote(text)}" if text else ""
    message = f"column {quote(name)}, row {row}{shown} {said}; correct it, or write it as missing"
    return RefusedError(code, message, line=row, column=name)


class _Place(NamedTuple):
    """Where a chunk is: its column, the row it starts at, from 1, and what is missing there."""

    name: str
    row: int
    nulls: Sequence[str]


def _convert(chunk: pa.Array, place: _Place) -> Float64:
    kind, types = chunk.type, pa.types
    if types.is_floating(kind):
        return _from_floats(chunk, place.nulls)
    if types.is_integer(kind):
        return _from_integers(chunk, place)
    if types.is_boolean(kind):
        return _with_missing(chunk.cast(pa.uint8()))
    if types.is_null(kind):
        return np.full(len(chunk), math.nan)
    if types.is_decimal(kind):
        return _from_decimals(chunk, place)
    if _is_string(kind):
        return _from_strings(chunk, place)
    if _is_time(kind):
        return _from_times(chunk)
    raise _unsupported(kind, place.name, "numbers")


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (types.is_string, types.is_large_string, types.is_string_view)
    bare = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(check(kind) for check in (*checks, *bare))


def _is_time(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (types.is_timestamp, types.is_date, types.is_time, types.is_duration)
    return any(check(kind) for check in checks)


def _has_text(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (types.is_primitive, types.is_boolean, types.is_null, types.is_decimal, _is_string)
    return any(check(kind) for check in checks) and not types.is_duration(kind)


def _from_floats(chunk: pa.Array, nulls: Sequence[str]) -> Float64:
    values: Float64 = chunk.to_numpy(zero_copy_only=False).astype(np.float64)
    values[_equals_any(values, nulls)] = math.nan
    return values


def _from_integers(chunk: pa.Array, place: _Place) -> Float64:
    integers = chunk.fill_null(0).to_numpy(zero_copy_only=False)
    missing = _absent(chunk) | _equals_any(integers, place.nulls)
    _check_exact(np.where(missing, integers.dtype.type(0), integers), place)
    values: Float64 = integers.astype(np.float64)
    values[missing] = math.nan
    return values


def _from_decimals(chunk: pa.Array, place: _Place) -> Float64:
    # Through text: Arrow's own cast multiplies by a power of ten and misses the nearest float64.
    values = _from_strings(chunk.cast(pa.large_string()), place)
    values[_equals_any(values, place.nulls)] = math.nan
    if chunk.type.scale <= 0:
        for at in np.flatnonzero(np.abs(values) >= _EXACT).tolist():
            if int(values[at]) != chunk[at].as_py():
                raise _inexact(str(chunk[at]), place.row + at, place.name)
    return values


def _from_strings(chunk: pa.Array, place: _Place) -> Float64:
    text = texts_of(pa.chunked_array([chunk]), place.name, place.nulls)
    given = text.to_frame().select(pl.when(pl.first() != "").then(pl.first())).to_series()
    parsed = given.cast(pl.Float64, strict=False)
    bad = (parsed.is_null() & given.is_not_null()).arg_true()
    if len(bad):
        at = int(bad[0])
        raise bad_value("not_a_number", "is no number", place.row + at, place.name, given[at])
    return parsed.fill_null(math.nan).to_numpy().copy()


def _from_times(chunk: pa.Array) -> Float64:
    kind, types = chunk.type, pa.types
    if types.is_date32(kind):
        return _with_missing(chunk.cast(pa.int32())) * _DAY_SECONDS
    whole = chunk.cast(pa.int32()).cast(pa.int64()) if types.is_time32(kind) else None
    ticks = (chunk.cast(pa.int64()) if whole is None else whole).fill_null(0)
    per_second = _PER_SECOND["ms" if types.is_date64(kind) else kind.unit]
    whole_ticks = ticks.to_numpy(zero_copy_only=False)
    # Nanoseconds since 1970 have more digits than float64: there, whole seconds go first.
    rest = np.fmod(whole_ticks, per_second)
    parted = (whole_ticks - rest) // per_second + rest / per_second
    values: Float64 = np.where(
        (whole_ticks < _EXACT) & (whole_ticks > -_EXACT), whole_ticks / per_second, parted
    )
    values[_absent(chunk)] = math.nan
    return values


def _with_missing(chunk: pa.Array) -> Float64:
    values: Float64 = chunk.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    values[_absent(chunk)] = math.nan
    return values


def _absent(chunk: pa.Array) -> npt.NDArray[np.bool_]:
    if not chunk.null_count:
        return np.zeros(len(chunk), np.bool_)
    absent: npt.NDArray[np.bool_] = pc.is_null(chunk).to_numpy(zero_copy_only=False)
    return absent


def _equals_any(values: npt.NDArray[Any], nulls: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return where a value is a spelled missing one, such as -999."""
    found = np.zeros(len(values), np.bool_)
    for word in nulls:
        for parse in (int, float):
            try:
                found |= values == parse(word)
                break
            except ValueError:
                continue
    return found


def _check_exact(integers: npt.NDArray[Any], place: _Place) -> None:
    """Refuse integers that float64 would round."""
    if integers.dtype.itemsize < 8:
        return
    large = np.flatnonzero((integers > _EXACT) | (integers < -_EXACT))
    for at in large.tolist():
        if int(float(integers[at])) != int(integers[at]):
            raise _inexact(str(integers[at]), place.row + at, place.name)


def _inexact(text: str, row: int, name: str) -> RefusedError:
    message = (
        f"column {quote(name)}, row {row}: {quote(text)} is no float64, the nearest differ; "
        "if it is an id, use it as an attribute; if it is a time, subtract its beginning"
    )
    return RefusedError("inexact_integer", message, line=row, column=name)


def _unsupported(kind: pa.DataType, name: str, wanted: str) -> RefusedError:
    message = (
        f"column {quote(name)} has the type {str(kind)[:_TYPE_LIMIT]}, {wanted} were wanted; "
        "write it flat, as numbers or text"
    )
    return RefusedError("unsupported_type", message, column=name)
