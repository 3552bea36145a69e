"""`source`: which files there are, how they are written, and where trials are in them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.sections.base import AnyDuration, Model, Name, PositiveInt, Zone

COMPRESSED = (".gz", ".zst")
"""Suffixes that say nothing of what is inside."""
COLUMNAR = ("parquet", "arrow", "npy", "npz")
_BY_SUFFIX = {"feather": "arrow", "ipc": "arrow", "pq": "parquet"}


def _pattern(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"got {value!r}, which is no regular expression: {error}") from error
    return value


class ResampleSpec(Model):
    """Rows at equal distances in time: bins `[k * every, (k + 1) * every)`, k any integer."""

    every: AnyDuration
    method: Literal["mean", "last", "interpolate"] = "mean"
    """`mean`, `last`: of the present values in the bin; an empty bin is missing. `interpolate`:
    linear between the present values around the bin's beginning."""


class TimeSpec(Model):
    """The time of each row, and what becomes of rows that are out of order."""

    column: Name
    format: str = "number"
    """`number`; `iso` for ISO 8601 dates; `clock` for HH:MM or HH:MM:SS since the trial's
    beginning, hours without bound; else a pattern of strptime, such as `%d.%m.%Y %H:%M`."""
    unit: Literal["ns", "us", "ms", "s", "min", "h", "d"] | None = None
    """What one unit of a number is; None: nobody knows, and durations are plain numbers."""
    zone: Zone | None = None
    """IANA time zone of dates that name none, such as `Europe/Berlin`. None: UTC."""
    unsorted: Literal["refuse", "sort"] = "refuse"
    duplicates: Literal["refuse", "first", "last", "mean"] = "refuse"
    """Rows with equal times. `mean`: of the present numbers; text is that of the first row."""
    max_gap: AnyDuration | None = None
    """A longer gap between rows ends a segment, which no window crosses."""
    resample: ResampleSpec | None = None

    @property
    def in_seconds(self) -> bool:
        """Whether parsed times are seconds; else they are in the column's own units."""
        return self.format != "number" or self.unit is not None

    @property
    def is_date(self) -> bool:
        """Whether times are moments of the calendar: seconds since 1970-01-01 UTC."""
        return self.format not in ("number", "clock")

    @model_validator(mode="after")
    def _consistent(self) -> TimeSpec:
        if self.format not in ("number", "iso", "clock") and "%" not in self.format:
            raise ValueError(
                f"format: got {self.format!r}; wanted number, iso, clock, or a pattern such as "
                "'%d.%m.%Y %H:%M'."
            )
        if self.unit is not None and self.format != "number":
            raise ValueError("unit: goes with 'format: number', and only with it.")
        if self.zone is not None and not self.is_date:
            raise ValueError("zone: goes with dates ('format: iso' or a pattern).")
        spans = {
            "max_gap": self.max_gap,
            "resample.every": self.resample.every if self.resample else None,
        }
        for name, span in spans.items():
            if span is not None and span.timed != self.in_seconds:
                wanted = "a duration such as 5min" if self.in_seconds else "a plain number"
                raise ValueError(
                    f"{name}: wanted {wanted}, because times are "
                    + ("seconds." if self.in_seconds else "numbers; or say their 'unit'.")
                )
        return self


