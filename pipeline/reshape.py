"""One table into others: trials told apart by columns, and long form into wide form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import RefusedError, quote
from pipeline.sections.source import PivotSpec
from pipeline.trials import NO_TEXT, Bool, Float64, Int64, Table

LIMIT_BYTES = 4 * 2**30
"""What one file may take in wide form: each moment has a place for each column."""
_SHOWN_NAMES = 10


def split_table(table: Table, columns: Sequence[str]) -> list[Table]:
    """Return the trials of one file, told apart by the values of text columns.

    Args:
        table: All rows of the file; those of one trial may lie anywhere in it.
        columns: Text columns of the table.

    Returns:
        One table per distinct combination of values, in the order of first appearance, rows in the
        file's order. Trials are called `<file's trial id>/<value>/<value>`, and `found` holds the
        values. Arrays are views of shared memory.

    Raises:
        RefusedError: `split_key_missing`, or `duplicate_trial_id` where values with a slash in
            them make the ids of two trials equal.
    """
    keys = table.text.select(columns)
    for name in columns:
        if keys[name].null_count():
            row = int(keys[name].is_null().arg_true()[0]) + 1
            message = (
                f"row {row} has no value in {quote(name)}, which tells the trials of the file "
                "apart; fill it in, or drop the row"
            )
            raise RefusedError("split_key_missing", message, column=name)
    groups = _group([keys[name].to_arrow() for name in columns])
    numbers, text = table.numbers, table.text
    if not groups.is_sorted:
        numbers, text = numbers[groups.order], text[groups.order]
    values = keys[groups.firsts].rows()
    trials = [f"{table.file.trial_id}/{'/'.join(key)}" for key in values]
    if len(set(trials)) != len(trials):
        message = "two trials would have one id, because of slashes in their values; rename them"
        raise RefusedError("duplicate_trial_id", message, column=columns[0])
    starts = groups.starts.tolist()
    return [
        Table(
            table.file,
            table.source_xxh3,
            table.names,
            numbers[start:end],
            text.slice(start, end - start),
            trial,
            {**table.found, **dict(zip(columns, key, strict=True))},
            number,
        )
        for number, (trial, key, start, end) in enumerate(
            zip(trials, values, starts[:-1], starts[1:], strict=True), 1
        )
    ]


def pivot_table(table: Table, spec: PivotSpec, wanted: Sequence[str], text_index: bool) -> Table:
    """Return a table in wide form: a row per moment, a column per name.

    Rows of names that nobody wants are dropped before anything else, so that they make no moments
    of their own; a wanted name with a missing value makes its moment, but no value.

    Args:
        table: Long form, one value per row: `spec.columns` is a text column, `spec.values` a
            number, `spec.index` either.
        spec: Which columns say when, what and how much.
        wanted: The names to keep, in order; one that never occurs is missing everywhere.
        text_index: The index is a text column.

    Returns:
        A row per distinct index value, in the order of first appearance. Numbers are the index,
        unless it is text, and `wanted`. Text columns keep the value of the first row of each
        moment; the one with the names is gone.

    Raises:
        RefusedError: `no_wanted_parameter`, `pivot_index_missing`, `pivot_name_missing`,
            `pivot_duplicate` or `too_large`.
    """
    values = table.numbers[:, table.names.index(spec.values)]
    fields = _wanted_fields(table, spec, wanted, values)
    rows = np.flatnonzero(fields >= 0)
    moment_of = _encode(_index_of(table, spec.index, rows, text_index))
    n_moments = int(moment_of.max()) + 1
    if n_moments * len(wanted) * 8 > LIMIT_BYTES:
        message = (
            f"{n_moments} values of {quote(spec.index)} by {len(wanted)} names would take more "
            f"than {LIMIT_BYTES} bytes; resample before, split the file, or name fewer channels"
        )
        raise RefusedError("too_large", message)
    present = ~np.isnan(values[rows])
    cells = moment_of[present] * len(wanted) + fields[rows][present]
    wide = np.full(n_moments * len(wanted), math.nan)
    doubled = _fill(wide, cells, values[rows][present], spec.duplicates)
    firsts = rows[_first_of_each(moment_of)]
    if doubled is not None:
        raise _duplicate(table, spec, firsts[doubled // len(wanted)], wanted[doubled % len(wanted)])
    numbers, names = wide.reshape(n_moments, len(wanted)), tuple(wanted)
    if not text_index:
        index = table.numbers[firsts, table.names.index(spec.index)]
        numbers, names = np.column_stack([index, numbers]), (spec.index, *names)
    text = _take_text(table, [n for n in table.text.columns if n != spec.columns], firsts)
    return replace(table, names=names, numbers=numbers, text=text)


class _Groups(NamedTuple):
    """Rows grouped by equal keys, groups in the order of first appearance.

    Attributes:
        order: Rows, group after group, each in their own order, int64.
        starts: Where each group starts in `order`, and the end of the last, int64.
        firsts: The first row of each group, int64.
        is_sorted: `order` changes nothing.
    """

    order: Int64
    starts: Int64
    firsts: Int64
    is_sorted: bool


def _group(keys: Sequence[pa.Array]) -> _Groups:
    codes = _encode(keys[0])
    for key in keys[1:]:
        other = _encode(key)
        codes = _encode(pa.array(codes * (int(other.max()) + 1) + other))
    is_sorted = bool((codes[1:] >= codes[:-1]).all())
    order = np.arange(len(codes)) if is_sorted else np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    return _Groups(order, starts, order[starts[:-1]], is_sorted)


def _encode(key: pa.Array) -> Int64:
    """Return numbers from 0 on for the distinct values, in the order of first appearance."""
    codes: Int64 = key.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def _first_of_each(codes: Int64) -> Int64:
    """Return where each code occurs first; codes are numbered in that order."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))


def _wanted_fields(table: Table, spec: PivotSpec, wanted: Sequence[str], values: Float64) -> Int64:
    """Return the place of each row's name among `wanted`, -1 where nobody wants it."""
    names = table.text[spec.columns].to_arrow()
    places = pc.index_in(names, value_set=pa.array(wanted, names.type), skip_nulls=True)
    fields: Int64 = places.fill_null(-1).to_numpy().astype(np.int64)
    nameless = np.flatnonzero(_is_null(names) & ~np.isnan(values))
    if len(nameless):
        message = (
            f"row {int(nameless[0]) + 1} has a value and no name in {quote(spec.columns)}; "
            "fill it in, or drop the row"
        )
        raise RefusedError("pivot_name_missing", message, column=spec.columns)
    if (fields < 0).all():
        found = names.drop_null().unique().to_pylist()
        shown = ", ".join(quote(name) for name in found[:_SHOWN_NAMES])
        message = (
            f"none of the {len(wanted)} wanted names is among the {len(found)} in "
            f"{quote(spec.columns)}: {shown}{', ...' if len(found) > _SHOWN_NAMES else ''}; "
            "correct channels, or exclude the file"
        )
        raise RefusedError("no_wanted_parameter", message, column=spec.columns)
    return fields


def _index_of(table: Table, name: str, rows: Int64, text_index: bool) -> pa.Array:
    """Return the index of some rows."""
    if text_index:
        index = table.text[name].to_arrow().take(pa.array(rows))
        missing = _is_null(index)
    else:
        # Zero has two signs, and is one moment.
        numbers = table.numbers[rows, table.names.index(name)] + 0.0
        missing, index = np.isnan(numbers), pa.array(numbers)
    if missing.any():
        row = int(rows[np.flatnonzero(missing)[0]]) + 1
        message = f"row {row} has no {quote(name)}, the index; fill it in, or drop the row"
        raise RefusedError("pivot_index_missing", message, column=name)
    return index


def _take_text(table: Table, columns: Sequence[str], rows: Int64) -> pl.DataFrame:
    # By Arrow, because polars wakes its threads for the few rows of one trial.
    at = pa.array(rows)
    texts = [pl.Series(name, table.text[name].to_arrow().take(at)) for name in columns]
    return pl.DataFrame(texts) if texts else NO_TEXT


def _is_null(values: pa.Array) -> Bool:
    null: Bool = values.is_null().to_numpy(zero_copy_only=False)
    return null


def _fill(wide: Float64, cells: Int64, values: Float64, policy: str) -> int | None:
    """Put values into their cells, or return the first cell that a second value is refused in."""
    order = np.argsort(cells, kind="stable")
    ordered = cells[order]
    is_first = np.diff(ordered, prepend=-1) > 0
    if policy == "refuse" and not is_first.all():
        return int(cells[order[~is_first].min()])
    firsts = np.flatnonzero(is_first)
    if policy == "mean" and len(firsts) < len(cells):
        counts = np.diff(firsts, append=len(cells))
        with np.errstate(over="ignore"):
            means = np.add.reduceat(values[order], firsts) / counts
        if not np.isfinite(means).all():  # the sum of large values overflowed: divide before
            means = np.add.reduceat(values[order] / np.repeat(counts, counts), firsts)
        wide[ordered[firsts]] = means
        return None
    kept = np.append(firsts, len(cells))[1:] - 1 if policy == "last" else firsts
    wide[ordered[kept]] = values[order[kept]]
    return None


def _duplicate(table: Table, spec: PivotSpec, row: int, name: str) -> RefusedError:
    is_text = spec.index in table.text.columns
    moment = (
        quote(table.text[spec.index][int(row)])
        if is_text
        else repr(float(table.numbers[row, table.names.index(spec.index)]))
    )
    message = (
        f"{quote(name)} has several values at {quote(spec.index)} {moment}; drop all but one, or "
        "say source.pivot.duplicates: first, last or mean"
    )
    return RefusedError("pivot_duplicate", message, column=name)
