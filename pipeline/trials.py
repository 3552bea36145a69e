"""The nouns that travel through the pipeline: a source file, its table, a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

QUOTE_LIMIT = 40
"""Characters of a file's content that a message may quote."""


def count_of(n: int, noun: str) -> str:
    """Return `1 file` or `1,212 files`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def quote(text: str) -> str:
    """Return `text` in quotes, cut to `QUOTE_LIMIT` characters, control characters escaped."""
    cut = text if len(text) <= QUOTE_LIMIT else text[: QUOTE_LIMIT - 3] + "..."
    return repr(cut)


NO_ATTRIBUTES: Mapping[str, str] = {}


class SourceFile(NamedTuple):
    """One raw file as the catalog saw it.

    A tuple, because a catalog makes one for each of a hundred thousand files, and a frozen
    dataclass takes four times as long to make.

    Attributes:
        path: POSIX path below the source root.
        size_bytes: Size at scan time.
        mtime_ns: Modification time at scan time.
        trial_id: The trial this file holds.
        attributes: Named groups of the trial id pattern, and joined table columns.
        bucket: Hash of the source unit modulo the number of buckets.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    trial_id: str
    attributes: Mapping[str, str] = NO_ATTRIBUTES
    bucket: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why one source file is not in the store.

    Attributes:
        source: POSIX path below the source root.
        stage: The stage that refused it: catalog, read, parse, clean, ...
        code: Stable, lower_snake_case reason.
        message: What was found, what was wanted, and what to do.
        line: 1-based line in the file, where one is to blame.
        column: Column name, where one is to blame.
        size_bytes: Size of the file.
        trial: The trial that is refused, where others of the same file are not.
        mtime_ns: Modification time of the file as it was read; None if it is to be read again,
            whatever its size and time.
    """

    source: str
    stage: str
    code: str
    message: str
    line: int | None = None
    column: str | None = None
    size_bytes: int = 0
    trial: str | None = None
    mtime_ns: int | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the quarantine row of SPEC section 10."""
        return dict(vars(self))


class RefusedError(Exception):
    """Raised by a stage to refuse the trial it works on; the build turns it into a `Refusal`."""

    def __init__(
        self, code: str, message: str, *, line: int | None = None, column: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.line, self.column = code, line, column


NO_TEXT = pl.DataFrame()


@dataclass(frozen=True)
class Table:
    """One trial as its source says it, rows in the source's order.

    Attributes:
        file: Where it came from.
        source_xxh3: XXH3-128 of the file's bytes, hexadecimal.
        names: Numeric columns.
        numbers: `[rows, names]` float64, C order, NaN where missing.
        text: The text columns, String, null where missing; `NO_TEXT` where none are wanted.
        trial: The trial's id; by default the file's.
        found: Attributes that were found inside the file.
        number: Its place among the trials of the file, from 1.
    """

    file: SourceFile
    source_xxh3: str
    names: tuple[str, ...]
    numbers: Float64
    text: pl.DataFrame = field(default_factory=lambda: NO_TEXT)
    trial: str = ""
    found: Mapping[str, str] = field(default_factory=dict)
    number: int = 1

    @property
    def trial_id(self) -> str:
        """The trial's id."""
        return self.trial or self.file.trial_id

    @property
    def frame(self) -> pl.DataFrame:
        """All columns as one frame: Float64 and String."""
        return self.frame_of([*self.names, *self.text.columns])

    def frame_of(
        self,
        columns: Sequence[str],
        numbers: Float64 | None = None,
        text_rows: Int64 | None = None,
    ) -> pl.DataFrame:
        """Return columns as a frame: Float64 with NaN, String with nulls.

        Args:
            columns: Their names.
            numbers: Instead of the table's own, `[rows, names]`.
            text_rows: The table's row that each row takes its texts from, -1 for none.
        """
        numbers = self.numbers if numbers is None else numbers
        text = self.text
        if text_rows is not None and any(name in text.columns for name in columns):
            held = pl.Series(text_rows >= 0)
            text = text[np.maximum(text_rows, 0)].select(pl.when(held).then(pl.all()))
        return pl.DataFrame(
            {
                name: text[name] if name in text.columns else numbers[:, self.names.index(name)]
                for name in columns
            }
        )
