"""Delimited text: many small files are joined in memory and parsed by one call."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import polars as pl
import xxhash
from polars.exceptions import PanicException

from pipeline.loading import is_worth_loading
from pipeline.sources.compiled import parse_numbers
from pipeline.sources.lines import (
    DelimitedLayout,
    Lines,
    account_lines,
    field_count_error,
    read_lines,
)
from pipeline.sources.plainfiles import parse_plain_files
from pipeline.sources.rawfile import ReadRefusedError, read_stable
from pipeline.trials import NO_TEXT, Float64, Refusal, RefusedError, SourceFile, Table, quote

__all__ = ["DelimitedLayout", "read_delimited"]

_POLARS_MESSAGE_LIMIT = 80

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class _Rows(NamedTuple):
    """One file's numbers as one matrix, and its text columns, if any are wanted."""

    numbers: Float64
    text: pl.DataFrame


_Parsed = _Rows | RefusedError


class _Strings(NamedTuple):
    """The wanted columns of one file as text, and the line each row starts at."""

    frame: pl.DataFrame
    lines: Sequence[int]


def read_delimited(
    root: Path, files: Sequence[SourceFile], layout: DelimitedLayout
) -> tuple[list[Table], list[Refusal]]:
    """Read and parse a batch of files; one bad file never stops the others.

    Args:
        root: Source root.
        files: The catalog's records; 8 to 16 MB of them make a good batch.
        layout: How the files are written.

    Returns:
        The tables, in the order of `files`, and the refusals; every file is in exactly one.
        The frames hold `layout.wanted` and are slices of shared memory.
    """
    outcomes, digests = _read_files(root, files, layout)
    groups: dict[object, list[int]] = {}
    for i, lines in enumerate(outcomes):
        if isinstance(lines, Lines):
            groups.setdefault(i if lines.quoted else lines.columns, []).append(i)
    for members in groups.values():
        parts = [o for o in (outcomes[i] for i in members) if isinstance(o, Lines)]
        for i, parsed in zip(members, _parse_files(parts, layout), strict=True):
            outcomes[i] = parsed
    tables: list[Table] = []
    refusals: list[Refusal] = []
    for file, digest, outcome in zip(files, digests, outcomes, strict=True):
        if isinstance(outcome, _Rows):
            tables.append(Table(file, digest, layout.numeric, outcome.numbers, outcome.text))
        else:
            assert isinstance(outcome, RefusedError)
            refusals.append(_refusal(file, outcome))
    return tables, refusals


def _read_files(
    root: Path, files: Sequence[SourceFile], layout: DelimitedLayout
) -> tuple[list[Lines | _Parsed], list[str]]:
    """Return lines to be parsed, the numbers of files that need no second look, or refusals."""
    outcomes: list[Lines | _Parsed]
    if not is_worth_loading(0):  # bytes are counted where lines are parsed
        outcomes = [_guard(read_lines, root, file, layout) for file in files]
        return outcomes, [o.xxh3 if isinstance(o, Lines) else "" for o in outcomes]
    folder = str(root)
    raws = [_guard(read_stable, folder, file) for file in files]
    digests = [xxhash.xxh3_128_hexdigest(r) if isinstance(r, bytes) else "" for r in raws]
    plain = _parse_plain([r if isinstance(r, bytes) else None for r in raws], layout)
    outcomes = []
    for raw, digest, numbers in zip(raws, digests, plain, strict=True):
        if isinstance(raw, RefusedError):
            outcomes.append(raw)
        elif numbers is not None:
            outcomes.append(_Rows(numbers, NO_TEXT))
        else:
            outcomes.append(_guard(account_lines, raw, digest, layout))
    return outcomes, digests


