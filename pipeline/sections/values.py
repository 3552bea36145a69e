"""`clean` and `normalize`: what becomes of the numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.sections.base import Finite, Model, Name, PositiveInt

Method = Literal["zscore", "minmax", "robust", "none"]
_SCOPE = re.compile(r"trial|train|regime|window|group:.+|prefix\([1-9]\d{0,8}\)")


class OutlierSpec(Model):
    """Values beyond belief, found before anything else is done to them."""

    bounds: dict[str, tuple[Finite | None, Finite | None]] = Field(default_factory=dict)
    """Channel -> lowest and highest possible value, in physical units; null for none."""
    deviations: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Farther from the trial's median than so many scaled median absolute deviations."""
    then: Literal["clip", "missing"] = "clip"
    """`clip`: moved to the nearest value that is allowed. `missing`: as if never observed."""

    @model_validator(mode="after")
    def _ordered(self) -> OutlierSpec:
        for name, (low, high) in self.bounds.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"bounds.{name}: got [{low:g}, {high:g}]; wanted low <= high.")
        return self


class CleanSpec(Model):
    """What becomes of missing values, channel by channel, within one segment of a trial."""

    outliers: OutlierSpec | None = None
    missing: Literal["interpolate", "ffill", "constant", "drop", "none"] = "none"
    """`interpolate`: linear in the row number, between present values only. `drop`: rows in which
    any channel is missing. `none`: straight to `then`."""
    limit: PositiveInt | None = None
    """`interpolate`: the longest gap that is filled. `ffill`: rows a value is carried on."""
    value: Finite = 0.0
    then: Literal["mask", "constant", "drop", "refuse"] = "mask"
    """What becomes of values that are still missing. `mask`: stored as NaN, delivered as 0 with
    `observed` false. `refuse`: the file goes to quarantine."""
    observed: bool | None = None
    """Store which values the source held. None: exactly when `then: mask` may need it."""
    time_since_observed: bool | tuple[Name, ...] = False
    """Add a channel `since_<channel>` for each channel, or for those named: time (rows, without a
    time column) since the source last held a value, counted from the segment's beginning before
    the first one."""
    drop_trial_if_missing: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Refuse a trial in which a larger share of all channel values is missing."""

    def stores_observed(self) -> bool:
        """Return whether shards hold the array `observed`."""
        return self.observed if self.observed is not None else self.then == "mask"


def _scope(value: str) -> str:
    if not _SCOPE.fullmatch(value):
        raise ValueError(
            f"got {value!r}; wanted trial, train, regime, window, group:<attribute> or "
            "prefix(<rows>)."
        )
    return value


class ChannelNormalize(Model):
    """What one channel does otherwise; what is left out is as for all channels."""

    method: Method | None = None
    scope: str | None = None

    @field_validator("scope")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else _scope(value)


class RegimeSpec(Model):
    """Operating regimes: clusters of train rows by k-means on named channels.

    Each channel is scaled by its train spread. Lloyd (1982), "Least squares quantization in PCM";
    seeding of Arthur and Vassilvitskii (2007), "k-means++".
    """

    channels: Annotated[tuple[Name, ...], Field(min_length=1)]
    count: Annotated[int, Field(ge=2, le=255)]
    seed: int = 0


class NormalizeSpec(Model):
    """How channels are brought to one scale."""

    method: Method = "zscore"
    scope: str = "trial"
    """Whose statistics. `trial`: each trial's own, as the field does it; it looks ahead inside the
    trial. `prefix(n)`: those of its first n rows. `window`: each window's own, at delivery.
    `train`: of the train split alone. `group:<attribute>`: of the train trials with the same
    value; `regime`: of the train rows in the same regime; both fall back on `train` where train
    has none."""
    channels: dict[str, ChannelNormalize] = Field(default_factory=dict)
    """Channel -> what it does otherwise."""
    regimes: RegimeSpec | None = None

    @field_validator("scope")
    @classmethod
    def _known(cls, value: str) -> str:
        return _scope(value)

    @model_validator(mode="after")
    def _consistent(self) -> NormalizeSpec:
        uses = "regime" in {self.scope, *(other.scope for other in self.channels.values())}
        if uses != (self.regimes is not None):
            raise ValueError("regimes: goes with 'scope: regime', and only with it.")
        return self

    def of_channel(self, name: str) -> tuple[str, str]:
        """Return `(method, scope)` of a channel; the scope of method `none` is `none`."""
        other = self.channels.get(name, ChannelNormalize())
        method = other.method or self.method
        return method, "none" if method == "none" else other.scope or self.scope


def statistics_of(entries: Mapping[str, tuple[str, str]]) -> set[str]:
    """Return the kinds of scope in use: `trial`, `train`, `regime`, `window`, `group`, `prefix`."""
    return {re.split(r"[:(]", scope)[0] for _, scope in entries.values()}
