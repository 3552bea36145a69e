"""What a model sees and what is known of a trial: channels, derived columns, attributes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from pipeline.sections.base import Model, Name, PositiveInt, Zone


class ChannelSpec(Model):
    """One numeric input with its unit."""

    name: Name
    unit: str = ""


def _channel(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Channels = Annotated[
    tuple[Annotated[ChannelSpec, BeforeValidator(_channel)], ...], Field(min_length=1)
]

Encoding = Literal["one_hot", "embed"]
"""How a trainer gets codes: as indicator columns, or as rows of a learnt table."""


class Sql(Model):
    """An expression of polars SQL, evaluated on one trial at a time."""

    sql: Name


class Hook(Model):
    """A Python function that gets one trial's frame and attributes and returns the new column.

    `hook` is `file.py:function`, the file below the folder of `dataset.yaml`.
    """

    hook: str
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Columns of the files, earlier derived columns and attributes that it gets; it sees no
    others, so that the files are read for them and a leak of the target is found."""
    reach: Literal["row", "past", "trial"] = "trial"
    """Which rows the function looks at for one row's value; nobody can check that."""

    @field_validator("hook")
    @classmethod
    def _inside(cls, value: str) -> str:
        file, _, function = value.rpartition(":")
        path = PurePosixPath(file)
        inside = not path.is_absolute() and ".." not in path.parts
        if not (inside and file.endswith(".py") and re.fullmatch(r"[A-Za-z_]\w*", function)):
            raise ValueError(
                f"got {value!r}; wanted file.py:function, the file below the folder of this one."
            )
        return value


class Lag(Model):
    """The value some rows earlier."""

    lag: Name
    rows: PositiveInt = 1


class Difference(Model):
    """The change since some rows earlier."""

    difference: Name
    rows: PositiveInt = 1


class RollingMean(Model):
    """The mean of the present values among the last rows, the row itself included."""

    rolling_mean: Name
    rows: PositiveInt


class SinceObserved(Model):
    """Time (rows, without a time column) since the source last held a value of the column."""

    since_observed: Name


class Calendar(Model):
    """A part of the date: as it is, or as sine or cosine of its cycle."""

    calendar: Literal["minute", "hour", "weekday", "day", "month", "yearday"]
    form: Literal["number", "sin", "cos"] = "number"
    zone: Zone | None = None
    """IANA time zone in which days begin; None: that of source.time, else UTC."""


_BY_KEY: dict[str, type[Model]] = {
    "sql": Sql,
    "hook": Hook,
    "lag": Lag,
    "difference": Difference,
    "rolling_mean": RollingMean,
    "since_observed": SinceObserved,
    "calendar": Calendar,
}
"""The key that tells what a derived column is."""


def _derivation(value: Any) -> Any:
    """Say what is wrong with the keys here: a union would list the mistakes of all members."""
    if isinstance(value, Model):
        return value
    if isinstance(value, str) and value.strip():
        return {"sql": value}
    wanted = f"wanted an SQL expression as text, or one of {', '.join(_BY_KEY)}."
    if not isinstance(value, Mapping):
        raise ValueError(f"got {value!r}; {wanted}")  # noqa: TRY004
    kinds = [key for key in _BY_KEY if key in value]
    if len(kinds) != 1:
        close = [key for one in value for key in difflib.get_close_matches(str(one), _BY_KEY, n=1)]
        hint = f" Did you mean {close[0]!r}?" if close and not kinds else ""
        found = " and ".join(repr(one) for one in kinds or value) or "nothing"
        raise ValueError(f"got {found}; {wanted}{hint}")
    known = _BY_KEY[kinds[0]].model_fields
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"no such field {key!r} beside {kinds[0]!r}. {hint}Known: {', '.join(known)}."
            )
    return value


def _kind(value: Any) -> str | None:
    if isinstance(value, Model):
        return type(value).__name__
    return next((kind.__name__ for key, kind in _BY_KEY.items() if key in value), None)


Derivation = Annotated[
    Annotated[Sql, Tag("Sql")]
    | Annotated[Hook, Tag("Hook")]
    | Annotated[Lag, Tag("Lag")]
    | Annotated[Difference, Tag("Difference")]
    | Annotated[RollingMean, Tag("RollingMean")]
    | Annotated[SinceObserved, Tag("SinceObserved")]
    | Annotated[Calendar, Tag("Calendar")],
    Discriminator(_kind),
    BeforeValidator(_derivation),
]


StaticEncoding = Literal["number", "one_hot", "embed"]
"""How a trainer gets an attribute: a number by the train trials' mean and sd, or codes."""


def _statics(value: Any) -> Any:
    return dict.fromkeys(value, "number") if isinstance(value, list | tuple) else value


Statics = Annotated[dict[Name, StaticEncoding], BeforeValidator(_statics)]


class TableAttribute(Model):
    """An attribute from a table with one row per trial."""

    table: str
    """CSV, TSV, PSV or Parquet file below the folder of `dataset.yaml`."""
    trial_id: str
    """How a row names its trial, as a format string over the table's columns:
    `test/engine_{unit:04d}`."""
    column: str
    default: int | float | str | None = None
    """For trials the table does not name; without it they are refused."""


class ColumnAttribute(Model):
    """An attribute from a column that is constant within each trial."""

    column: str
    default: int | float | str | None = None
    """For trials in which the column is missing throughout; without it they are refused."""


class RunsAttribute(Model):
    """An attribute of trials that lie in one file in runs: 1 for the first run's, then 2, ..."""

    runs: Annotated[Mapping[str, tuple[PositiveInt, ...]], Field(min_length=1)]
    """Path of the file below the folder of `dataset.yaml` -> trials of each run."""


Attribute = TableAttribute | ColumnAttribute | RunsAttribute