def _guard(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RefusedError:
    try:
        return read(*args, **kwargs)
    except RefusedError as refused:
        return refused
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what one file provokes must not lose its batch
        return _parse_error(error)


def _parse_plain(raws: Sequence[bytes | None], layout: DelimitedLayout) -> list[Float64 | None]:
    try:
        return parse_plain_files(raws, layout)
    except MemoryError:
        raise
    except Exception:  # numba may be missing or broken: slower is no reason to refuse a file
        log.warning("files are read one by one, for the compiled parser failed", exc_info=True)
        return [None] * len(raws)


def _parse_files(parts: list[Lines], layout: DelimitedLayout) -> list[_Parsed]:
    """Parse files with the same columns in one call, halving the batch around a failure."""
    try:
        if parts[0].quoted:
            frame = _numbers(_quoted_strings(parts[0], layout), layout)
            return [_Rows(_matrix(frame, layout), _text(frame, layout))]
        numbers = _parse_compiled(parts, layout)
        if numbers is not None:
            return [_Rows(rows, NO_TEXT) for rows in _cut(numbers, parts)]
        return _split_files(_parse_joined(parts, layout), parts, layout)
    except MemoryError:
        raise
    except RefusedError as refused:
        return [refused]
    except (Exception, PanicException) as error:  # noqa: BLE001 - as above; panics are no Exception
        if len(parts) == 1:
            return [_blame(parts[0], layout, error)]
    half = len(parts) // 2
    return _parse_files(parts[:half], layout) + _parse_files(parts[half:], layout)


def _parse_compiled(parts: list[Lines], layout: DelimitedLayout) -> Float64 | None:
    """Return the numbers of all files below each other, or None where polars has to look."""
    if layout.text or not is_worth_loading(sum(len(part.body) for part in parts)):
        return None
    body, columns = b"".join([part.body for part in parts]), parts[0].columns
    try:
        numbers = parse_numbers(
            body, columns.n_fields, columns.positions, layout.mark, layout.nulls
        )
    except MemoryError:
        raise
    except Exception:  # numba may be missing or broken: slower is no reason to refuse a file
        log.warning("files are parsed by polars, for the compiled parser failed", exc_info=True)
        return None
    # Each line was counted by itself; a sum that is wrong all the same goes the checked way.
    return numbers if numbers is None or len(numbers) == sum(p.n_rows for p in parts) else None


def _cut(numbers: Float64, parts: list[Lines]) -> list[Float64]:
    ends = itertools.accumulate(part.n_rows for part in parts)
    return [numbers[end - part.n_rows : end] for part, end in zip(parts, ends, strict=True)]


def _parse_joined(parts: list[Lines], layout: DelimitedLayout) -> pl.DataFrame:
    """Return the rows of all files below each other, numbers with nulls and NaN as read."""
    columns = parts[0].columns
    # Polars takes zlib and byte order marks at the start for its own: the first row is ours.
    guard = layout.mark.join("0" * columns.n_fields).encode() + b"\n"
    joined = b"".join([guard, *(part.body for part in parts)])
    sources = [f"column_{at + 1}" for at in columns.positions]
    schema: dict[str, type[pl.DataType]] = {
        f"column_{i + 1}": pl.String for i in range(columns.n_fields)
    }
    schema.update(dict.fromkeys(sources[: len(layout.numeric)], pl.Float64))
    frame = pl.read_csv(
        joined,
        has_header=False,
        schema=schema,
        columns=sources,
        separator=layout.mark,
        quote_char=None,
        null_values=_nulls_to_look_for(joined, layout),
        empty_string_is_null="" in layout.nulls,
        truncate_ragged_lines=False,
        infer_schema=False,
    )
    n_wanted = sum(part.n_rows for part in parts)
    if frame.height != n_wanted + 1:
        raise ValueError(f"{frame.height - 1} rows were parsed from {n_wanted} lines")
    renamed = [pl.col(a).alias(b) for a, b in zip(sources, layout.wanted, strict=True)]
    return frame.select(renamed).slice(1)


def _nulls_to_look_for(joined: bytes, layout: DelimitedLayout) -> list[str] | None:
    """Return the spellings that may occur: each one costs the parser a comparison per field."""
    found = [
        null
        for null in layout.nulls
        # In numbers alone the parser reads NaN by itself. A search per byte beats one per word.
        if null
        and (layout.text or null.lower() != "nan")
        and all(byte in joined for byte in null.encode())
    ]
    return found or None


def _split_files(frame: pl.DataFrame, parts: list[Lines], layout: DelimitedLayout) -> list[_Parsed]:
    frame, infinite_rows = _settle_numbers(frame, layout)
    numbers, text = _matrix(frame, layout), _text(frame, layout)
    ends = np.cumsum([part.n_rows for part in parts])
    infinite = set(np.searchsorted(ends, infinite_rows, side="right").tolist())
    return [
        _blame(part, layout, None)
        if i in infinite
        else _Rows(rows, text.slice(end - part.n_rows, part.n_rows) if layout.text else text)
        for i, (part, rows, end) in enumerate(
            zip(parts, _cut(numbers, parts), ends.tolist(), strict=True)
        )
    ]


def _matrix(frame: pl.DataFrame, layout: DelimitedLayout) -> Float64:
    if not layout.numeric:
        return np.empty((frame.height, 0))
    return np.ascontiguousarray(frame.select(layout.numeric).to_numpy(), np.float64)


def _text(frame: pl.DataFrame, layout: DelimitedLayout) -> pl.DataFrame:
    return frame.select(layout.text) if layout.text else NO_TEXT


def _settle_numbers(frame: pl.DataFrame, layout: DelimitedLayout) -> tuple[pl.DataFrame, list[int]]:
    """Return the frame with every missing number as the same NaN, and the rows with infinities."""
    numbers = frame.select(layout.numeric)
    has_nulls = any(column.null_count() for column in numbers)
    # One sum per column proves that nothing needs a second look; an overflow only costs the look.
    if not has_nulls and all(math.isfinite(column.sum()) for column in numbers):
        return frame, []
    columns = pl.col(layout.numeric)
    # Both fills: a NaN that was spelled "-nan" has its sign bit set, which no digest should see.
    filled = frame.with_columns(columns.fill_nan(math.nan).fill_null(math.nan))
    infinite = filled.select(pl.any_horizontal(columns.is_infinite()).arg_true())
    return filled, infinite.to_series().to_list()


def _blame(part: Lines, layout: DelimitedLayout, error: BaseException | None) -> RefusedError:
    """Return why this file, which the fast path cannot take, is refused."""
    try:
        _numbers(_plain_strings(part, layout), layout)
    except RefusedError as refused:
        return refused
    except (Exception, PanicException) as second:  # noqa: BLE001 - the first error says it as well
        return _parse_error(error or second)
    return _parse_error(error or ValueError("an infinite value was not found again"))


def _plain_strings(part: Lines, layout: DelimitedLayout) -> _Strings:
    as_text = replace(layout, numeric=(), text=layout.wanted, nulls=())
    return _Strings(
        _parse_joined([part], as_text), range(part.first_line, part.first_line + part.n_rows)
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
        return _settle_numbers(parsed, layout)[0]
    row, _, name = min(faults)
    raise _bad_value(given[name][row], parsed[name][row], strings.lines[row], name)


def _bad_value(text: str, value: float | None, line: int, column: str) -> RefusedError:
    where = f"column {quote(column)}, line {line}: {quote(text)}"
    if value is None:
        message = f"{where} is no number; correct it, or add it to source.nulls if it means missing"
        return RefusedError("not_a_number", message, line=line, column=column)
    message = f"{where} is infinite as float64; correct it, or write it as missing"
    return RefusedError("infinite", message, line=line, column=column)


def _parse_error(error: BaseException) -> RefusedError:
    first = (str(error) or type(error).__name__).splitlines()[0][:_POLARS_MESSAGE_LIMIT]
    message = f"cannot be parsed ({first}); look at the file, or report it if it looks right"
    return RefusedError("parse_error", message)


def _refusal(file: SourceFile, refused: RefusedError) -> Refusal:
    return Refusal(
        source=file.path,
        stage="read" if isinstance(refused, ReadRefusedError) else "parse",
        code=refused.code,
        message=str(refused),
        line=refused.line,
        column=refused.column,
        size_bytes=file.size_bytes,
    )
