"""Which trial is on which side: a pure function of ids and attributes, before any window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from shards.errors import InvalidSpecError

if TYPE_CHECKING:
    from pipeline.sections import SplitSpec

VERSION = 1


def assign_splits(
    ids: Sequence[str], attributes: Mapping[str, Sequence[str | None]], spec: SplitSpec
) -> list[str]:
    """Return the split of each trial.

    Args:
        ids: Trial ids.
        attributes: Attribute name -> value per trial.
        spec: The method.

    Raises:
        InvalidSpecError: If an attribute is unknown, or a value of it names no split.
    """
    groups = list(ids)
    if spec.by != "trial":
        groups = _column(ids, attributes, spec.by, "split.by")
    if spec.method == "hash":
        split = _cut([_unit(group, spec.seed) for group in groups], spec.fractions)
    elif spec.method == "exact":
        split = _cut_exactly(groups, spec)
    else:
        sides = _column(ids, attributes, str(spec.attribute), "split.attribute")
        split = _named(sides, spec)
    return _carve_validation(groups, split, spec)


def split_names(assigned: Sequence[str], spec: SplitSpec) -> tuple[str, ...]:
    """Return the splits in the order of their codes: as written, then by name."""
    written = list(spec.fractions) if spec.method != "attribute" else ["train"]
    if spec.validation is not None:
        written.append(spec.validation.name)
    return tuple(dict.fromkeys([*written, *sorted(set(assigned))]))


def _column(
    ids: Sequence[str], attributes: Mapping[str, Sequence[str | None]], name: str, where: str
) -> list[str]:
    values = attributes.get(name, [None] * len(ids))
    without = [trial_id for trial_id, value in zip(ids, values, strict=True) if value is None]
    if without:
        raise InvalidSpecError(
            f"{where}: {len(without)} of {len(ids)} trials have no attribute {name!r}, such as "
            f"{without[0]!r}; this data set has: {', '.join(sorted(attributes)) or 'none'}. Name a "
            "group in source.trial_id that always matches, or add it under attributes."
        )
    return [value for value in values if value is not None]


def _unit(group: str, seed: int, use: str = "split") -> float:
    """Return a number in [0, 1) that depends on the group and the seed alone."""
    return xxhash.xxh3_64_intdigest(f"{use}:{seed}:{group}".encode()) / 2**64


def _cut(units: Sequence[float], fractions: Mapping[str, float]) -> list[str]:
    names = [name for name, share in fractions.items() if share > 0]
    edges = np.cumsum([fractions[name] for name in names])[:-1]
    return [names[i] for i in np.searchsorted(edges, np.asarray(units), side="right")]


def _cut_exactly(groups: Sequence[str], spec: SplitSpec) -> list[str]:
    """Order groups by their hash and cut at whole counts (largest remainder)."""
    ordered = sorted(set(groups), key=lambda group: (_unit(group, spec.seed), group))
    names = list(spec.fractions)
    exact = np.array([spec.fractions[name] for name in names]) * len(ordered)
    counts = np.floor(exact + 1e-9).astype(int)
    remainders = np.argsort(-(exact - counts), kind="stable")
    counts[remainders[: len(ordered) - counts.sum()]] += 1
    side = dict(zip(ordered, np.repeat(names, counts).tolist(), strict=True))
    return [side[group] for group in groups]


def _named(values: Sequence[str], spec: SplitSpec) -> list[str]:
    if not spec.names:
        return list(values)
    unknown = sorted(set(values) - set(spec.names))
    if unknown:
        raise InvalidSpecError(
            f"split.names: attribute {spec.attribute!r} has the value {unknown[0]!r}, which names "
            f"no split; known: {', '.join(spec.names)}."
        )
    return [spec.names[value] for value in values]


def _carve_validation(groups: Sequence[str], split: Sequence[str], spec: SplitSpec) -> list[str]:
    carve = spec.validation
    if carve is None:
        return list(split)
    if spec.method == "attribute" and carve.of not in split:
        raise InvalidSpecError(
            f"split.validation.of: no trial is in split {carve.of!r}; there are: "
            f"{', '.join(sorted(set(split)))}."
        )
    return [
        carve.name
        if side == carve.of and _unit(group, spec.seed, "validation") < carve.fraction
        else side
        for group, side in zip(groups, split, strict=True)
    ]
