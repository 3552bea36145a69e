"""Several trials in one text file, one below the other: cut, then read as plain files are.

A file whose blocks are all sound is parsed by one call, and its rows are dealt out. Where anything
is wrong, each block is parsed by itself, so that one bad block never costs its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import xxhash

from pipeline.files import Refusal, RefusedError, SourceFile, count_of, quote
from pipeline.sections.source import BlocksSpec
from pipeline.sources.decompress import decompress
from pipeline.sources.delimited import parse_files
from pipeline.sources.lines import (
    Columns,
    DelimitedLayout,
    Lines,
    end_last_line,
    find_columns,
    split_top,
    tidy_lines,
)
from pipeline.sources.rawfile import check_text, guard, read_stable, refusal_of
from pipeline.trials import Float64, Table

_BLANKS = " \t"


class _Block(NamedTuple):
    """Where one trial is in its file.

    Attributes:
        number: Its place in the file, from 1.
        line: 1-based number of its first row; where there is none, of the line that ends the empty
            block or begins it.
        rows: Its lines.
        found: The named groups of its head.
    """

    number: int
    line: int
    rows: Sequence[str]
    found: Mapping[str, str]

    @property
    def body(self) -> bytes:
        return ("\n".join(self.rows) + "\n").encode()


class _Rows(NamedTuple):
    """What a block holds: `[rows, names]` float64, and its text columns."""

    numbers: Float64
    text: pl.DataFrame


@dataclass(frozen=True)
class _Cut:
    """One file, cut into blocks; `whole` holds all their rows, where nothing was wrong so far."""

    xxh3: str
    columns: Columns
    blocks: list[_Block]
    whole: Lines | None = None


def read_blocks(
    root: Path, files: Sequence[SourceFile], layout: DelimitedLayout, blocks: BlocksSpec
) -> tuple[list[Table], list[Refusal]]:
    """Read files that hold several trials each.

    Trials are called `<file's trial id>/0001` and so on, in the order of the file; a refused block
    keeps its number. What damages a file as a whole refuses the file; else each block stands for
    itself.

    Args:
        root: Source root.
        files: The catalog's records.
        layout: How the lines are written; blocks have no header.
        blocks: What tells them apart.

    Returns:
        The tables and the refusals, both in the order of the files and of the blocks in them.
    """
    if layout.header:
        raise ValueError("files with blocks have no header; a layout with names was wanted")
    cuts = [guard(_cut_text, root, file, layout, blocks) for file in files]
    wholes = [cut.whole for cut in cuts if isinstance(cut, _Cut) and cut.whole is not None]
    parsed = iter(parse_files(wholes, layout) if wholes else [])
    tables: list[Table] = []
    refusals: list[Refusal] = []
    for file, cut in zip(files, cuts, strict=True):
        if isinstance(cut, RefusedError):
            refusals.append(refusal_of(file, cut))
            continue
        whole = None if cut.whole is None else next(parsed)
        if whole is None or isinstance(whole, RefusedError):
            outcomes = _parse_singly(cut, layout)
        else:
            outcomes = _deal_rows(cut, _Rows(whole.numbers, whole.text))
        for block, outcome in zip(cut.blocks, outcomes, strict=True):
            done = _finish(file, cut.xxh3, block, outcome, layout, blocks)
            tables.append(done) if isinstance(done, Table) else refusals.append(done)
    return tables, refusals


def _cut_text(root: Path, file: SourceFile, layout: DelimitedLayout, spec: BlocksSpec) -> _Cut:
    raw = read_stable(root, file)
    xxh3 = xxhash.xxh3_128_hexdigest(raw)
    text = end_last_line(check_text(decompress(raw), layout.encoding), layout)
    _, below, line = split_top(text, layout)
    columns = find_columns(b"", line, layout)
    lines = below.decode().split("\n")
    cut = _cut_at_heads if spec.head is not None else _cut_at_separators
    pattern = re.compile(spec.head or spec.separator or "")
    blocks = list(cut(lines, line, pattern))
    if not blocks:
        raise RefusedError("no_rows", "holds no block; record it again, or exclude it")
    n_rows = sum(len(block.rows) for block in blocks)
    try:
        whole = tidy_lines(b"".join(b.body for b in blocks if b.rows), line, layout, columns, xxh3)
    except RefusedError:  # some block is to blame: each is asked by itself
        return _Cut(xxh3, columns, blocks)
    sound = 0 < whole.n_rows == n_rows
    return _Cut(xxh3, columns, blocks, whole if sound else None)


def _cut_at_separators(
    lines: Sequence[str], first: int, pattern: re.Pattern[str]
) -> Iterator[_Block]:
    start = number = 0
    for at, text in enumerate(lines):
        if pattern.fullmatch(text.strip(_BLANKS)):
            number += 1
            yield _block(number, lines, (start, at), first, {}, empty_at=at)
            start = at + 1
    last = _block(number + 1, lines, (start, len(lines)), first, {}, empty_at=start)
    if last.rows:
        yield last


def _cut_at_heads(lines: Sequence[str], first: int, pattern: re.Pattern[str]) -> Iterator[_Block]:
    heads = ((at, pattern.fullmatch(text.strip(_BLANKS))) for at, text in enumerate(lines))
    found = [(at, match) for at, match in heads if match]
    top = found[0][0] if found else len(lines)
    for at, text in enumerate(lines[:top]):
        if text.strip(_BLANKS):
            message = (
                f"line {first + at} comes before any line that matches source.blocks.head "
                f"{quote(pattern.pattern)}: {quote(text)}; correct the pattern or the file"
            )
            raise RefusedError("text_before_head", message, line=first + at)
    ends = [*(at for at, _ in found[1:]), len(lines)]
    for number, ((at, match), end) in enumerate(zip(found, ends, strict=True), 1):
        attributes = {k: v for k, v in match.groupdict().items() if v is not None}
        yield _block(number, lines, (at + 1, end), first, attributes, empty_at=at)


def _block(
    number: int,
    lines: Sequence[str],
    span: tuple[int, int],
    first: int,
    found: Mapping[str, str],
    *,
    empty_at: int,
) -> _Block:
    """Return the lines of a span as a block, blank lines at its ends aside."""
    start, end = span
    while start < end and not lines[start].strip(_BLANKS):
        start += 1
    while end > start and not lines[end - 1].strip(_BLANKS):
        end -= 1
    line = first + (start if start < end else empty_at)
    return _Block(number, line, lines[start:end], found)


def _deal_rows(cut: _Cut, whole: _Rows) -> list[_Rows | RefusedError]:
    """Deal the rows of a file out to its blocks."""
    outcomes: list[_Rows | RefusedError] = []
    start = 0
    for block in cut.blocks:
        end = start + len(block.rows)
        text = whole.text[start:end] if whole.text.width else whole.text
        outcomes.append(_Rows(whole.numbers[start:end], text))
        start = end
    return outcomes


def _parse_singly(cut: _Cut, layout: DelimitedLayout) -> list[_Rows | RefusedError]:
    """Parse each block by itself; the sound ones without quotes still go through one call."""
    tidied = [_tidy(block, cut, layout) for block in cut.blocks]
    plain = [one for one in tidied if isinstance(one, Lines) and not one.quoted]
    parsed = iter(parse_files(plain, layout) if plain else [])
    outcomes: list[_Rows | RefusedError] = []
    for one in tidied:
        if isinstance(one, RefusedError):
            outcomes.append(one)
            continue
        got = parse_files([one], layout)[0] if one.quoted else next(parsed)
        outcomes.append(got if isinstance(got, RefusedError) else _Rows(got.numbers, got.text))
    return outcomes


def _tidy(block: _Block, cut: _Cut, layout: DelimitedLayout) -> Lines | RefusedError:
    try:
        if not block.rows:
            return _empty_block(block)
        return tidy_lines(block.body, block.line, layout, cut.columns, cut.xxh3)
    except RefusedError as refused:
        return refused


def _empty_block(block: _Block) -> RefusedError:
    message = f"block {block.number} at line {block.line} has no rows; record it again, or drop it"
    return RefusedError("empty_block", message, line=block.line)


def _finish(
    file: SourceFile,
    xxh3: str,
    block: _Block,
    outcome: _Rows | RefusedError,
    layout: DelimitedLayout,
    spec: BlocksSpec,
) -> Table | Refusal:
    trial = f"{file.trial_id}/{block.number:04d}"
    if not block.rows:
        outcome = _empty_block(block)
    if isinstance(outcome, RefusedError):
        return refusal_of(file, outcome, trial)
    if spec.rows not in (None, len(outcome.numbers)):
        message = (
            f"block {block.number} at line {block.line} has "
            f"{count_of(len(outcome.numbers), 'row')}, source.blocks.rows wants {spec.rows}; "
            "repair the block, or correct the number"
        )
        return refusal_of(file, RefusedError("block_rows", message, line=block.line), trial)
    numbers, text = outcome
    return Table(file, xxh3, layout.numeric, numbers, text, trial, block.found, block.number)
