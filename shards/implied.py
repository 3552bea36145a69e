"""Statistics of trials without those that follow from others, bit for bit (SPEC section 9).

A channel that a trial measures once or never has one number to tell, not five, and what a trial is
normalized by mostly is its own mean and spread. A part leaves such entries null; whoever reads it
here gets the columns as they went in.

Such a part has digests as bytes, where others have text. That also keeps those away who would take
a null for a number: readers that know no such parts refuse one for the type of its digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Moments = Mapping[str, Float64]

MOMENTS = ("count", "shift", "sum", "sum_sq", "min", "max")
AFFINE = ("offset", "scale")
DIGESTS = ("digest", "source_xxh3")
RAW_DIGEST = pa.binary(16)
CHANNELS = b"channels"
"""Key of a part's metadata: entries that a null list of `offset` or `scale` stands for."""
_NEEDS: dict[str, tuple[str, ...]] = {
    "min": (),
    "max": ("min",),
    **dict.fromkeys(("shift", "sum_sq"), ("min", "max")),
    **dict.fromkeys(AFFINE, MOMENTS),
}
"""What may be left out -> what it follows from."""
_SMALLEST_SCALE = 1e-30
_DIGEST_BYTES = RAW_DIGEST.byte_width
_FEW_ROWS = 3
"""Of fewer trials nothing is left out: looking takes longer than it saves."""
_BLOCK_ROWS = 4096
"""Trials that are looked at together: it bounds what is needed beside the table."""


def leave_out(rows: pa.Table) -> tuple[pa.Table, bool]:
    """Return cold rows without what follows from the rest, and whether anything did.

    Args:
        rows: If they have all moments, as lists without nulls and of one length per column, and
            digests, those are looked at; rows without are returned as they are.
    """
    names = [name for name in (*MOMENTS, *AFFINE) if name in rows.column_names]
    if rows.num_rows < _FEW_ROWS or not {*MOMENTS} <= {*names}:
        return rows, False
    raw = {name: _as_bytes(rows[name]) for name in DIGESTS if name in rows.column_names}
    if not raw or any(column is None for column in raw.values()):
        return rows, False
    if not all(_is_full(rows[name]) for name in names) or not _fit_together(rows, names):
        return rows, False
    blocks = range(0, rows.num_rows, _BLOCK_ROWS)
    pieces = [_leave_out(rows.slice(start, _BLOCK_ROWS), names) for start in blocks]
    if not any(is_less for _, is_less in pieces):
        return rows, False
    shorter = pa.concat_tables([piece for piece, _ in pieces])
    for name, column in raw.items():
        shorter = shorter.set_column(shorter.schema.get_field_index(name), name, column)
    if "offset" in names:
        n_channels = len(rows["offset"][0])
        shorter = shorter.replace_schema_metadata({CHANNELS: str(n_channels)})
    return shorter, True


def with_sources(columns: Iterable[str] | None) -> list[str] | None:
    """Return the columns that must be read so that `fill_in` can return these; None for all."""
    if columns is None:
        return None
    wanted = list(columns)
    return list(dict.fromkeys([*wanted, *(n for name in wanted for n in _NEEDS.get(name, ()))]))


