"""Moments of one trial, statistics of many, and the affine that brings channels to one scale.

Statistics of a split are a pure function of the trials' moments in id order, so that they do not
depend on how files were batched. Merging follows Chan, Golub and LeVeque (1983), "Algorithms for
computing the sample variance".
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.loading import loaded_kernels
from pipeline.sections import ForecastTarget, PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.trials import Bool, Float32, Float64, Int64
from shards.affine import Entry, scope_kind
from shards.errors import InvalidSpecError

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


def channel_entries(spec: DatasetSpec) -> list[Entry]:
    """Return method and scope of every stored channel."""
    return [spec.normalize.of_channel(channel.name) for channel in spec.inputs()]


def check_normalization(spec: DatasetSpec) -> None:
    """Refuse scopes that cannot work.

    Raises:
        InvalidSpecError: Naming the channel and what to do.
    """
    scopes = {channel.name: spec.normalize.of_channel(channel.name)[1] for channel in spec.inputs()}
    target, regimes = spec.windows.target, spec.normalize.regimes
    for name in target.channels if isinstance(target, ForecastTarget) else ():
        if scopes[name] == "regime":
            raise InvalidSpecError(
                f"normalize: {name!r} is forecast and has scope regime, but the regime of a later "
                f"row is not known. Say normalize.channels: {{{name}: {{scope: train}}}}."
            )
    for name in regimes.channels if regimes is not None else ():
        if scope_kind(scopes[name]) in ("trial", "prefix"):
            raise InvalidSpecError(
                f"normalize.regimes.channels: {name!r} has scope {scopes[name]}, so its physical "
                "values, which tell the regime, are not stored. Say "
                f"normalize.channels: {{{name}: {{scope: train}}}}, or method: none."
            )
    if isinstance(target, PerTrialTarget) and f"group:{target.attribute}" in scopes.values():
        raise InvalidSpecError(
            f"normalize.scope: group:{target.attribute} would tell the model its target. "
            "Group by another attribute, or use scope: train."
        )


def measure_moments(values: Float64) -> dict[str, Float64]:
    """Return the moments of present values, per column; of one trial, as `batch_moments`.

    Args:
        values: `[rows, columns]` float64, NaN where missing.

    Returns:
        float64 `[columns]` each.
    """
    moments = batch_moments(values, np.array([0, len(values)]))
    return {name: rows[0] for name, rows in moments.items()}


def batch_moments(values: Float64, edges: Int64) -> dict[str, Float64]:
    """Return the moments of present values of many trials that lie one after another.

    Deviations are taken from the mean, and the mean itself from deviations from the first value:
    sums of raw squares lose all digits where a level is large against its spread. A trial's bits
    do not depend on what lies beside it.

    Args:
        values: `[rows, columns]` float64, NaN where missing.
        edges: `[trials + 1]`, the rows where trials begin; none is empty.

    Returns:
        `count`, `shift`, `sum`, `sum_sq` (of x - shift), `min`, `max`: float64
        `[trials, columns]`; `shift` 0 and `min`, `max` NaN where nothing is present.
    """
    kernels = loaded_kernels()
    if kernels is not None:
        measured: dict[str, Float64] = kernels.measure_moments(values, edges)
        return measured
    shape = (len(edges) - 1, values.shape[1])
    moments = {name: np.empty(shape) for name in MOMENTS}
    # Column by column in contiguous memory: reduceat along rows of a matrix takes 5 times longer.
    for place in range(values.shape[1]):
        own = _column_moments(np.ascontiguousarray(values[:, place]), edges)
        for name, column in own.items():
            moments[name][:, place] = column
    return moments


def fold_sums(moments: Mapping[str, Float64]) -> dict[str, Float64]:
    """Return moments about the mean itself, so that every `sum` is 0.

    All that is made of moments are the means `shift + sum / count` and the squares about them,
    `sum_sq - sum ** 2 / count`: those stay as they are, bit for bit.

    Args:
        moments: `[trials, columns]` each, as `batch_moments` returns them.
    """
    n = np.maximum(moments["count"], 1.0)
    return {
        **moments,
        "shift": moments["shift"] + moments["sum"] / n,
        "sum": np.zeros_like(moments["sum"]),
        "sum_sq": moments["sum_sq"] - moments["sum"] ** 2 / n,
    }


def _column_moments(column: Float64, edges: Int64) -> dict[str, Float64]:
    starts, n_rows = edges[:-1], np.diff(edges)
    missing = np.isnan(column)
    low = high = column
    count, first = n_rows.astype(np.float64), column[starts]
    holes = bool(missing.any())
    if holes:
        count -= np.add.reduceat(missing, starts, dtype=np.float64)
        first = _first_present(column, missing, edges)
        low, high = (np.where(missing, fill, column) for fill in (np.inf, -np.inf))
    n = np.maximum(count, 1.0)
    deviation = column - np.repeat(first, n_rows)
    if holes:
        deviation[missing] = 0.0
    shift = first + np.add.reduceat(deviation, starts) / n
    np.subtract(column, np.repeat(shift, n_rows), out=deviation)
    if holes:
        deviation[missing] = 0.0
    nothing = count == 0
    return {
        "count": count,
        "shift": shift,
        "sum": np.add.reduceat(deviation, starts),
        "sum_sq": np.add.reduceat(np.multiply(deviation, deviation, out=deviation), starts),
        # Of two zeros, the one without a sign: else which one depends on the processor.
        "min": np.where(nothing, np.nan, np.minimum.reduceat(low, starts)) + 0.0,
        "max": np.where(nothing, np.nan, np.maximum.reduceat(high, starts)) + 0.0,
    }


def _first_present(column: Float64, missing: Bool, edges: Int64) -> Float64:
    """Return the first present value of each trial; 0 where there is none."""
    present = np.append(np.flatnonzero(~missing), len(column))
    place = present[np.searchsorted(present, edges[:-1])]
    there = place < edges[1:]
    return np.where(there, column[np.where(there, place, 0)], 0.0)


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
    low, high = (f.reduce(values, axis=0) for f in (np.fmin, np.fmax))
    return _within_reach(affine, low, high)


def _within_reach(affine: Affine, low: Float64, high: Float64) -> Affine:
    """Widen scales in which some value would be infinite: an impulse among all but equal ones."""
    with np.errstate(invalid="ignore"):
        reach = np.fmax(np.abs(low - affine.offset), np.abs(high - affine.offset))
    too_far = affine.scale * _LARGEST <= reach
    return Affine(affine.offset, np.where(too_far, reach, affine.scale))


def trial_affine(entries: Sequence[Entry], values: Float64) -> Affine:
    """Return the affine of one trial: its own for scopes `trial` and `prefix(n)`, else identity.

    Args:
        entries: Method and scope of each channel.
        values: `[rows, channels]` float64, all segments of the trial.
    """
    affine = batch_affine(entries, values, np.array([0, len(values)]))
    if affine is None:
        return identity_affine(values.shape[1])
    return Affine(affine.offset[0], affine.scale[0])


def batch_affine(
    entries: Sequence[Entry],
    values: Float64,
    edges: Int64,
    moments: Mapping[str, Float64] | None = None,
) -> Affine | None:
    """Return the affines of many trials that lie one after another, `[trials, channels]`.

    Args:
        entries: Method and scope of each channel.
        values: `[rows, channels]` float64, NaN where missing.
        edges: `[trials + 1]`, the rows where trials begin; none is empty.
        moments: Those of the same trials, `[trials, >= channels]`, where they are known already.

    Returns:
        None if no channel has scope `trial` or `prefix(n)`.
    """
    chosen: dict[Entry, list[int]] = {}
    for place, entry in enumerate(entries):
        if scope_kind(entry[1]) in ("trial", "prefix"):
            chosen.setdefault(entry, []).append(place)
    if not chosen:
        return None
    shape = (len(edges) - 1, len(entries))
    offset, scale = np.zeros(shape), np.ones(shape)
    for (method, scope), places in chosen.items():
        by_moments = scope == "trial" and method != "robust" and moments is not None
        part = values if by_moments else values[:, places]  # those know all that is needed
        if scope != "trial":
            own = _prefix_affine(method, part, edges, int(scope[len("prefix(") : -1]))
        else:
            known = {name: m[:, places] for name, m in moments.items()} if moments else None
            own = _own_affine(method, part, edges, known)
        offset[:, places], scale[:, places] = own.offset, own.scale
    return Affine(offset, scale)


def _own_affine(
    method: str, values: Float64, edges: Int64, moments: Mapping[str, Float64] | None = None
) -> Affine:
    """Return the affine of each trial by all its rows, `[trials, columns]`."""
    if method == "robust":
        own = [affine_from_values(values[a:b]) for a, b in itertools.pairwise(edges.tolist())]
        return Affine(np.stack([a.offset for a in own]), np.stack([a.scale for a in own]))
    moments = batch_moments(values, edges) if moments is None else moments
    n = np.maximum(moments["count"], 1.0)
    spread = moments["sum_sq"] - moments["sum"] ** 2 / n
    mean, sd = moments["shift"] + moments["sum"] / n, np.sqrt(np.maximum(spread / n, 0.0))
    return affine_from_moments(method, {**moments, "mean": mean, "sd": sd})


def _prefix_affine(method: str, values: Float64, edges: Int64, n_first: int) -> Affine:
    """Return the affine of each trial by its first rows, `[trials, columns]`."""
    counts = np.minimum(np.diff(edges), n_first)
    within = np.append(0, np.cumsum(counts))
    rows = np.arange(within[-1]) + np.repeat(edges[:-1] - within[:-1], counts)
    affine = _own_affine(method, values[rows], within)
    low, high = (f.reduceat(values, edges[:-1], axis=0) for f in (np.fmin, np.fmax))
    return _within_reach(affine, low, high)


def identity_affine(n_channels: int) -> Affine:
    """Return the affine that changes nothing."""
    return Affine(np.zeros(n_channels), np.ones(n_channels))


def _defined(offset: Float64, scale: Float64) -> Affine:
    """A constant channel has no scale and an empty one no offset: they become 0, and stay NaN."""
    usable = np.isfinite(scale) & (scale > _SMALLEST)
    return Affine(np.where(np.isfinite(offset), offset, 0.0), np.where(usable, scale, 1.0))


def coarse_channels(merged: Mapping[str, Float64], tolerance: float = 1e-3) -> Float64:
    """Return, per channel, how coarse float32 is against its spread, or 0 where it is fine.

    A value stored in physical units keeps 24 bits: at 1.7e9 neighbours are 128 apart.
    """
    largest = np.nanmax(np.abs(np.stack([merged["min"], merged["max"]])), axis=0, initial=0.0)
    spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
    ratio = np.divide(spacing, merged["sd"], out=np.zeros_like(spacing), where=merged["sd"] > 0)
    return np.where(ratio > tolerance, ratio, 0.0)
