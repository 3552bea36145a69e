"""Which trial is on which side: a pure function of ids and attributes, before any window.

Every method maps *groups* to splits: trials by default, else the values of `split.by`. A group
can therefore never be torn, whatever the method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from pipeline.intervals import PURGED, TRAIN, Spans, by_interval
from shards.errors import InvalidSpecError

if TYPE_CHECKING:
    from pipeline.sections import SplitSpec

TEST = "test"
Attributes = Mapping[str, Sequence[str | None]]


def assign_splits(
    ids: Sequence[str], attributes: Attributes, spec: SplitSpec, *, spans: Spans | None = None
) -> list[str]:
    """Return the split of each row.

    Args:
        ids: Trial id of each row. Rows of one id are one trial: they get one split, and count
            once. Their attributes are those of the first of them.
        attributes: Attribute name -> value per row.
        spec: The method.
        spans: `[rows, 2]`, first and last time of each row's data, for `method: time`: seconds
            since 1970 for dates, else units of the time column.

    Raises:
        InvalidSpecError: If the method cannot be carried out on these trials.
    """
    if not ids:
        return []
    first: dict[str, int] = {}
    for row, trial in enumerate(ids):
        first.setdefault(trial, row)
    trials, rows = list(first), list(first.values())
    known = {name: [values[row] for row in rows] for name, values in attributes.items()}
    by = trials if spec.by == "trial" else _column(trials, known, spec.by, "split.by")
    groups = dict(zip(trials, by, strict=True))
    strata = _strata(groups, known, spec)
    if spec.method == "attribute":
        told = _column(trials, known, str(spec.attribute), "split.attribute")
        side = _as_told(by, told, spec)
    elif spec.method == "time":
        side = by_interval([groups[trial] for trial in ids], spec, spans)
        advice = "Move the first boundary later, lower split.purge, or split by something finer."
        _with_train(side, "split.boundaries", advice)
    else:
        side = _by_hash(strata, spec)
    side = _carve_validation(side, strata, spec)
    return [side[groups[trial]] for trial in ids]


def split_names(assigned: Sequence[str], spec: SplitSpec) -> tuple[str, ...]:
    """Return the splits in the order of their codes: as written, then by name, `purged` last."""
    written = list(spec.fractions) if spec.method in ("hash", "exact") else [TRAIN]
    if spec.validation is not None:
        written.append(spec.validation.name)
    if spec.method == "time":
        written += spec.boundaries
    elif spec.method in ("folds", "leave_one_out"):
        written.append(TEST)
    rest = sorted(set(assigned), key=lambda name: (name == PURGED, name))
    return tuple(dict.fromkeys([*written, *rest]))


def _column(trials: Sequence[str], attributes: Attributes, name: str, where: str) -> list[str]:
    """Return the attribute's value of each trial; `where` asked for it."""
    values = attributes.get(name, [None] * len(trials))
    without = [trial for trial, value in zip(trials, values, strict=True) if value is None]
    if without:
        raise InvalidSpecError(
            f"{where}: {len(without)} of {len(values)} trials have no attribute {name!r}, such as "
            f"{without[0]!r}; this data set has: {', '.join(sorted(attributes)) or 'none'}. Name a "
            "group in source.trial_id that always matches, or add it under attributes."
        )
    return [value for value in values if value is not None]


def _strata(groups: Mapping[str, str], attributes: Attributes, spec: SplitSpec) -> dict[str, str]:
    """Return each group's stratum: the value that most of its trials have, ties to the smallest."""
    if spec.stratify is None:
        return dict.fromkeys(groups.values(), "")
    votes: dict[str, Counter[str]] = {}
    values = _column(list(groups), attributes, spec.stratify, "split.stratify")
    for group, value in zip(groups.values(), values, strict=True):
        votes.setdefault(group, Counter())[value] += 1
    return {
        group: min(counts.items(), key=lambda vote: (-vote[1], vote[0]))[0]
        for group, counts in votes.items()
    }


def _unit(group: str, seed: int, use: str = "split") -> float:
    """Return a number in [0, 1) that depends on the group and the seed alone."""
    return xxhash.xxh3_64_intdigest(f"{use}:{seed}:{group}".encode()) / 2**64


def _by_hash(strata: Mapping[str, str], spec: SplitSpec) -> dict[str, str]:
    if spec.method == "hash":
        return _cut(list(strata), spec)
    if spec.method == "exact":
        return _share_out(strata, spec.fractions, spec.seed, "split")
    if spec.method == "folds":
        return _deal(strata, spec)
    return _leave_one_out(list(strata), spec)


def _cut(groups: Sequence[str], spec: SplitSpec) -> dict[str, str]:
    names = [name for name, share in spec.fractions.items() if share > 0]
    edges = np.cumsum([spec.fractions[name] for name in names])[:-1]
    units = np.array([_unit(group, spec.seed) for group in groups])
    places = np.searchsorted(edges, units, side="right")
    return {group: names[place] for group, place in zip(groups, places, strict=True)}


