"""Normalization constants of the train trials: of all, of groups, of regimes (SPEC section 11).

They depend on the moments of the train trials in id order, or on their stored rows in that order,
and on no batching or history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.normalize import (
    MOMENTS,
    Affine,
    affine_from_moments,
    affine_from_values,
    batch_moments,
    identity_affine,
    merge_moments,
)
from pipeline.regimes import find_regimes
from pipeline.sections import RegimeSpec
from pipeline.trainrows import TrainRows
from pipeline.trials import Bool, Float32, Float64, Int64
from shards.affine import Entry, channels_of, describe_entries, group_attribute, scope_kind
from shards.regimes import nearest_centre

Moments = Mapping[str, Float64]


def stack_moments(trials: pa.Table) -> dict[str, Float64]:
    """Return the moments of trials, `[trials, channels + target columns]` each."""
    return {name: _lists(trials[name]) for name in MOMENTS}


def _lists(column: pa.ChunkedArray) -> Float64:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(column), -1)


def fit_normalization(
    entries: Sequence[Entry],
    regimes: RegimeSpec | None,
    names: Sequence[str],
    train: pa.Table,
    rows: TrainRows,
    frozen: Mapping[str, Any],
) -> dict[str, Any]:
    """Return `normalize` of `fit.json`.

    Args:
        entries: Method and scope of each channel.
        regimes: How regimes are found, where a channel has that scope.
        names: Of the channels.
        train: The train trials, id-sorted; some, if any channel needs statistics of train.
        rows: Their stored rows.
        frozen: `normalize` of an earlier fit, or nothing: quartiles, groups with any, and regimes
            are taken from it, because they do not follow from moments.

    Raises:
        InvalidSpecError: If there are fewer different rows than regimes.
    """
    fit = describe_entries(entries)
    kinds = {scope_kind(scope) for _, scope in entries} & {"train", "group", "regime"}
    if not kinds:
        return fit
    moments = stack_moments(train)
    merged = merge_moments(moments)
    places = np.concatenate([channels_of(entries, kind) for kind in sorted(kinds)])
    quartiles = _frozen_quartiles(entries, frozen)
    general = _fit_affine(
        entries, places, merged, lambda c: rows.sample(np.array([c]))[:, 0], frozen=quartiles
    )
    fit |= {**_as_lists(general), "n_trials": train.num_rows}
    scopes = sorted({scope for _, scope in entries if scope_kind(scope) == "group"})
    if scopes:
        fit["groups"] = {
            group_attribute(scope): _frozen_group(entries, scope, frozen)
            or _fit_groups(entries, scope, train, moments, rows, general)
            for scope in scopes
        }
    if regimes is not None and "regime" in kinds:
        fit["regimes"] = frozen.get("regimes") or _fit_regimes(
            entries, regimes, names, merged, rows, general
        )
    return fit


def _frozen_quartiles(entries: Sequence[Entry], frozen: Mapping[str, Any]) -> dict[int, Affine]:
    """Return the affine of each channel that has quartiles, as an earlier build fitted them."""
    if "offset" not in frozen:
        return {}
    offset, scale = (np.asarray(frozen[name], np.float64) for name in ("offset", "scale"))
    return {
        place: Affine(offset[[place]], scale[[place]])
        for place, (method, _) in enumerate(entries)
        if method == "robust"
    }


def _frozen_group(entries: Sequence[Entry], scope: str, frozen: Mapping[str, Any]) -> Any:
    """Return what an earlier build fitted for the groups of a scope, if quartiles are among it."""
    if not any(entry == ("robust", scope) for entry in entries):
        return None
    return frozen.get("groups", {}).get(group_attribute(scope))


def _fit_affine(
    entries: Sequence[Entry],
    places: Int64,
    merged: Moments,
    column_of: Callable[[int], Float32],
    general: Affine | None = None,
    frozen: Mapping[int, Affine] | None = None,
) -> Affine:
    """Return the affine of some channels; the identity for the others.

    Args:
        entries: Method and scope of each channel.
        places: The channels.
        merged: Moments of all rows.
        column_of: The rows of one channel, for quartiles: those do not merge.
        general: What a channel without any value gets.
        frozen: Channels whose affine is known.
    """
    affine = identity_affine(len(entries))
    for place in places.tolist():
        method = entries[place][0]
        if frozen and place in frozen:
            own = frozen[place]
        elif general is not None and merged["count"][place] == 0:
            own = Affine(general.offset[[place]], general.scale[[place]])
        elif method == "robust":
            own = affine_from_values(column_of(place).astype(np.float64)[:, None])
        else:
            own = affine_from_moments(method, {name: m[[place]] for name, m in merged.items()})
        affine.offset[place], affine.scale[place] = own.offset[0], own.scale[0]
    return affine


def _as_lists(affine: Affine) -> dict[str, Any]:
    return {"offset": affine.offset.tolist(), "scale": affine.scale.tolist()}


def _as_tables(affines: Sequence[Affine]) -> dict[str, Any]:
    return {
        "offset": [affine.offset.tolist() for affine in affines],
        "scale": [affine.scale.tolist() for affine in affines],
    }


def group_values(trials: pa.Table, attribute: str) -> list[str | None]:
    """Return an attribute of every trial."""
    values: list[str | None] = trials["attributes"].combine_chunks().field(attribute).to_pylist()
    return values


def _fit_groups(
    entries: Sequence[Entry],
    scope: str,
    train: pa.Table,
    moments: Moments,
    rows: TrainRows,
    general: Affine,
) -> dict[str, Any]:
    """Return the constants of each value of an attribute, values in order."""
    places = channels_of(entries, scope)
    members: dict[str, list[int]] = {}
    for number, value in enumerate(group_values(train, group_attribute(scope))):
        if value is not None:
            members.setdefault(value, []).append(number)
    values, affines = sorted(members), []
    for value in values:
        own = np.array(members[value])
        merged = merge_moments({name: m[own] for name, m in moments.items()})
        sample = _columns_of(rows, own)
        affines.append(_fit_affine(entries, places, merged, sample, general))
    n_trials = [len(members[value]) for value in values]
    return {"values": values, "n_trials": n_trials, **_as_tables(affines)}


def _columns_of(rows: TrainRows, trials: Int64) -> Callable[[int], Float32]:
    return lambda column: rows.sample(np.array([column]), trials)[:, 0]


def _fit_regimes(
    entries: Sequence[Entry],
    spec: RegimeSpec,
    names: Sequence[str],
    merged: Moments,
    rows: TrainRows,
    general: Affine,
) -> dict[str, Any]:
    """Find regimes, and return their centres and the constants of the rows in each."""
    named = np.array([list(names).index(name) for name in spec.channels])
    sd = merged["sd"][named]
    spread = np.where(sd > 0, sd, 1.0)
    sample = rows.sample(named)
    centres = find_regimes(sample, spread, spec.channels, count=spec.count, seed=spec.seed)
    inverse = (1.0 / spread).astype(np.float32)

    def decide(some: Float32) -> Int64:
        return nearest_centre(some, centres, inverse)

    moments, n_rows = _measure_regimes(rows, lambda block: decide(block[:, named]), spec.count)
    regime_of = decide(sample)
    places, affines = channels_of(entries, "regime"), []
    for number in range(spec.count):
        own = merge_moments({name: m[:, number] for name, m in moments.items()})
        column_of = _rows_in(rows, regime_of == number)
        affines.append(_fit_affine(entries, places, own, column_of, general))
    return {
        "channels": list(spec.channels),
        "centres": centres.astype(np.float64).tolist(),
        "spread": spread.tolist(),
        "n_rows": n_rows.tolist(),
        **_as_tables(affines),
    }


def _rows_in(rows: TrainRows, chosen: Bool) -> Callable[[int], Float32]:
    return lambda column: rows.sample(np.array([column]))[chosen, 0]


def _measure_regimes(
    rows: TrainRows, decide: Callable[[Float32], Int64], count: int
) -> tuple[Moments, Int64]:
    """Return the moments of each block and regime, `[blocks, regimes, channels]`, and rows."""
    parts, n_rows = [], np.zeros(count, np.int64)
    for block in rows.blocks():
        regime = decide(block)
        n = np.bincount(regime, minlength=count + 1)[:count]
        # Rows in no regime come last, and are cut off.
        order = np.argsort(regime, kind="stable")[: n.sum()]
        parts.append(_moments_by_regime(block[order].astype(np.float64), n))
        n_rows += n
    return {name: np.stack([part[name] for part in parts]) for name in MOMENTS}, n_rows


def _moments_by_regime(values: Float64, n_rows: Int64) -> Moments:
    """Return the moments of consecutive rows, `[regimes, channels]`; nothing where no row is."""
    there = np.flatnonzero(n_rows)
    moments = {name: np.zeros((len(n_rows), values.shape[1])) for name in MOMENTS}
    for name in ("min", "max"):
        moments[name][:] = np.nan
    if len(there):
        own = batch_moments(values, np.append(0, np.cumsum(n_rows[there])))
        for name in MOMENTS:
            moments[name][there] = own[name]
    return moments
