"""New columns from SQL expressions, evaluated on one trial at a time.

The frame holds one trial, so an aggregate such as `max(t)` cannot see another one (law 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import polars.selectors as cs

from pipeline.trials import RefusedError, quote
from shards.errors import InvalidSpecError

VERSION = 1


def parse_expressions(expressions: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return the polars expressions.

    Raises:
        InvalidSpecError: If one is not SQL that polars understands.
    """
    parsed = {}
    for name, given in expressions.items():
        text = given if isinstance(given, str) else given.sql
        try:
            parsed[name] = pl.sql_expr(text)
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise InvalidSpecError(
                f"derive.{name}: {text!r} is no SQL expression that polars knows: {error}"
            ) from error
    return parsed


def source_columns(expressions: Mapping[str, pl.Expr]) -> set[str]:
    """Return the columns that must come from somewhere else than `derive` itself."""
    needed: set[str] = set()
    derived: set[str] = set()
    for name, expression in expressions.items():
        needed |= set(expression.meta.root_names()) - derived
        derived.add(name)
    return needed


def derive_columns(
    frame: pl.DataFrame, expressions: Mapping[str, pl.Expr], attributes: Mapping[str, str]
) -> pl.DataFrame:
    """Return the trial's frame with the derived columns as Float64, in the order given.

    Args:
        frame: One trial.
        expressions: New column -> expression.
        attributes: Available as constant columns: numbers where they read as numbers.

    Raises:
        RefusedError: `derive_failed` or `infinite`, naming the column.
    """
    if not expressions:
        return frame
    # NaN would satisfy `x > 0` and poison avg(x); SQL's word for a missing value is NULL. An
    # attribute that is named like the text column it came from takes its place as a number.
    literals = [_literal(text).alias(name) for name, text in attributes.items()]
    frame = frame.with_columns(cs.float().fill_nan(None), *literals)
    for level in _levels(expressions):
        frame = _evaluate(frame, level)
    for name in expressions:
        infinite = frame[name].is_infinite()
        if infinite.any():
            row = int(infinite.arg_max() or 0)
            raise RefusedError(
                "infinite", f"derive.{name} is infinite at row {row + 1}.", column=name
            )
    return frame


def _levels(expressions: Mapping[str, pl.Expr]) -> list[dict[str, pl.Expr]]:
    """Return the expressions in groups that can be evaluated at once, in the order given.

    A call into polars costs far more than a short trial's arithmetic. A group ends where an
    expression reads, or gives anew, a column that the group itself makes.
    """
    levels: list[dict[str, pl.Expr]] = [{}]
    for name, expression in expressions.items():
        made = levels[-1]
        if name in made or made.keys() & set(expression.meta.root_names()):
            levels.append({})
        levels[-1][name] = expression
    return levels


def _evaluate(frame: pl.DataFrame, level: Mapping[str, pl.Expr]) -> pl.DataFrame:
    columns = {name: e.cast(pl.Float64).fill_nan(None) for name, e in level.items()}
    try:
        return frame.with_columns(**columns)
    except pl.exceptions.PolarsError as error:
        if len(level) > 1:  # one by one, to name the culprit
            for name, expression in level.items():
                frame = _evaluate(frame, {name: expression})
            return frame
        text = quote(str(error).split("\n", 1)[0])
        raise RefusedError(
            "derive_failed", f"derive.{next(iter(level))} failed on this trial: {text}.",
            column=next(iter(level)),
        ) from error  # fmt: skip


def _literal(text: str) -> pl.Expr:
    try:
        return pl.lit(float(text))
    except ValueError:
        return pl.lit(text)
