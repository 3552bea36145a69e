"""The nouns that a look at the raw files knows: a source file, and a refusal of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
