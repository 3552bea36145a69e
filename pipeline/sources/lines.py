"""From a file's bytes to lines that hold one record each, with every separator accounted for."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from pipeline.files import RefusedError, SourceFile, quote
from pipeline.sources.decompress import decompress
from pipeline.sources.layout import Columns, DelimitedLayout, positions_of
from pipeline.sources.rawfile import ReadRefusedError, check_text, decode_text, read_stable

csv.field_size_limit(2**31 - 1)  # of this process; its default takes long texts for stray quotes

_TAB, _NEWLINE, _BLANK = 9, 10, 32

__all__ = [
    "Columns",
    "DelimitedLayout",
    "Lines",
    "account_lines",
    "end_last_line",
    "field_count_error",
    "find_columns",
    "read_lines",
    "split_top",
    "tidy_lines",
    "trim_blanks",
]


@dataclass(frozen=True)
class Lines:
    """One file, ready to be joined to others and parsed.

    Attributes:
        xxh3: XXH3-128 of the raw bytes.
        columns: Meaning of the fields.
        body: One line per row, each with exactly `columns.n_fields` plain fields; or, where
            `quoted`, the records as the file has them.
        n_rows: Lines of the body; 0 where `quoted`, as nobody knows yet.
        first_line: Line number of the first row in the file.
        quoted: Some quotes protect a separator, a newline or a quote.
    """

    xxh3: str
    columns: Columns
    body: bytes
    n_rows: int
    first_line: int
    quoted: bool = False


def read_lines(root: Path, file: SourceFile, layout: DelimitedLayout) -> Lines:
    """Read one file and account for each of its separators.

    Args:
        root: Source root.
        file: The catalog's record.
        layout: How the file is written.

    Raises:
        RefusedError: Whatever is wrong with the file.
    """
    raw = read_stable(root, file)
    return account_lines(raw, xxhash.xxh3_128_hexdigest(raw), layout)


def account_lines(raw: bytes, xxh3: str, layout: DelimitedLayout) -> Lines:
    """Return the lines of a file; see `read_lines`.

    Args:
        raw: Its bytes.
        xxh3: Their digest.
        layout: How the file is written.

    Raises:
        RefusedError: Whatever is wrong with the file.
    """
    data = decompress(raw)
    text = end_last_line(check_text(data, layout.encoding), layout)
    header, body, first_line = split_top(text, layout)
    columns = find_columns(header, first_line - 1, layout)
    if not body.lstrip(b"\n"):
        raise RefusedError(
            "no_rows", "holds no row below its header; record it again, or exclude it"
        )
    lines = tidy_lines(body, first_line, layout, columns, xxh3)
    if lines.quoted:  # a line end inside quotes stays as the file has it
        records = decode_text(data, layout.encoding).split(b"\n", first_line - 1)[-1]
        return replace(lines, body=records)
    return lines


def tidy_lines(
    body: bytes, first_line: int, layout: DelimitedLayout, columns: Columns, xxh3: str
) -> Lines:
    """Return lines without blanks around fields and idle quotes, all separators counted.

    Args:
        body: Lines, each ended by a newline, one of them not blank.
        first_line: The number of the first one in the file.
        layout: How the file is written.
        columns: Meaning of the fields.
        xxh3: Digest of the raw file.

    Raises:
        RefusedError: `field_count`.
    """
    tidy = trim_blanks(body, layout.delimiter)
    if b'"' in tidy:
        plain = _drop_idle_quotes(tidy, layout, columns)
        if plain is None:
            return Lines(xxh3, columns, body, 0, first_line, quoted=True)
        tidy = trim_blanks(plain, layout.delimiter)
    if tidy.endswith(b"\n\n"):
        tidy = tidy.rstrip(b"\n") + b"\n"
    n_rows = _count_rows(tidy, columns, layout.mark, first_line)
    return Lines(xxh3, columns, tidy, n_rows, first_line)


@lru_cache(maxsize=256)
def find_columns(header: bytes, line: int, layout: DelimitedLayout) -> Columns:
    """Return where the wanted columns are; cached, as most files of a data set share a header.

    Args:
        header: The header line; ignored where the layout has none.
        line: Its number in the file.
        layout: The columns wanted.

    Raises:
        RefusedError: `missing_column`, `duplicate_column`, or `parse_error` for open quotes.
    """
    names = _split_header(header, line, layout) if layout.header else list(layout.names)
    advice = "correct the name or the delimiter"
    return Columns(len(names), positions_of(layout.wanted, names, line=line, advice=advice))


def field_count_error(got: int, wanted: int, line: int) -> RefusedError:
    """Return the refusal of a line with too few or too many fields."""
    found = f"{got} fields" if got else "a blank line"
    message = f"line {line} has {found}, {wanted} were wanted; repair the line, or quote the field"
    return RefusedError("field_count", message, line=line)


def trim_blanks(body: bytes, delimiter: str | None) -> bytes:
    """Return lines without blanks around their fields; runs between fields become one blank.

    Args:
        body: Lines, each ended by a newline.
        delimiter: Separator of the fields, itself never dropped; None for runs of blanks.
    """
    blanks = [c for c in (_BLANK, _TAB) if c in body and (delimiter is None or c != ord(delimiter))]
    if not blanks:
        return body
    data = np.frombuffer(body, np.uint8)
    at = np.flatnonzero(np.logical_or.reduce([data == c for c in blanks]))
    is_start = np.diff(at, prepend=-2) > 1
    starts, ends = at[is_start], at[np.append(is_start[1:], True)]
    is_edge = np.zeros(256, np.bool_)
    is_edge[[_NEWLINE] if delimiter is None else [_NEWLINE, ord(delimiter)]] = True
    outer = is_edge[data[ends + 1]] | is_edge[data[starts - 1]] | (starts == 0)
    dropped = np.repeat(outer, ends - starts + 1)
    if delimiter is None:
        dropped |= ~is_start
        data = np.where(data == _TAB, np.uint8(_BLANK), data)
    kept = np.ones(len(data), np.bool_)
    kept[at[dropped]] = False
    return data[kept].tobytes()


def end_last_line(text: bytes, layout: DelimitedLayout) -> bytes:
    """Return text whose last line ends, or refuse it as `truncated`."""
    if text.endswith(b"\n"):
        return text
    if layout.final_newline == "optional":
        return text + b"\n"
    raise ReadRefusedError(
        "truncated",
        "the last line has no newline, so the file may be cut inside its last value; copy it "
        "again, or set source.final_newline: optional if these files never end with one",
        line=text.count(b"\n") + 1,
    )


def split_top(text: bytes, layout: DelimitedLayout) -> tuple[bytes, bytes, int]:
    """Return the header line, the lines below it, and the number of the first of them.

    Raises:
        RefusedError: `no_rows`, where a header was wanted and only comments are there.
    """
    comment = layout.comment.encode() if layout.comment else None
    start, line = 0, 1
    while comment and text.startswith(comment, start):
        start, line = text.index(b"\n", start) + 1, line + 1
    if not layout.header:
        return b"", text[start:], line
    if start == len(text):
        raise RefusedError("no_rows", "holds comments alone; record it again, or exclude it")
    end = text.index(b"\n", start)
    return text[start:end], text[end + 1 :], line + 1


def _split_header(header: bytes, line: int, layout: DelimitedLayout) -> list[str]:
    text = header.decode()
    if layout.delimiter is None:
        text = re.sub("[ \t]+", " ", text.strip(" \t"))
    try:
        names = next(csv.reader([text], delimiter=layout.mark, skipinitialspace=True, strict=True))
    except csv.Error as error:
        message = f"the header {quote(text)} has stray quotes ({error}); repair it"
        raise RefusedError("parse_error", message, line=line) from error
    return [name.strip(" \t") for name in names]


def _drop_idle_quotes(body: bytes, layout: DelimitedLayout, columns: Columns) -> bytes | None:
    """Return the lines without quotes, or None where a quote changes what a line means."""
    mark, pieces = layout.mark.encode(), body.split(b'"')
    inside, outside = pieces[1::2], pieces[::2]
    # An open quote is among these: its piece reaches to the last newline.
    if any(mark in piece or b"\n" in piece for piece in inside):
        return None
    # In a file of one column, an empty quoted field would turn into a blank line.
    # Among runs of blanks it would vanish.
    blanks = layout.delimiter is None
    if (blanks or columns.n_fields == 1) and not all(piece.strip(b" \t") for piece in inside):
        return None
    edges = (mark, b"\n")
    opened = all(piece.endswith(edges) for piece in outside[1:-1])
    closed = all(piece.startswith(edges) for piece in outside[1:])
    at_start = not outside[0] or outside[0].endswith(edges)
    return b"".join(pieces) if opened and closed and at_start else None


def _count_rows(body: bytes, columns: Columns, mark: str, first_line: int) -> int:
    """Return the number of lines after comparing the separators of each with the header's."""
    separator = mark.encode()
    # What is left without all other bytes must be one pattern, repeated: one pass in C, and the
    # only guard against short lines, which the parser would fill with nulls.
    skeleton = body.translate(None, _other_bytes(separator))
    n_rows = skeleton.count(b"\n")
    if skeleton == (separator * (columns.n_fields - 1) + b"\n") * n_rows and not (
        columns.n_fields == 1 and (body.startswith(b"\n") or b"\n\n" in body)
    ):
        return n_rows
    line, got = next(_wrong_lines(body, separator, columns.n_fields))
    raise field_count_error(got, columns.n_fields, first_line + line)


def _wrong_lines(body: bytes, separator: bytes, n_fields: int) -> Iterator[tuple[int, int]]:
    for i, text in enumerate(body.removesuffix(b"\n").split(b"\n")):
        got = text.count(separator) + 1 if text else 0
        if got != n_fields:
            yield i, got


@lru_cache(maxsize=16)
def _other_bytes(separator: bytes) -> bytes:
    return bytes(c for c in range(256) if c not in separator + b"\n")
