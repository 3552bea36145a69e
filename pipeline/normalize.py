"""Moments of one trial, statistics of many, and the affine that brings channels to one scale.

Statistics of a split are a pure function of the trials' moments in id order, so that they do not
depend on how files were batched. Merging follows Chan, Golub and LeVeque (1983), "Algorithms for
computing the sample variance".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.trials import Bool, Float32, Float64

VERSION = 1
_LARGEST = 1e30
_SMALLEST = 1e-30
"""Within these a float32 holds the normalized value and the inverse scale."""
MOMENTS = ("count", "shift", "sum", "sum_sq", "min", "max")


@dataclass(frozen=True)
class Affine:
    """`normalized = (physical - offset) / scale`; float64 `[channels]` each."""

    offset: Float64
    scale: Float64

    def apply(self, values: Float64) -> Float32:
        """Return `[rows, channels]` normalized in float64 and rounded once."""
        return ((values - self.offset) / self.scale).astype(np.float32)


def measure_moments(values: Float64) -> dict[str, Float64]:
    """Return the moments of present values, per column.

    Deviations are taken from the mean, and the mean itself from deviations from the first value:
    sums of raw squares lose all digits where a level is large against its spread.

    Args:
        values: `[rows, columns]` float64, NaN where missing.

    Returns:
        `count`, `shift`, `sum`, `sum_sq` (of x - shift), `min`, `max`: float64 `[columns]`;
        `shift` 0 and `min`, `max` NaN where nothing is present.
    """
    present = ~np.isnan(values)
    count = present.sum(axis=0).astype(np.float64)
    n = np.maximum(count, 1.0)
    first = values[present.argmax(axis=0), np.arange(values.shape[1])]
    first = np.where(count > 0, first, 0.0)
    shift = first + np.where(present, values - first, 0.0).sum(axis=0) / n
    deviation = np.where(present, values - shift, 0.0)
    nothing = count == 0
    low = np.where(present, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(present, values, -np.inf).max(axis=0, initial=-np.inf)
    return {
        "count": count,
        "shift": shift,
        "sum": deviation.sum(axis=0),
        "sum_sq": (deviation * deviation).sum(axis=0),
        "min": np.where(nothing, np.nan, low),
        "max": np.where(nothing, np.nan, high),
    }


def merge_moments(moments: Mapping[str, Float64]) -> dict[str, Float64]:
    """Merge trials in the order of their rows.

    Args:
        moments: `[trials, columns]` each, as `measure_moments` names them.

    Returns:
        `count`, `mean`, `sd` (population), `min`, `max`: `[columns]`; 0, 0 and NaN where no trial
        has a value.
    """
    count = moments["count"]
    n = np.maximum(count, 1.0)
    means = moments["shift"] + moments["sum"] / n
    spread = moments["sum_sq"] - moments["sum"] ** 2 / n
    total = count.sum(axis=0)
    n_total = np.maximum(total, 1.0)
    base = means[(count > 0).argmax(axis=0), np.arange(means.shape[1])]
    base = np.where(total > 0, base, 0.0)
    mean = base + (count * (means - base)).sum(axis=0) / n_total
    between = count * (means - mean) ** 2
    sd = np.sqrt(np.maximum((spread + between).sum(axis=0) / n_total, 0.0))
    low = np.where(count > 0, moments["min"], np.inf).min(axis=0, initial=np.inf)
    high = np.where(count > 0, moments["max"], -np.inf).max(axis=0, initial=-np.inf)
    nothing = total == 0
    return {
        "count": total,
        "mean": mean,
        "sd": sd,
        "min": np.where(nothing, np.nan, low),
        "max": np.where(nothing, np.nan, high),
    }


def affine_from_moments(method: str, merged: Mapping[str, Float64]) -> Affine:
    """Return the affine of `zscore` or `minmax`."""
    if method == "zscore":
        return _defined(merged["mean"], merged["sd"])
    return _defined(merged["min"], merged["max"] - merged["min"])


def affine_from_values(values: Float64) -> Affine:
    """Return the robust affine of `[rows, channels]`: median and interquartile range."""
    empty = np.isnan(values).all(axis=0)
    quartiles = np.full((3, values.shape[1]), np.nan)
    if not empty.all():
        quartiles[:, ~empty] = np.nanquantile(values[:, ~empty], [0.25, 0.5, 0.75], axis=0)
    affine = _defined(quartiles[1], quartiles[2] - quartiles[0])
    # An impulse among values that are all but equal: in units of their spread it is infinite.
    reach = np.nanmax(np.abs(values - affine.offset), axis=0, initial=0.0)
    return Affine(affine.offset, np.where(affine.scale * _LARGEST > reach, affine.scale, reach))


def trial_affine(method: str, values: Float64, moments: Mapping[str, Float64]) -> Affine:
    """Return the affine of one trial by its own statistics."""
    if method == "robust":
        return affine_from_values(values)
    rows = {name: column[None, : values.shape[1]] for name, column in moments.items()}
    return affine_from_moments(method, merge_moments(rows))


def identity_affine(n_channels: int) -> Affine:
    """Return the affine that changes nothing."""
    return Affine(np.zeros(n_channels), np.ones(n_channels))


def _defined(offset: Float64, scale: Float64) -> Affine:
    """A constant channel has no scale and an empty one no offset: they become 0, and stay NaN."""
    usable = np.isfinite(scale) & (scale > _SMALLEST)
    return Affine(np.where(np.isfinite(offset), offset, 0.0), np.where(usable, scale, 1.0))


def overflowing_channels(affine: Affine, low: Float64, high: Float64) -> Bool:
    """Return, per channel, whether float32 delivery of values in [low, high] is infinite."""
    reach = np.maximum(np.abs(low - affine.offset), np.abs(high - affine.offset))
    largest = float(np.finfo(np.float32).max)
    return np.asarray((reach >= largest) | (reach / affine.scale >= largest))


def coarse_channels(merged: Mapping[str, Float64], tolerance: float = 1e-3) -> Float64:
    """Return, per channel, how coarse float32 is against its spread, or 0 where it is fine.

    A value stored in physical units keeps 24 bits: at 1.7e9 neighbours are 128 apart.
    """
    largest = np.nanmax(np.abs(np.stack([merged["min"], merged["max"]])), axis=0, initial=0.0)
    spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
    ratio = np.divide(spacing, merged["sd"], out=np.zeros_like(spacing), where=merged["sd"] > 0)
    return np.where(ratio > tolerance, ratio, 0.0)
