"""What a model sees and what is known of a trial: channels, derived columns, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.sections.base import Model, Name, PositiveInt


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

    hook: Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")]
    reach: Literal["row", "past", "trial"] = "trial"
    """Which rows the function looks at for one row's value; nobody can check that."""


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
    zone: str | None = None
    """IANA time zone in which days begin; None: that of source.time, else UTC."""


def _derivation(value: Any) -> Any:
    return {"sql": value} if isinstance(value, str) else value


Derivation = Annotated[
    Sql | Hook | Lag | Difference | RollingMean | SinceObserved | Calendar,
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
    """CSV file below the folder of `dataset.yaml`."""
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