def _by_stratum(strata: Mapping[str, str], seed: int, use: str) -> list[list[str]]:
    """Return the groups of each stratum in the order of their hash, strata in that of values."""
    ordered = sorted(strata, key=lambda group: (strata[group], _unit(group, seed, use), group))
    return [list(groups) for _, groups in groupby(ordered, key=strata.__getitem__)]


def _share_out(
    strata: Mapping[str, str], fractions: Mapping[str, float], seed: int, use: str
) -> dict[str, str]:
    """Cut every stratum at whole counts, by largest remainder.

    What rounding has kept from a split in one stratum is added to its claim in the next, because
    many small strata would otherwise all round the same way and leave small splits empty. Within
    each stratum a split still gets its share rounded down or up.
    """
    names, shares = list(fractions), np.array(list(fractions.values()))
    owed = np.zeros(len(names))
    side: dict[str, str] = {}
    for groups in _by_stratum(strata, seed, use):
        exact = shares * len(groups)
        counts = np.floor(exact + 1e-9).astype(int)
        owed += exact - counts
        claims = np.where(exact - counts > 1e-9, owed, -np.inf)
        rounded_up = np.argsort(-claims, kind="stable")[: len(groups) - counts.sum()]
        counts[rounded_up] += 1
        owed[rounded_up] -= 1
        side.update(zip(groups, np.repeat(names, counts).tolist(), strict=True))
    return side


def _deal(strata: Mapping[str, str], spec: SplitSpec) -> dict[str, str]:
    """Deal groups like cards, stratum after stratum: folds are even in each and in all."""
    if spec.folds > len(strata):
        raise InvalidSpecError(
            f"split.folds: got {spec.folds}, but there are {len(strata)} groups (split.by "
            f"{spec.by!r}), so a fold would be empty. Lower split.folds, or group by something "
            "finer."
        )
    ordered = [group for groups in _by_stratum(strata, spec.seed, "split") for group in groups]
    return {
        group: TEST if place % spec.folds == spec.fold else TRAIN
        for place, group in enumerate(ordered)
    }


def _leave_one_out(groups: Sequence[str], spec: SplitSpec) -> dict[str, str]:
    if spec.held_out not in groups:
        some = ", ".join(map(repr, sorted(groups)[:5])) + (", ..." if len(groups) > 5 else "")
        raise InvalidSpecError(
            f"split.held_out: got {spec.held_out!r}; wanted a value of {spec.by!r}: {some}."
        )
    side = {group: TEST if group == spec.held_out else TRAIN for group in groups}
    advice = f"{spec.held_out!r} is the only value of {spec.by!r}. Split by something finer."
    return _with_train(side, "split.held_out", advice)


def _as_told(groups: Sequence[str], told: Sequence[str], spec: SplitSpec) -> dict[str, str]:
    unknown = sorted(set(told) - set(spec.names)) if spec.names else ()
    if unknown:
        raise InvalidSpecError(
            f"split.names: attribute {spec.attribute!r} has the value {unknown[0]!r}, which names "
            f"no split; known: {', '.join(spec.names)}."
        )
    side: dict[str, str] = {}
    for group, value in zip(groups, told, strict=True):
        split = spec.names.get(value, value)
        if side.setdefault(group, split) != split:
            raise InvalidSpecError(
                f"split.by: {spec.by} {group!r} has trials in {side[group]!r} and in {split!r}, by "
                f"attribute {spec.attribute!r}; wanted one split per {spec.by}. Drop split.by to "
                "follow the attribute, or choose another method."
            )
    return side


def _carve_validation(
    side: dict[str, str], strata: Mapping[str, str], spec: SplitSpec
) -> dict[str, str]:
    """Move a share of one split's groups: by hash, or by exact counts per stratum."""
    carve = spec.validation
    if carve is None:
        return side
    if carve.name == carve.of:
        raise InvalidSpecError(
            f"split.validation.name: got {carve.name!r}, the split it is taken from; wanted "
            "another name, such as val."
        )
    there = set(side.values())
    if spec.method not in ("hash", "exact") and carve.of not in there:
        raise InvalidSpecError(
            f"split.validation.of: no trial is in split {carve.of!r}; there are: "
            f"{', '.join(sorted(there))}."
        )
    within = {group: strata[group] for group, split in side.items() if split == carve.of}
    if spec.stratify is not None:
        shares = {carve.name: carve.fraction, carve.of: 1 - carve.fraction}
        carved = side | _share_out(within, shares, spec.seed, "validation")
    else:
        taken = [g for g in within if _unit(g, spec.seed, "validation") < carve.fraction]
        carved = side | dict.fromkeys(taken, carve.name)
    if spec.method not in ("time", "folds", "leave_one_out"):
        return carved
    return _with_train(
        carved, "split.validation.fraction", "Lower it, or split by something finer."
    )


def _with_train(side: dict[str, str], where: str, advice: str) -> dict[str, str]:
    if TRAIN not in side.values():
        counts = ", ".join(f"{name} {n:,}" for name, n in sorted(Counter(side.values()).items()))
        raise InvalidSpecError(f"{where}: nothing is left to train on (groups: {counts}). {advice}")
    return side
