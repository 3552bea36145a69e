"""One file looked at field by field, to read what quotes protect, or to say what is wrong."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import polars as pl
from polars.exceptions import PanicException

from pipeline.files import RefusedError, quote
from pipeline.sources.joined import parse_joined, settle_numbers
from pipeline.sources.lines import DelimitedLayout, Lines, field_count_error
from pipeline.sources.rawfile import parse_error


class _Strings(NamedTuple):
    """The wanted columns of one file as text, and the line each row starts at."""

    frame: pl.DataFrame
    lines: Sequence[int]


def blame(part: Lines, layout: DelimitedLayout, error: BaseException | None) -> RefusedError:
    """Return why this file, which the fast path cannot take, is refused."""
    try:
        _numbers(_plain_strings(part, layout), layout)
    except RefusedError as refused:
        return refused
    except (Exception, PanicException) as second:  # noqa: BLE001 - the first error says it as well
        return parse_error(error or second)
    return parse_error(error or ValueError("an infinite value was not found again"))


def _plain_strings(part: Lines, layout: DelimitedLayout) -> _Strings:
    as_text = replace(layout, numeric=(), text=layout.wanted, nulls=())
    return _Strings(
        parse_joined([part], as_text), range(part.first_line, part.first_line + part.n_rows)
    )


def _quoted_strings(part: Lines, layout: DelimitedLayout) -> _Strings:
    """Return the fields of a file whose quotes matter, refusing what has two readings."""
    text = part.body.decode()
    ambiguous = r"(?m)\t[ \t]*\"" + (r"|^[ \t]+\r?$" if part.columns.n_fields == 1 else "")
    if layout.delimiter is None or (layout.delimiter != "\t" and re.search(ambiguous, text)):
        message = "blanks or tabs beside or inside quotes leave the fields in doubt; drop them"
        raise RefusedError("parse_error", message)
    records, lines = _quoted_records(text, part, layout)
    columns = {
        name: pl.Series(name, [record[at] for record in records], pl.String)
        for name, at in zip(layout.wanted, part.columns.positions, strict=True)
    }
    return _Strings(pl.DataFrame(columns), lines)


def _quoted_records(
    text: str, part: Lines, layout: DelimitedLayout
) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=layout.mark,
        skipinitialspace=layout.mark != " ",
        strict=True,
    )
    records: list[list[str]] = []
    lines: list[int] = []
    try:
        line = part.first_line
        for record in reader:
            records.append(record)
            lines.append(line)
            line = part.first_line + reader.line_num
    except csv.Error as error:
        message = (
            f"the record at line {line} has stray quotes ({error}); double quotes inside quotes"
        )
        raise RefusedError("parse_error", message, line=line) from error
    while not records[-1]:
        records.pop()
    for record, line in zip(records, lines, strict=False):
        if len(record) != part.columns.n_fields:
            raise field_count_error(len(record), part.columns.n_fields, line)
    return records, lines


def _numbers(strings: _Strings, layout: DelimitedLayout) -> pl.DataFrame:
    """Return the parsed frame of one file, or refuse it with the first value that is no number."""
    stripped = pl.all().str.strip_chars(" \t")
    text = strings.frame.select(pl.when(~stripped.is_in(layout.nulls)).then(stripped))
    numeric = pl.col(layout.numeric)
    given = text.with_columns(pl.when(numeric != "").then(numeric))
    parsed = given.with_columns(numeric.cast(pl.Float64, strict=False))
    faults = []
    for order, name in enumerate(layout.numeric):
        bad = parsed[name].is_infinite().fill_null(given[name].is_not_null())
        if bad.any():
            row = int(bad.arg_true()[0])
            faults.append((row, order, name))
    if not faults:
        return settle_numbers(parsed, layout)[0]
    row, _, name = min(faults)
    raise _bad_value(given[name][row], parsed[name][row], strings.lines[row], name)


def _bad_value(text: str, value: float | None, line: int, column: str) -> RefusedError:
    where = f"column {quote(column)}, line {line}: {quote(text)}"
    if value is None:
        message = f"{where} is no number; correct it, or add it to source.nulls if it means missing"
        return RefusedError("not_a_number", message, line=line, column=column)
    message = f"{where} is infinite as float64; correct it, or write it as missing"
    return RefusedError("infinite", message, line=line, column=column)


def read_quoted(part: Lines, layout: DelimitedLayout) -> pl.DataFrame:
    """Return the parsed frame of a file whose quotes matter.

    Raises:
        RefusedError: `parse_error`, `field_count`, `not_a_number` or `infinite`.
    """
    return _numbers(_quoted_strings(part, layout), layout)
