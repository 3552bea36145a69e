"""Delimited numbers by a compiled parser: one pass over the bytes, straight into one matrix.

Every value is the float64 nearest to what is written, ties to even, as `float()` gives it: by one
exact operation where the digits allow it (Clinger 1990, "How to read floating point numbers
accurately"), else from a 128-bit power of five (Lemire 2021, "Number parsing at a gigabyte per
second"). What the compiled code is not sure about it leaves to its caller.

numba is imported once so much was read that it pays, not before.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.sources.layout import Columns
from pipeline.trials import Bool, Float64, Int64

_LOCK = threading.Lock()
_IN_NUMBERS = "0123456789+-.eEnNaA"


class _Kernel(NamedTuple):
    """Compiled code, the 128-bit powers of five it needs, and the code of a field too long."""

    parse_files: Callable[..., int]
    count_lines: Callable[..., None]
    powers: bytes
    long: int


class ParsedFiles(NamedTuple):
    """Numbers of many files below each other.

    Attributes:
        numbers: `[lines, columns]` float64, C-contiguous, the positive quiet NaN where missing.
        edges: `[files + 1]`, the rows where files begin.
        failed: `[files]`, where somebody else must look; rows of these files are undefined.
    """

    numbers: Float64
    edges: Int64
    failed: Bool


def parse_numbers(
    body: bytes, n_fields: int, positions: Sequence[int], mark: str, nulls: Sequence[str]
) -> Float64 | None:
    """Parse the wanted fields of all lines, or return None where one is no plain number.

    Several threads may call it at once.

    Args:
        body: Lines, each ended by a newline, without blanks around fields, quotes or returns.
        n_fields: Fields of each line.
        positions: Field numbers of the wanted columns, each once, in any order.
        mark: The one byte between fields.
        nulls: Spellings of a missing value. An empty field and NaN in any case always are.

    Returns:
        `[lines, len(positions)]` float64, C-contiguous, the positive quiet NaN where missing.
        None for text, infinities, a mark that numbers are made of, and lines of other lengths.
    """
    if mark in _IN_NUMBERS or not body.endswith(b"\n"):
        return None
    edges = np.array([0, body.count(b"\n")])
    columns = Columns(n_fields, tuple(positions))
    parsed = _parse([body], _spans([body], 0), edges, columns, mark, nulls)
    return None if parsed.failed.any() else parsed.numbers


def parse_raw_files(
    raws: Sequence[bytes], top: int, columns: Columns, mark: str, nulls: Sequence[str]
) -> ParsedFiles | None:
    """Parse the wanted fields of files as they are, or return None for a mark in numbers.

    A file has failed unless all its bytes are plain: ASCII without quotes, carriage returns and
    NUL, every line ended and with as many fields as wanted, numbers without blanks around them.

    Args:
        raws: What the files hold.
        top: Bytes above the lines in each of them.
        columns: Two fields at least: a blank line of one field is a missing value or the end.
        mark: The one byte between fields.
        nulls: Spellings of a missing value. An empty field and NaN in any case always are.
    """
    if mark in _IN_NUMBERS or columns.n_fields < 2:
        return None
    spans, n_lines = _spans(raws, top), np.empty(len(raws), np.int64)
    load_kernel().count_lines(*spans, n_lines)
    edges = np.concatenate([[0], np.cumsum(n_lines)]).astype(np.int64)
    # Blanks around a field are no part of it: a spelling that has some occurs nowhere.
    spelled = [null for null in nulls if null == null.strip(" \t")]
    return _parse(raws, spans, edges, columns, mark, spelled)


def _parse(
    raws: Sequence[bytes],
    spans: tuple[Int64, Int64],
    edges: Int64,
    columns: Columns,
    mark: str,
    nulls: Sequence[str],
) -> ParsedFiles:
    """Parse files between given addresses, each of which has the rows that `edges` tells."""
    n_wanted = len(columns.positions)
    out, failed = np.empty((int(edges[-1]), n_wanted)), edges[1:] == edges[:-1]
    places = np.full(columns.n_fields, -1, np.int64)
    places[list(columns.positions)] = np.arange(n_wanted)
    kernel = load_kernel()
    kept = (*_encoded(tuple(nulls), mark), kernel.powers)
    tables = _addresses(kept).tolist()
    state = np.array([spans[0][0], 0, 0, 0, 0])
    given = (ord(mark), *tables, places, *spans, edges, failed)
    while kernel.parse_files(*given, state, out) == kernel.long:
        start, end, row, field, i = state.tolist()
        origin = int(spans[1][i]) - len(raws[i])
        value = float(raws[i][start - origin : end - origin])
        failed[i] |= math.isinf(value)
        out[row, places[field]] = value
        state[:] = end + 1, 0, row + (field + 1) // len(places), (field + 1) % len(places), i
    return ParsedFiles(out, edges, failed)


def _spans(raws: Sequence[bytes], top: int) -> tuple[Int64, Int64]:
    """Return the addresses below the first bytes of files, and behind the last ones."""
    begins, sizes = _addresses(raws), np.fromiter(map(len, raws), np.int64, len(raws))
    return begins + top, begins + sizes


def _addresses(parts: Sequence[bytes]) -> Int64:
    """Return where bytes lie, which the caller has to keep."""
    pointers = (ctypes.c_char_p * len(parts))(*parts)
    return np.frombuffer(memoryview(pointers).cast("B"), np.int64)


def load_kernel() -> _Kernel:
    """Return the compiled parser; the first call compiles it, or takes it from disk.

    Raises:
        ImportError: If numba is not installed.
    """
    with _LOCK:
        return _load_kernel()


@functools.cache
def _load_kernel() -> _Kernel:
    from pipeline.sources import kernel  # half a second, which other commands need not pay

    powers = _powers_of_five(kernel.LOWEST, kernel.HIGHEST)
    return _Kernel(*kernel.compile_kernel(), powers, kernel.LONG)


def _powers_of_five(lowest: int, highest: int) -> bytes:
    """Return the first 128 bits of 5**q for each q: two words, the high one first.

    Rounded down, but up from -27 to -1, where a product may lie halfway: the proof wants it so.
    """
    words = []
    for q in range(lowest, highest + 1):
        power = 5 ** abs(q)
        if q < 0:
            n_bits = power.bit_length()
            power = (1 << (n_bits + 127 if q >= -27 else 2 * n_bits + 128)) // power + 1
        surplus = power.bit_length() - 128
        power = power >> surplus if surplus > 0 else power << -surplus
        words += [power >> 64, power & (1 << 64) - 1]
    return np.array(words, np.uint64).tobytes()


@functools.lru_cache(maxsize=16)
def _encoded(nulls: tuple[str, ...], mark: str) -> tuple[bytes, bytes]:
    """Return the spellings that are numbers and the others: a line each, and an empty one."""
    numbers, others = [], []
    for null in nulls:
        if null and mark not in null and "\n" not in null and null.lower() != "nan":
            try:
                float(null)
                numbers.append(null)
            except ValueError:
                others.append(null)
    return "\n".join([*numbers, "\n"]).encode(), "\n".join([*others, "\n"]).encode()
