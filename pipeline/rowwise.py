"""Derived columns of many trials at once, where every one looks at its own row alone.

Joined, an aggregate would see other trials (law 1); an expression whose reach is the row cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.derive import Derivations, derive_columns, reach_of
from pipeline.files import RefusedError
from pipeline.sections import Sql
from pipeline.trials import Float64, Int64, Table

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def is_row_wise(derivations: Derivations) -> bool:
    """Return whether derived columns are expressions of single rows, all of them."""
    if not all(isinstance(given, Sql) for given in derivations.given.values()):
        return False
    return set(reach_of(derivations).values()) <= {"row"}


def derive_rows(
    recipe: Recipe,
    tables: Sequence[Table],
    numbers: Float64,
    sizes: Int64,
    known: Sequence[Mapping[str, str | None]],
) -> dict[str, Float64] | None:
    """Return the derived columns of trials that lie one after another.

    Args:
        recipe: Of a data set whose derivations are row-wise.
        tables: One trial each.
        numbers: `[rows, names]` of all of them.
        sizes: Rows of each.
        known: Attributes of each.

    Returns:
        Column -> float64 `[rows]`, NaN where missing; None where trials must be looked at one by
        one, because an attribute is not of one kind, or an expression fails on some row.
    """
    read = frozenset[str]().union(*recipe.derivations.inputs.values())
    columns: dict[str, pl.Series] = {}
    for name in recipe.derive_inputs:
        columns[name] = (
            pl.concat([table.text[name] for table in tables])
            if name in tables[0].text.columns
            else pl.Series(numbers[:, tables[0].names.index(name)])
        )
    for name in read & set(recipe.attribute_names):
        constant = _constants([trial.get(name) for trial in known], sizes)
        if constant is None:
            return None
        columns[name] = constant
    try:
        made = derive_columns(pl.DataFrame(columns), recipe.derivations, {})
    except RefusedError:
        return None
    return {name: made[name].to_numpy() for name in recipe.derivations}


def _constants(texts: Sequence[str | None], sizes: Int64) -> pl.Series | None:
    """Return an attribute row by row: numbers if all trials' texts read as numbers, or none do."""
    numbers: list[float] = []
    for text in texts:
        if text is None:
            return None
        try:
            numbers.append(float(text))
        except ValueError:
            continue
    if len(numbers) == len(texts):
        return pl.Series(np.repeat(numbers, sizes)) if np.isfinite(numbers).all() else None
    if numbers:
        return None
    return pl.Series(np.repeat(np.array(texts, dtype=object), sizes), dtype=pl.String)
