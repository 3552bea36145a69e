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
    for name, text in expressions.items():
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
    frame = frame.with_columns(cs.float().fill_nan(None))
    frame = frame.with_columns(_literal(text).alias(name) for name, text in attributes.items())
    for name, expression in expressions.items():
        try:
            column = expression.cast(pl.Float64).fill_nan(None)
            frame = frame.with_columns(column.alias(name))
        except pl.exceptions.PolarsError as error:
            text = quote(str(error).split("\n", 1)[0])
            raise RefusedError(
                "derive_failed", f"derive.{name} failed on this trial: {text}.", column=name
            ) from error
        infinite = frame[name].is_infinite()
        if infinite.any():
            row = int(infinite.arg_max() or 0)
            raise RefusedError(
                "infinite", f"derive.{name} is infinite at row {row + 1}.", column=name
            )
    return frame


def _literal(text: str) -> pl.Expr:
    try:
        return pl.lit(float(text))
    except ValueError:
        return pl.lit(text)
