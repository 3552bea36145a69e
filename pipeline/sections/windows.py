"""`windows` and `shards`: what is cut from a trial, and how trials are packed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.sections.base import Model, Name, PositiveInt, SizeBytes
from shards.windows import WindowSpec


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
    """What shards hold, and how trials are packed into files."""

    layout: Literal["rows", "windows"] = "rows"
    """rows: windows are arithmetic, of any length and stride. windows: the windows themselves, for
    readers that know no arithmetic; larger by length / stride, and fixed at these parameters."""
    format: Literal["zarr", "parquet"] = "zarr"
    """zarr: raw bytes that are mapped as they are. parquet: smaller, and decoded once into a cache
    beside the reader."""
    target_bytes: SizeBytes = 128 * 2**20
    """Large enough that files are few, small enough that rewriting one is cheap."""
    buckets: Literal["auto"] | PositiveInt = "auto"
    """Parts that build independently. auto: 1 under 256 MiB of input, else a power of two."""
