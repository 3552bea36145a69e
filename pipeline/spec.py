"""`dataset.yaml`: everything about one data set, as its user writes it.

Every model refuses fields it does not know. Defaults are the plain thing; a default that is not
obvious says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.sections import (
    Attribute,
    Channels,
    ChannelSpec,
    CleanSpec,
    Derivation,
    Encoding,
    ForecastTarget,
    Model,
    NormalizeSpec,
    PerStepTarget,
    ShardsSpec,
    SourceSpec,
    SplitSpec,
    Statics,
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
    derive: dict[str, Derivation] = Field(default_factory=dict)
    """New column -> polars SQL expression, ready-made feature or Python hook, evaluated on one
    trial at a time, in this order. Columns of the file, attributes and earlier derived columns may
    be used."""
    categorical: dict[str, Encoding] = Field(default_factory=dict)
    """Text columns that are inputs, as codes of the train trials' vocabulary."""
    static: Statics = Field(default_factory=dict)
    """Attributes that are inputs, one value per trial."""
    attributes: dict[str, Attribute] = Field(default_factory=dict)
    clean: CleanSpec = CleanSpec()
    normalize: NormalizeSpec = NormalizeSpec()
    split: SplitSpec = SplitSpec()
    windows: WindowsSpec
    shards: ShardsSpec = ShardsSpec()
    causal: bool = False
    """Refuse every transform that uses later rows of a trial for earlier ones."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of files (of trials, where files hold many) that may be refused; above it
    nothing is published."""

    @model_validator(mode="after")
    def _names_fit(self) -> DatasetSpec:
        names = [channel.name for channel in self.inputs()]
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
        self._check_named(names)
        self._check_split_times()
        self._check_rows_kept(names)
        return self

    def _check_named(self, names: list[str]) -> None:
        """Refuse sections that speak of channels which are none."""
        outliers, regimes = self.clean.outliers, self.normalize.regimes
        since = self.clean.time_since_observed
        for where, named in (
            ("clean.outliers.bounds", outliers.bounds if outliers else ()),
            ("clean.time_since_observed", since if isinstance(since, tuple) else ()),
            ("normalize.channels", self.normalize.channels),
            ("normalize.regimes.channels", regimes.channels if regimes else ()),
        ):
            for name in named:
                if name not in names:
                    raise ValueError(
                        f"{where}: {name!r} is no channel; wanted some of: {', '.join(names)}."
                    )
        if self.categorical and self.source.pivot is not None:
            raise ValueError("categorical: goes with text columns; a pivot makes numbers only.")
        for name in self.categorical:
            if name in names or name in self.target_columns():
                raise ValueError(
                    f"categorical: {name!r} is also a channel or target; wanted a text column."
                )

    def _check_split_times(self) -> None:
        """Refuse a split by time whose words do not fit the time column."""
        split, time = self.split, self.source.time
        if split.method != "time":
            return
        if time is None:
            raise ValueError(
                "split.method: got 'time', which needs to know when a row was recorded. Add "
                "source.time, or choose another method."
            )
        if split.purge is not None and split.purge.timed != time.in_seconds:
            got = "a duration" if split.purge.timed else "a plain number"
            wanted = "a duration such as 5min" if time.in_seconds else "a plain number"
            because = "seconds." if time.in_seconds else "numbers; or say their 'unit'."
            raise ValueError(
                f"split.purge: got {got}; wanted {wanted}, because times are {because}"
            )
        dates = [repr(value) for value in split.boundaries.values() if isinstance(value, str)]
        if dates and not time.is_date:
            raise ValueError(
                f"split.boundaries: got {', '.join(dates)}; wanted numbers, because source.time "
                f"holds no dates (format: {time.format}). Mend the format, or write numbers in "
                f"{'seconds' if time.in_seconds else 'its units'}."
            )

    def _check_rows_kept(self, names: list[str]) -> None:
        """Refuse statistics of all train rows where shards hold windows alone."""
        for name in names if self.shards.layout == "windows" else ():
            method, scope = self.normalize.of_channel(name)
            if scope == "regime" or (method == "robust" and scope.startswith(("train", "group:"))):
                raise ValueError(
                    f"shards.layout: windows hold not all rows, which channel {name!r} needs for "
                    f"method {method} with scope {scope}. Say layout: rows, or take method zscore "
                    "or minmax."
                )

    def inputs(self) -> tuple[ChannelSpec, ...]:
        """Return the channels as stored: those written, then the times since they were observed."""
        since = self.clean.time_since_observed
        names = [channel.name for channel in self.channels]
        chosen = names if since is True else since or ()
        unit = "s" if self.source.time and self.source.time.in_seconds else ""
        return self.channels + tuple(
            ChannelSpec(name=f"since_{name}", unit=unit) for name in chosen if name in names
        )

    def channel_schema(self) -> tuple[Channel, ...]:
        """Return the channels as the format lists them."""
        return tuple(Channel(channel.name, channel.unit) for channel in self.inputs())

    def target_columns(self) -> tuple[str, ...]:
        """Return the columns stored as per-step targets."""
        target = self.windows.target
        return target.columns if isinstance(target, PerStepTarget) else ()


def key_orders(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the order of the keys that decide the order of columns, where it is not theirs.

    JSON with sorted keys, such as a manifest holds, keeps no other.

    Args:
        spec: A specification as plain values.
    """
    found = {name: list(spec[name]) for name in ("derive", "categorical", "static")}
    return {name: keys for name, keys in found.items() if keys != sorted(keys)}


def load_spec(path: str | Path) -> DatasetSpec:
    """Read `dataset.yaml`.

    Raises:
        InvalidSpecError: With a line for every mistake.
    """
    return read_yaml(Path(path), DatasetSpec)
