"""A slow reading of one file of delimited text: the csv module, `float()`, and no shortcut.

It follows the rules that `DelimitedLayout` and `source` in dataset.yaml state, and shares no code
with the reader. What it reads, the reader must read to the bit; what it refuses, the reader must
refuse. Only where blanks stand beside quotes may the reader refuse what is read here.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Values = list[float | str | None]
QUIET_NAN = np.uint64(0x7FF8000000000000)
_NUMBER_LETTERS = set("0123456789+-.eE")
_NAN = re.compile(r"[+-]?nan", re.ASCII | re.IGNORECASE)


class RefusedText(Exception):
    """The rules refuse the file; says why."""


@dataclass(frozen=True)
class Reading:
    """What a file says.

    Attributes:
        columns: Values of the wanted columns, None where missing; None if the file is refused.
        reason: Why it is refused.
        doubtful: Blanks beside quotes leave fields in doubt: refusing it is right, too.
    """

    columns: Mapping[str, Values] | None
    reason: str = ""
    doubtful: bool = False


def read_slowly(raw: bytes, layout: Any) -> Reading:
    """Return what the file says by the rules of `layout`, a `DelimitedLayout`."""
    try:
        return _read(raw, layout)
    except RefusedText as refused:
        return Reading(None, str(refused))


def bits_of(values: Values) -> npt.NDArray[np.uint64]:
    """Return numbers as their bits, missing ones as the positive quiet NaN."""
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    return np.where(np.isnan(numbers), QUIET_NAN, numbers.view(np.uint64))


def _read(raw: bytes, layout: Any) -> Reading:
    text = _decode(_decompress(raw), layout.encoding)
    if not text.endswith("\n"):
        if layout.final_newline == "require":
            raise RefusedText("no final newline")
        text += "\n"
    while layout.comment and text.startswith(layout.comment):
        text = text.partition("\n")[2]
    names, doubtful = list(layout.names), False
    if layout.header:
        top, _, text = text.partition("\n")
        names, doubtful = _names(top.removesuffix("\r"), layout.delimiter)
    wanted = [*layout.numeric, *layout.text]
    if any(names.count(name) != 1 for name in wanted):
        raise RefusedText("a wanted column is missing or there twice")
    records, unclear = _records(text, layout.delimiter)
    if not records:
        raise RefusedText("no rows")
    if any(len(record) != len(names) for record in records):
        raise RefusedText("a line has another number of fields")
    columns = {}
    for name in wanted:
        fields = [record[names.index(name)].strip(" \t") for record in records]
        columns[name] = [_value(field, layout.nulls, name in layout.numeric) for field in fields]
    return Reading(columns, doubtful=doubtful or unclear)


def _decompress(raw: bytes) -> bytes:
    try:
        if raw.startswith(b"\x1f\x8b"):
            return gzip.decompress(raw)
        if raw.startswith(b"\x28\xb5\x2f\xfd"):
            with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
                return bytes(stream.read())
    except (zlib.error, OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise RefusedText(f"damaged compression: {error}") from error
    return raw


def _decode(raw: bytes, encoding: str) -> str:
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise RefusedText("wrong encoding") from error
    if "\0" in text:
        raise RefusedText("a NUL")
    if re.search(r"\r(?!\n)", text):
        raise RefusedText("a lone carriage return")
    return text


def _names(top: str, delimiter: str | None) -> tuple[list[str], bool]:
    if delimiter is None:
        top, delimiter = re.sub("[ \t]+", " ", top.strip(" \t")), " "
    try:
        records = list(csv.reader([top], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise RefusedText(f"quotes in the header: {error}") from error
    names = [name.strip(" \t") for name in records[0]] if records else []
    doubtful = any(name != name.strip('"') for name in names)
    return [name.strip(' \t"') for name in names], doubtful


def _records(text: str, delimiter: str | None) -> tuple[list[list[str]], bool]:
    """Return the fields of each line, and whether quotes leave them in doubt."""
    if delimiter is None:
        return [_run_fields(line) for line in _without_blank_end(text, " \t")], False
    blanks = " \t".replace(delimiter, "")
    if '"' not in text:
        lines = _without_blank_end(text, blanks)
        if any(not line.strip(blanks) for line in lines):
            raise RefusedText("a blank line")
        return [line.split(delimiter) for line in lines], False
    if re.search(rf'[{blanks}]"|"[{blanks}]|(?m:^[{blanks}]+\r?$)', text):
        return _fields_among_blanks(text, delimiter, blanks), True
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True,
    )  # fmt: skip
    try:
        records = list(reader)
    except csv.Error as error:
        raise RefusedText(f"quotes: {error}") from error
    while records and not records[-1]:
        records.pop()
    return records, False


def _without_blank_end(text: str, blanks: str) -> list[str]:
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    while lines and not lines[-1].strip(blanks):
        lines.pop()
    return lines


def _run_fields(line: str) -> list[str]:
    """Return the fields between runs of blanks; quotes around a whole field mean nothing."""
    fields = re.split("[ \t]+", line.strip(" \t"))
    if fields == [""]:
        raise RefusedText("a blank line")
    for at, field in enumerate(fields):
        if '"' in field:
            if not re.fullmatch('"[^"]+"', field):
                raise RefusedText("quotes among runs of blanks")
            fields[at] = field[1:-1]
    return fields


def _fields_among_blanks(text: str, delimiter: str, blanks: str) -> list[list[str]]:
    """Return the fields of lines in which blanks stand beside quotes: they belong to no field."""
    field = re.compile(
        rf'[{blanks}]*+(?:"(?P<quoted>(?:[^"]|"")*+)"|(?P<plain>(?!")[^{re.escape(delimiter)}\n]*?))'
        rf"[{blanks}]*(?:(?P<end>\r?\n)|{re.escape(delimiter)})"
    )
    records: list[list[str]] = []
    fields: list[str] = []
    at, is_blank = 0, True
    while at < len(text):
        match = field.match(text, at)
        if match is None:
            raise RefusedText("stray quotes")
        at = match.end()
        quoted = match["quoted"]
        fields.append(match["plain"] if quoted is None else quoted.replace('""', '"'))
        is_blank = quoted is None and fields == [""]
        if match["end"]:
            records.append([] if is_blank else fields)
            fields = []
    if fields:
        raise RefusedText("an open quote")
    while records and not records[-1]:
        records.pop()
    return records


def _value(field: str, nulls: tuple[str, ...], numeric: bool) -> float | str | None:
    if field in nulls or (numeric and (not field or _NAN.fullmatch(field))):
        return None
    if not numeric:
        return field
    # `float()` alone would take 1_000, digits of other scripts, and blanks of all kinds.
    if not set(field) <= _NUMBER_LETTERS:
        raise RefusedText(f"no number: {field[:20]!r}")
    try:
        number = float(field)
    except ValueError as error:
        raise RefusedText(f"no number: {field[:20]!r}") from error
    if math.isinf(number):
        raise RefusedText(f"infinite: {field[:20]!r}")
    return number
