"""`dataset.yaml`: everything about one data set, as its user writes it.

Every model refuses fields it does not know. Defaults are the plain thing; a default that is not
obvious says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.sections import (
    Channels,
    CleanSpec,
    ColumnAttribute,
    ForecastTarget,
    Model,
    NormalizeSpec,
    PerStepTarget,
    ShardsSpec,
    SourceSpec,
    SplitSpec,
    TableAttribute,
    WindowsSpec,
)
from shards.manifest import Channel
from shards.userfile import read_yaml

NAME = r"^[a-z][a-z0-9_]*$"
"""A data set's name: it is part of paths, keys and URLs."""


class DatasetSpec(Model):
    """One data set."""

    name: Annotated[str, Field(pattern=NAME)]
    source: SourceSpec
    channels: Channels
    derive: dict[str, str] = Field(default_factory=dict)
    """New column -> polars SQL expression, evaluated on one trial at a time. Columns of the file,
    attributes and earlier derived columns may be used."""
    attributes: dict[str, TableAttribute | ColumnAttribute] = Field(default_factory=dict)
    clean: CleanSpec = CleanSpec()
    normalize: NormalizeSpec = NormalizeSpec()
    split: SplitSpec = SplitSpec()
    windows: WindowsSpec
    shards: ShardsSpec = ShardsSpec()
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of files that may be refused; above it nothing is published."""

    @model_validator(mode="after")
    def _names_fit(self) -> DatasetSpec:
        names = [channel.name for channel in self.channels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            place = len(names) - 1 - names[::-1].index(twice[0])
            raise ValueError(f"channels.{place}: {twice[0]!r} is listed twice; keep one.")
        target = self.windows.target
        if isinstance(target, ForecastTarget):
            unknown = [name for name in target.channels if name not in names]
            if unknown:
                raise ValueError(
                    f"windows.target.channels: {unknown[0]!r} is no channel; wanted some of: "
                    f"{', '.join(names)}."
                )
        columns = self.target_columns()
        if len(set(columns)) < len(columns):
            raise ValueError(f"windows.target.columns: {list(columns)} names a column twice.")
        both = set(columns) & set(names)
        if both:
            raise ValueError(
                f"windows.target.columns: {min(both)!r} is also a channel, so the model would "
                "see its own target. Remove it from the channels."
            )
        return self

    def channel_schema(self) -> tuple[Channel, ...]:
        """Return the channels as the format lists them."""
        return tuple(Channel(channel.name, channel.unit) for channel in self.channels)

    def target_columns(self) -> tuple[str, ...]:
        """Return the columns stored as per-step targets."""
        target = self.windows.target
        return target.columns if isinstance(target, PerStepTarget) else ()


def load_spec(path: str | Path) -> DatasetSpec:
    """Read `dataset.yaml`.

    Raises:
        InvalidSpecError: With a line for every mistake.
    """
    return read_yaml(Path(path), DatasetSpec)