def _time(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class PivotSpec(Model):
    """Long form, one row per value: `index` says when, `columns` what, `values` how much."""

    index: Name
    columns: Name
    values: Name
    duplicates: Literal["refuse", "first", "last", "mean"] = "refuse"
    """Several values of one column at one moment."""


class BlocksSpec(Model):
    """Several trials in one text file, one below the other.

    Lines are matched as a whole, without blanks at their ends; blank lines between blocks are
    skipped.
    """

    separator: str | None = None
    """A regular expression for the line that ends each trial."""
    head: str | None = None
    """A regular expression for the line that begins each trial; named groups become attributes."""
    rows: PositiveInt | None = None
    """Rows that every trial must have."""

    _compile = field_validator("separator", "head")(_pattern)

    @model_validator(mode="after")
    def _one(self) -> BlocksSpec:
        if (self.separator is None) == (self.head is None):
            raise ValueError("wanted either 'separator' or 'head'.")
        return self


class SourceSpec(Model):
    """Which files there are and how they are written."""

    files: str
    """Glob below the folder of `dataset.yaml`, `**` for any depth."""
    obtain: str = ""
    """How to get the files, for a reader who does not have them yet; errors quote it."""
    format: (
        Literal["csv", "tsv", "psv", "blank", "delimited", "parquet", "arrow", "npy", "npz"] | None
    ) = None
    """None: by the suffix of the glob, `.gz` and `.zst` aside."""
    delimiter: Annotated[str, Field(pattern=r'^[^\x00\x80-\U0010ffff"\r\n]$')] | None = None
    encoding: str = "utf-8"
    """As Python knows it: `utf-16`, `latin-1`, `cp1252`, ..."""
    header: bool = True
    columns: tuple[str, ...] = ()
    """Column names of files without a header, and of the columns of an `npy` matrix."""
    comment: Annotated[str, Field(min_length=1)] | None = None
    nulls: tuple[str, ...] = ("", "NA", "NaN", "nan", "null")
    final_newline: Literal["require", "optional"] = "require"
    """A file cut inside its last value shows it only by the missing newline."""
    trial_id: str | None = None
    """A regular expression searched in the path; named groups become attributes, and the group
    `id`, or else the whole match, is the trial id. None: the path without its suffix."""
    split_on: tuple[Name, ...] = ()
    """Columns whose values tell the trials of one file apart; they become attributes."""
    blocks: BlocksSpec | None = None
    pivot: PivotSpec | None = None
    time: Annotated[TimeSpec, BeforeValidator(_time)] | None = None
    """The time of each row: a column's name, or more about it."""

    _compile = field_validator("trial_id")(_pattern)

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError as error:
            raise ValueError(
                f"got {value!r}; wanted an encoding that Python knows, such as utf-16."
            ) from error

    @property
    def family(self) -> Literal["delimited", "parquet", "arrow", "npy", "npz"]:
        """How files are read: as text, or as columns."""
        kind = self.format or self._suffix()
        kind = _BY_SUFFIX.get(kind, kind)
        return kind if kind in COLUMNAR else "delimited"  # type: ignore[return-value]

    @property
    def holds_many(self) -> bool:
        """Whether one file holds several trials."""
        return bool(self.split_on) or self.blocks is not None

    @property
    def has_names(self) -> bool:
        """Whether the files themselves name their columns."""
        return self.header and self.family != "npy" and self.blocks is None

    def resolved_delimiter(self) -> str | None:
        """Return the separator; None stands for runs of blanks."""
        if self.delimiter is not None:
            return self.delimiter
        by_format = {"csv": ",", "tsv": "\t", "psv": "|", "blank": None}
        return by_format.get(self.format or self._suffix(), ",")

    def _suffix(self) -> str:
        path = Path(self.files)
        while path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        return path.suffix.lstrip(".").lower()

    @model_validator(mode="after")
    def _consistent(self) -> SourceSpec:
        if Path(self.files).is_absolute() or ".." in Path(self.files).parts:
            raise ValueError(f"files: got {self.files!r}; wanted a glob below this file's folder.")
        self._check_columns()
        self._check_family()
        pivot, time = self.pivot, self.time
        if pivot is not None and time is not None and time.column != pivot.index:
            raise ValueError(
                f"time.column: got {time.column!r}; with pivot, wanted its index {pivot.index!r}."
            )
        return self

    def _check_columns(self) -> None:
        if self.has_names == bool(self.columns):
            field = "columns" if self.columns else "header"
            raise ValueError(
                f"{field}: wanted either a header in the files or 'columns', not both. "
                "Files with 'blocks' and npy matrices have no header."
            )
        if self.pivot is not None and self.holds_many:
            raise ValueError("pivot: goes with one trial per file; drop split_on and blocks.")
        if self.blocks is not None and self.split_on:
            raise ValueError("split_on: wanted either 'split_on' or 'blocks', not both.")

    def _check_family(self) -> None:
        if self.family == "delimited":
            return
        for name in ("delimiter", "comment", "blocks"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: goes with delimited text, not with {self.family}.")
        if self.family in ("parquet", "arrow") and not self.header:
            raise ValueError(f"header: {self.family} files name their columns themselves.")
        if self.encoding != "utf-8":
            raise ValueError(f"encoding: goes with delimited text, not with {self.family}.")
