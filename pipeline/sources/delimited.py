"""Delimited text: many small files are joined in memory and parsed by one call."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import xxhash
from polars.exceptions import PanicException

from pipeline.files import Refusal, RefusedError, SourceFile
from pipeline.loading import is_worth_loading
from pipeline.sources.careful import blame, read_quoted
from pipeline.sources.compiled import parse_numbers
from pipeline.sources.joined import matrix_of, parse_joined, settle_numbers, text_of
from pipeline.sources.lines import (
    DelimitedLayout,
    Lines,
    account_lines,
    read_lines,
)
from pipeline.sources.plainfiles import parse_plain_files
from pipeline.sources.rawfile import guard, read_stable, refusal_of
from pipeline.trials import NO_TEXT, Float64, Table

__all__ = ["DelimitedLayout", "read_delimited"]

log = logging.getLogger(__name__)


class _Rows(NamedTuple):
    """One file's numbers as one matrix, and its text columns, if any are wanted."""

    numbers: Float64
    text: pl.DataFrame


_Parsed = _Rows | RefusedError


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
        for i, parsed in zip(members, parse_files(parts, layout), strict=True):
            outcomes[i] = parsed
    tables: list[Table] = []
    refusals: list[Refusal] = []
    for file, digest, outcome in zip(files, digests, outcomes, strict=True):
        if isinstance(outcome, _Rows):
            tables.append(Table(file, digest, layout.numeric, outcome.numbers, outcome.text))
        else:
            assert isinstance(outcome, RefusedError)
            refusals.append(refusal_of(file, outcome))
    return tables, refusals


def _read_files(
    root: Path, files: Sequence[SourceFile], layout: DelimitedLayout
) -> tuple[list[Lines | _Parsed], list[str]]:
    """Return lines to be parsed, the numbers of files that need no second look, or refusals."""
    outcomes: list[Lines | _Parsed]
    if not is_worth_loading(0):  # bytes are counted where lines are parsed
        outcomes = [guard(read_lines, root, file, layout) for file in files]
        return outcomes, [o.xxh3 if isinstance(o, Lines) else "" for o in outcomes]
    folder = str(root)
    raws = [guard(read_stable, folder, file) for file in files]
    digests = [xxhash.xxh3_128_hexdigest(r) if isinstance(r, bytes) else "" for r in raws]
    plain = _parse_plain([r if isinstance(r, bytes) else None for r in raws], layout)
    outcomes = []
    for raw, digest, numbers in zip(raws, digests, plain, strict=True):
        if isinstance(raw, RefusedError):
            outcomes.append(raw)
        elif numbers is not None:
            outcomes.append(_Rows(numbers, NO_TEXT))
        else:
            outcomes.append(guard(account_lines, raw, digest, layout))
    return outcomes, digests


def _parse_plain(raws: Sequence[bytes | None], layout: DelimitedLayout) -> list[Float64 | None]:
    try:
        return parse_plain_files(raws, layout)
    except MemoryError:
        raise
    except Exception:  # numba may be missing or broken: slower is no reason to refuse a file
        log.warning("files are read one by one, for the compiled parser failed", exc_info=True)
        return [None] * len(raws)


def parse_files(parts: list[Lines], layout: DelimitedLayout) -> list[_Parsed]:
    """Parse files with the same columns in one call, halving the batch around a failure."""
    try:
        if parts[0].quoted:
            frame = read_quoted(parts[0], layout)
            return [_Rows(matrix_of(frame, layout), text_of(frame, layout))]
        numbers = _parse_compiled(parts, layout)
        if numbers is not None:
            return [_Rows(rows, NO_TEXT) for rows in _cut(numbers, parts)]
        return _split_files(parse_joined(parts, layout), parts, layout)
    except MemoryError:
        raise
    except RefusedError as refused:
        return [refused]
    except (Exception, PanicException) as error:  # noqa: BLE001 - as above; panics are no Exception
        if len(parts) == 1:
            return [blame(parts[0], layout, error)]
    half = len(parts) // 2
    return parse_files(parts[:half], layout) + parse_files(parts[half:], layout)


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


def _split_files(frame: pl.DataFrame, parts: list[Lines], layout: DelimitedLayout) -> list[_Parsed]:
    frame, infinite_rows = settle_numbers(frame, layout)
    numbers, text = matrix_of(frame, layout), text_of(frame, layout)
    ends = np.cumsum([part.n_rows for part in parts])
    infinite = set(np.searchsorted(ends, infinite_rows, side="right").tolist())
    return [
        blame(part, layout, None)
        if i in infinite
        else _Rows(rows, text.slice(end - part.n_rows, part.n_rows) if layout.text else text)
        for i, (part, rows, end) in enumerate(
            zip(parts, _cut(numbers, parts), ends.tolist(), strict=True)
        )
    ]
