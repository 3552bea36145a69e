"""The sections of `dataset.yaml`.

Every model refuses fields it does not know. Defaults are the plain thing; a default that is not
obvious says why.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shards.windows import WindowSpec

PositiveInt = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Model(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_size(value: Any) -> Any:
    """Return bytes for `128MiB`, `1 GB` or a plain number."""
    match = (
        re.fullmatch(r"\s*(\d{1,12}(?:\.\d+)?)\s*((?:[KMG]i?)?B)\s*", value, re.ASCII)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    return int(float(match[1]) * _UNITS[match[2]])


SizeBytes = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]


class SourceSpec(Model):
    """Which files there are and how they are written."""

    files: str
    """Glob below the folder of `dataset.yaml`, `**` for any depth."""
    obtain: str = ""
    """How to get the files, for a reader who does not have them yet; errors quote it."""
    format: Literal["csv", "tsv", "psv", "blank", "delimited"] | None = None
    """None: by the suffix of the glob."""
    delimiter: Annotated[str, Field(pattern=r'^[^\x00\x80-\U0010ffff"\r\n]$')] | None = None
    header: bool = True
    columns: tuple[str, ...] = ()
    """Column names of files without a header."""
    comment: Annotated[str, Field(min_length=1)] | None = None
    nulls: tuple[str, ...] = ("", "NA", "NaN", "nan", "null")
    final_newline: Literal["require", "optional"] = "require"
    """A file cut inside its last value shows it only by the missing newline."""
    trial_id: str | None = None
    """A regular expression searched in the path; named groups become attributes, and the group
    `id`, or else the whole match, is the trial id. None: the path without its suffix."""
    time: str | None = None
    """A numeric column that must be finite and strictly increasing."""

    @field_validator("trial_id")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"got {value!r}, which is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SourceSpec:
        if self.header == bool(self.columns):
            field = "columns" if self.columns else "header"
            raise ValueError(
                f"{field}: wanted either a header in the files or 'columns', not both."
            )
        if Path(self.files).is_absolute() or ".." in Path(self.files).parts:
            raise ValueError(f"files: got {self.files!r}; wanted a glob below this file's folder.")
        return self

    def resolved_delimiter(self) -> str | None:
        """Return the separator; None stands for runs of blanks."""
        if self.delimiter is not None:
            return self.delimiter
        by_format = {"csv": ",", "tsv": "\t", "psv": "|", "blank": None}
        kind = self.format or Path(self.files).suffix.lstrip(".").lower()
        return by_format.get(kind, ",")


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


class CleanSpec(Model):
    """What becomes of missing values, channel by channel, within one trial."""

    missing: Literal["interpolate", "ffill", "constant", "drop", "none"] = "none"
    """`interpolate`: linear in the row number, between present values only. `drop`: rows in which
    any channel is missing. `none`: straight to `then`."""
    limit: PositiveInt | None = None
    """`interpolate`: the longest gap that is filled. `ffill`: rows a value is carried on."""
    value: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    then: Literal["mask", "constant", "drop", "refuse"] = "mask"
    """What becomes of values that are still missing. `mask`: stored as NaN, delivered as 0 with
    `observed` false. `refuse`: the file goes to quarantine."""
    observed: bool | None = None
    """Store which values the source held. None: exactly when `then: mask` may need it."""
    drop_trial_if_missing: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Refuse a file in which a larger share of all channel values is missing."""

    def stores_observed(self) -> bool:
        """Return whether shards hold the array `observed`."""
        return self.observed if self.observed is not None else self.then == "mask"


class NormalizeSpec(Model):
    """How channels are brought to one scale."""

    method: Literal["zscore", "minmax", "robust", "none"] = "zscore"
    scope: Literal["trial", "train"] = "trial"
    """`trial`: by each trial's own statistics, as the field does it; it looks ahead inside the
    trial. `train`: by statistics of the train split alone."""


class ValidationSpec(Model):
    """A validation split carved out of another one."""

    of: str = "train"
    name: str = "val"
    fraction: Fraction = 0.1


class SplitSpec(Model):
    """Which trial is on which side; decided before any window is cut."""

    method: Literal["hash", "exact", "attribute"] = "hash"
    """`hash`: by a hash of the group, so that a trial never changes side when others come.
    `exact`: the same order, cut at exact counts. `attribute`: as the data says."""
    by: str = "trial"
    """`trial`, or an attribute that keeps trials together, such as a subject."""
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={"train": 0.8, "val": 0.1, "test": 0.1}
    )
    attribute: str | None = None
    """For `method: attribute`: the attribute whose value is the split's name."""
    names: dict[str, str] = Field(default_factory=dict)
    """For `method: attribute`: value of the attribute -> split."""
    validation: ValidationSpec | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> SplitSpec:
        if (self.method == "attribute") != (self.attribute is not None):
            raise ValueError("attribute: goes with 'method: attribute', and only with it.")
        of = self.validation.of if self.validation else None
        if self.method != "attribute" and of is not None and of not in self.fractions:
            raise ValueError(
                f"validation.of: got {of!r}; wanted one of {', '.join(self.fractions)}."
            )
        if self.method != "attribute" and abs(sum(self.fractions.values()) - 1) > 1e-9:
            raise ValueError(f"fractions: got a sum of {sum(self.fractions.values()):g}; wanted 1.")
        return self


class ForecastTarget(Model):
    """Channels, some steps ahead in time."""

    kind: Literal["forecast"]
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    horizon: PositiveInt = 1
    steps: PositiveInt = 1


class PerStepTarget(Model):
    """A value at every step, from columns (or derived columns) that are no channels."""

    kind: Literal["per_step"]
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]


class PerTrialTarget(Model):
    """One value or one class per trial, from an attribute."""

    kind: Literal["per_trial"]
    attribute: str
    task: Literal["class", "value"] = "class"


Target = Annotated[ForecastTarget | PerStepTarget | PerTrialTarget, Field(discriminator="kind")]


class WindowsSpec(Model):
    """How windows lie on a trial."""

    length: PositiveInt
    stride: PositiveInt = 1
    short: Literal["pad", "drop"] = "pad"
    target: Target

    def arithmetic(self) -> WindowSpec:
        """Return the parameters of the format."""
        ahead = self.target if isinstance(self.target, ForecastTarget) else None
        return WindowSpec(
            length=self.length,
            stride=self.stride,
            horizon=ahead.horizon if ahead else 1,
            steps=ahead.steps if ahead else 0,
            short=self.short,
        )


class ShardsSpec(Model):
    """How trials are packed into files."""

    target_bytes: SizeBytes = 128 * 2**20
    """Large enough that files are few, small enough that rewriting one is cheap."""
    buckets: Literal["auto"] | PositiveInt = "auto"
    """Parts that build independently. auto: 1 under 256 MiB of input, else a power of two."""


class ChannelSpec(Model):
    """One numeric input with its unit."""

    name: Name
    unit: str = ""


def _channel(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Channels = Annotated[
    tuple[Annotated[ChannelSpec, BeforeValidator(_channel)], ...], Field(min_length=1)
]
