"""Texts of few shapes into integers: all rows of one shape at once.

A trial's times nearly always look alike, digits aside. So a pattern is matched once per shape, and
the digits of all rows are read as columns of a byte matrix: 5-10 times faster than a regular
expression per row, and as strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.trials import Int64

_LONGEST = 64
"""Bytes of a text that are looked at; no pattern here matches as many."""
_ZERO = ord("0")
_Bytes = npt.NDArray[np.uint8]


class Fields:
    """The named groups of a pattern in all rows of one shape."""

    def __init__(self, found: re.Match[bytes], texts: _Bytes) -> None:
        self._found, self._texts = found, texts

    def number(self, name: str) -> Int64:
        """Return `[rows]` the digits of a group as integers; 0 where the shape lacks it."""
        total = np.zeros(len(self._texts), np.int64)
        for place in range(*self._found.span(name)):
            total = total * 10 + (self._texts[:, place] - np.uint8(_ZERO))
        return total

    def fraction(self, name: str) -> npt.NDArray[np.float64]:
        """Return `[rows]` the digits of a group as the digits after a decimal point."""
        begin, end = self._found.span(name)
        return self.number(name) / 10.0 ** (end - begin)

    def text(self, name: str) -> bytes | None:
        """Return what the shape has in a group, digits as zeros; None where it lacks it."""
        return self._found[name]


def read_shapes(
    texts: pl.Series, pattern: re.Pattern[bytes]
) -> Iterator[tuple[Int64, Fields | None]]:
    """Yield `(rows, fields)` per shape, by first row; fields None where it does not match.

    Args:
        texts: `[rows]` String without nulls.
        pattern: Whose groups of digits are wanted; it must not depend on which digits they are.
    """
    matrix, lengths = _matrix(texts)
    shapes = np.where(matrix - np.uint8(_ZERO) <= 9, np.uint8(_ZERO), matrix)
    left = np.arange(len(texts), dtype=np.int64)
    while left.size:
        same = (lengths == lengths[0]) & (shapes == shapes[0]).all(axis=1)
        found = pattern.fullmatch(shapes[0, : lengths[0]].tobytes())
        if same.all():  # the common case, without a copy
            yield left, Fields(found, matrix) if found else None
            return
        yield left[same], Fields(found, matrix[same]) if found else None
        left, lengths, shapes, matrix = (a[~same] for a in (left, lengths, shapes, matrix))


def _matrix(texts: pl.Series) -> tuple[_Bytes, Int64]:
    """Return the first bytes of each text, padded with zeros, and how many there are."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offset_bytes, data = array.buffers()
    ends = np.frombuffer(offset_bytes, np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.minimum(np.diff(ends), _LONGEST)
    width = int(lengths.max(initial=0))
    content = np.frombuffer(data or b"", np.uint8)
    if len(texts) and (np.diff(ends) == width).all():  # the common case, without a copy
        return content[ends[0] : ends[-1]].reshape(len(texts), width), lengths
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    places = np.where(inside, ends[:-1, None] + columns, 0)
    return np.where(inside, content[places], np.uint8(0)) if width else inside.view(
        np.uint8
    ), lengths