def fill_in(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Undo `leave_out`.

    Args:
        table: Rows of a part, with the columns of `with_sources` as far as it has them.
        columns: Those to return; None for all.

    Raises:
        ValueError: If its statistics are not one list per trial, all of one length.
    """
    wanted = [name for name in table.column_names if columns is None or name in columns]
    for name in {*DIGESTS} & {*wanted}:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, _as_text(table[name]))
    asked = [name for name in wanted if name in _NEEDS]
    if not asked:
        return table.select(wanted)
    sources = {name for one in asked for name in (one, *_NEEDS[one])} - {*AFFINE}
    if lost := sorted(sources - {*table.column_names}):
        raise ValueError(f"it has no {lost}, which {asked} may follow from")
    known = _fill_moments(table, sources)
    for name in asked:
        filled = known[name] if name in known else _fill_affine(table, name, known)
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, _as_lists(filled, field.type))
    return table.select(wanted).replace_schema_metadata(None)


# What follows from what, as SPEC section 9 says it


def _implied_shift(low: Float64, high: Float64) -> Float64:
    """Return the middle, which is the mean of two values; 0 where there is none."""
    return np.where(np.isnan(low), 0.0, low + (high - low) / 2)


def _implied_squares(low: Float64, high: Float64) -> Float64:
    """Return the sum of squares of two values about their mean; 0 where there is none."""
    reach = high - low
    return np.where(np.isnan(low), 0.0, reach * reach / 2)


def _implied_affine(moments: Moments, n_channels: int) -> dict[str, Float64]:
    """Return mean and population sd, 0 and 1 where they are of no use: `[trials, n_channels]`."""
    count, shift, total, squares = (
        moments[name][:, :n_channels] for name in ("count", "shift", "sum", "sum_sq")
    )
    n = np.maximum(count, 1.0)
    mean = shift + total / n
    sd = np.sqrt(np.maximum((squares - total * total / n) / n, 0.0))
    usable = np.isfinite(sd) & (sd > _SMALLEST_SCALE)
    return {"offset": np.where(np.isfinite(mean), mean, 0.0), "scale": np.where(usable, sd, 1.0)}


def _leave_out(rows: pa.Table, names: Sequence[str]) -> tuple[pa.Table, bool]:
    known = {name: _matrix(rows[name]) for name in names}
    low, high = known["min"], known["max"]
    with np.errstate(all="ignore"):
        follows = {
            "min": _are_same(low, np.full_like(low, np.nan)),
            "max": _are_same(high, low),
            "shift": _are_same(known["shift"], _implied_shift(low, high)),
            "sum_sq": _are_same(known["sum_sq"], _implied_squares(low, high)),
        }
        columns = {
            name: _as_lists(known[name], rows.schema.field(name).type, nulls=nulls)
            for name, nulls in follows.items()
        }
        if "offset" in names:
            implied = _implied_affine(known, known["offset"].shape[1])
            same = [_are_same(known[name], implied[name]) for name in AFFINE]
            whole: Bool = np.all(same[0] & same[1], axis=1)
            follows["offset"] = whole
            columns |= {
                name: _as_lists(known[name], rows.schema.field(name).type, lost=whole)
                for name in AFFINE
            }
    for name, column in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), column)
    return rows, any(bool(nulls.any()) for nulls in follows.values())


def _fill_moments(table: pa.Table, names: Iterable[str]) -> dict[str, Float64]:
    """Return moments `[trials, columns]`, with what follows in place of nulls."""
    filled = {name: _matrix(table[name]) for name in names}
    if len({values.shape for values in filled.values()}) > 1:
        raise ValueError("its moments differ in length")
    nulls = {name: _nulls(table[name], filled[name]) for name in filled}
    with np.errstate(all="ignore"):
        if "max" in filled:
            filled["max"] = np.where(nulls["max"], filled["min"], filled["max"])
        for name, rule in (("shift", _implied_shift), ("sum_sq", _implied_squares)):
            if name in filled:
                implied = rule(filled["min"], filled["max"])
                filled[name] = np.where(nulls[name], implied, filled[name])
    return filled


def _fill_affine(table: pa.Table, name: str, moments: Moments) -> Float64:
    """Return `offset` or `scale`, `[trials, channels]`."""
    lists = table[name].combine_chunks()
    if not lists.null_count:
        return _matrix(table[name])
    n_channels = int((table.schema.metadata or {}).get(CHANNELS, b"-1"))
    if not 0 < n_channels <= moments["count"].shape[1]:
        raise ValueError(f"it does not say how many channels have {name}")
    there = _to_numpy(lists.is_valid())
    with np.errstate(all="ignore"):
        filled = _implied_affine(moments, n_channels)[name]
    if there.any():
        filled[there] = _matrix(pa.chunked_array([lists.filter(pa.array(there))]))
    return filled


# Columns of Arrow as others


def _as_bytes(column: pa.ChunkedArray) -> pa.Array | None:
    """Return digests as bytes; None if some text is no digest."""
    texts = column.to_pylist()
    joined = "".join(text or "" for text in texts)
    try:
        raw = bytes.fromhex(joined)
    except ValueError:
        return None
    if raw.hex() != joined or any(len(text or "") != 2 * _DIGEST_BYTES for text in texts):
        return None
    return pa.Array.from_buffers(RAW_DIGEST, len(texts), [None, pa.py_buffer(raw)])


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    """Undo `_as_bytes`."""
    if column.type != RAW_DIGEST or column.null_count:
        raise ValueError(f"digests are of type {column.type}, {column.null_count} of them null")
    digests, n_bytes = column.combine_chunks(), _DIGEST_BYTES
    if isinstance(digests, pa.ChunkedArray):  # of no rows
        return pa.array([], pa.utf8())
    raw = memoryview(digests.buffers()[1] or b"").cast("B")[digests.offset * n_bytes :]
    text = raw[: len(digests) * n_bytes].hex().encode()
    ends = np.arange(len(digests) + 1, dtype=np.int32) * np.int32(2 * n_bytes)
    return pa.Array.from_buffers(
        pa.utf8(), len(digests), [None, pa.py_buffer(ends), pa.py_buffer(text)]
    )


def _are_same(some: Float64, others: Float64) -> Bool:
    """Return where numbers have the same bits: -0 is not 0, and NaN is NaN."""
    same: Bool = some.view(np.int64) == others.view(np.int64)
    return same


def _is_full(column: pa.ChunkedArray) -> bool:
    """Return whether a column has lists of float64 without nulls, all of one length."""
    if not pa.types.is_list(column.type) or column.type.value_type != pa.float64():
        return False
    lists = column.combine_chunks()
    widths = _to_numpy(lists.value_lengths()) if lists.null_count == 0 else np.arange(2)
    return bool((widths == widths[:1]).all()) and lists.flatten().null_count == 0


def _fit_together(rows: pa.Table, names: Sequence[str]) -> bool:
    """Return whether moments are of the same columns, and constants of the first of them."""
    moments, affine = (
        [len(rows[name][0]) for name in some if name in names] for some in (MOMENTS, AFFINE)
    )
    return len({*moments}) == 1 and (
        not affine or (affine == [affine[0]] * 2 and 0 < affine[0] <= moments[0])
    )


def _matrix(column: pa.ChunkedArray) -> Float64:
    """Return lists as `[rows, width]`, NaN for null.

    Raises:
        ValueError: If they are not float64, all of one length.
    """
    lists = column.combine_chunks()
    if not pa.types.is_list(lists.type) or lists.type.value_type != pa.float64():
        raise ValueError(f"statistics are of type {lists.type}")
    widths = _to_numpy(lists.value_lengths().fill_null(-1))
    if not len(lists) or widths[0] < 0 or (widths != widths[0]).any():
        raise ValueError("statistics are not one list of equal length per trial")
    matrix: Float64 = _to_numpy(lists.flatten()).reshape(len(lists), int(widths[0]))
    return matrix


def _nulls(column: pa.ChunkedArray, values: Float64) -> Bool:
    """Return which entries of lists are null, in the shape of their values."""
    nulls: Bool = _to_numpy(column.combine_chunks().flatten().is_null())
    return nulls.reshape(values.shape)


def _as_lists(
    values: Float64, kind: pa.DataType, *, nulls: Bool | None = None, lost: Bool | None = None
) -> pa.ListArray:
    """Return a matrix as lists: entries null where `nulls`, lists null where `lost` says so."""
    kept = values if lost is None else values[~lost]
    widths = np.full(len(values), values.shape[1], np.int64)
    if lost is not None:
        widths[lost] = 0
    ends = pa.array(np.append(0, np.cumsum(widths)).astype(np.int32), mask=_ends_lost(lost))
    mask = None if nulls is None else nulls.reshape(-1)
    flat = pa.array(kept.reshape(-1), pa.float64(), mask=mask)
    return pa.ListArray.from_arrays(ends, flat, type=kind)


def _ends_lost(lost: Bool | None) -> Bool | None:
    """Return which offsets say that a list is null; the last is of no list."""
    return None if lost is None else np.append(lost, False)


def _to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers
