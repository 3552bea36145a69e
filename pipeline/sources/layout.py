"""How delimited files are written, and where the columns are that somebody wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.files import RefusedError, quote

_SHOWN_NAMES = 10


@dataclass(frozen=True)
class DelimitedLayout:
    """How the files of one data set are written.

    Every value, number or text, is stripped of the blanks and tabs around it. An empty numeric
    field is missing whatever `nulls` says, and so is a NaN in any spelling.

    Attributes:
        delimiter: One ASCII character; None for runs of blanks and tabs.
        header: The first line names the columns.
        names: The columns when there is no header.
        numeric: Columns parsed as Float64.
        text: Columns kept as String.
        comment: Lines at the top of the file that start with it are skipped.
        nulls: Spellings of a missing value.
        final_newline: "require" refuses a file whose last line does not end.
        encoding: How the files spell text, as Python knows it.
    """

    delimiter: str | None
    header: bool = True
    names: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    comment: str | None = None
    nulls: tuple[str, ...] = ("", "NA", "NaN", "nan", "null")
    final_newline: Literal["require", "optional"] = "require"
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        mark = self.delimiter
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0'):
            raise ValueError(f"delimiter {mark!r}: one ASCII character was wanted, or None")
        if not self.wanted:
            raise ValueError("no columns are wanted; name some in numeric or text")
        if len(set(self.wanted)) != len(self.wanted):
            raise ValueError(f"a column is wanted twice in numeric and text: {self.wanted}")
        if not self.header and any(self.names.count(name) != 1 for name in self.wanted):
            raise ValueError(f"without a header, names must hold each of {self.wanted} once")
        if self.comment == "":
            raise ValueError("comment '' would skip every line; leave it out")
        try:
            "a".encode(self.encoding)
        except (LookupError, UnicodeError) as error:
            raise ValueError(f"encoding {self.encoding!r}: one of text was wanted") from error

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the resulting frames, in order."""
        return self.numeric + self.text

    @property
    def mark(self) -> str:
        """The separator once runs of blanks are collapsed."""
        return " " if self.delimiter is None else self.delimiter


@dataclass(frozen=True)
class Columns:
    """Where a header puts the wanted columns.

    Attributes:
        n_fields: Fields of each line.
        positions: Field number of each wanted column, in the order of `DelimitedLayout.wanted`.
    """

    n_fields: int
    positions: tuple[int, ...]


def positions_of(
    wanted: Sequence[str], names: Sequence[str], *, line: int | None = None, advice: str
) -> tuple[int, ...]:
    """Return where each wanted column is among the names that a file has.

    Args:
        wanted: The columns to find.
        names: What the file calls its columns, in order.
        line: The line that names them, in files that have lines.
        advice: What to do about a column that is not there.

    Raises:
        RefusedError: `missing_column` or `duplicate_column`.
    """
    for name in wanted:
        n_found = names.count(name)
        if n_found == 1:
            continue
        if n_found > 1:
            message = f"{n_found} columns are called {quote(name)}; rename or drop all but one"
            raise RefusedError("duplicate_column", message, line=line, column=name)
        shown = ", ".join(quote(other) for other in names[:_SHOWN_NAMES])
        message = (
            f"no column {quote(name)} among {len(names)}: {shown}"
            f"{', ...' if len(names) > _SHOWN_NAMES else ''}; {advice}"
        )
        raise RefusedError("missing_column", message, line=line, column=name)
    return tuple(names.index(name) for name in wanted)
