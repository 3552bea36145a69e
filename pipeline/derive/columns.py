"""The derived columns of one trial, computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import polars.selectors as cs

from pipeline.derive.features import Clock, difference, lag, rolling_mean
from pipeline.derive.plan import Derivations
from pipeline.derive.sql import FAILURES, literal
from pipeline.files import RefusedError, quote
from pipeline.hooks import call_hook
from pipeline.sections import Calendar, Derivation, Hook, SinceObserved, Sql
from pipeline.sections.inputs import Difference, Lag, RollingMean
from pipeline.trials import Float64


def derive_columns(
    frame: pl.DataFrame,
    derivations: Derivations,
    attributes: Mapping[str, str],
    clock: Clock | None = None,
) -> pl.DataFrame:
    """Return the trial's frame with the derived columns as Float64, null where missing.

    Args:
        frame: One trial: the columns of its file, Float64 (NaN or null where missing) and String.
        derivations: What to derive.
        attributes: Those that are read are constant columns: numbers where they read as numbers.
        clock: The trial's time axis; None: one segment without a time.

    Raises:
        RefusedError: `derive_failed`, `hook_failed` or `infinite`, naming the column.
    """
    if not derivations:
        return frame
    read = frozenset[str]().union(*derivations.inputs.values())
    # NaN would satisfy `x > 0` and poison avg(x); SQL's word for a missing value is NULL. An
    # attribute that is named like the text column it came from takes its place as a number.
    constants = [literal(text).alias(name) for name, text in attributes.items() if name in read]
    if derivations.parsed or derivations.hooks or constants:
        frame = frame.with_columns(cs.float().fill_nan(None), *constants)
    for level in derivations.levels:
        frame = _derive_level(frame, level, derivations, attributes, clock or Clock())
    for name in derivations:
        _check_finite(frame[name].to_numpy(), name)
    return frame


def _derive_level(
    frame: pl.DataFrame,
    level: tuple[str, ...],
    derivations: Derivations,
    attributes: Mapping[str, str],
    clock: Clock,
) -> pl.DataFrame:
    """Add the columns of one level; all of them see the frame as it was before."""
    new: list[pl.Expr | pl.Series] = []
    for name in level:
        given = derivations.given[name]
        if isinstance(given, Sql):
            new.append(derivations.parsed[name].cast(pl.Float64).fill_nan(None).alias(name))
            continue
        if isinstance(given, Hook):
            seen = _columns_for_hook(frame, name, given)
            values = call_hook(name, derivations.hooks[name], seen, _named(attributes, given))
        else:
            values = _feature(frame, name, given, clock)
        new.append(pl.Series(name, values, nan_to_null=True))
    if not any(isinstance(one, pl.Expr) or one.name in frame.columns for one in new):
        return frame.hstack([one for one in new if isinstance(one, pl.Series)])  # much cheaper
    try:
        return frame.with_columns(new)
    except FAILURES as error:
        raise _culprit(frame, new, error) from error


def _culprit(
    frame: pl.DataFrame, columns: list[pl.Expr | pl.Series], error: BaseException
) -> RefusedError:
    """Return the refusal of the expression that fails when evaluated alone."""
    name = ""
    for column in (one for one in columns if isinstance(one, pl.Expr)):
        name = column.meta.output_name()
        try:
            frame.with_columns(column)
        except FAILURES as alone:
            error = alone
            break
    text = quote(str(error).split("\n", 1)[0])
    return RefusedError(
        "derive_failed", f"derive.{name} failed on this trial: {text}.", column=name
    )


def _named(attributes: Mapping[str, str], hook: Hook) -> dict[str, str]:
    return {name: text for name, text in attributes.items() if name in hook.columns}


def _columns_for_hook(frame: pl.DataFrame, name: str, hook: Hook) -> pl.DataFrame:
    for column in hook.columns:
        _check_there(frame, name, column)
    return frame.select(hook.columns)


def _feature(frame: pl.DataFrame, name: str, given: Derivation, clock: Clock) -> Float64:
    match given:
        case Calendar():
            assert clock.time is not None, "check_calendar() lets no calendar pass without a time"
            assert clock.calendar_part is not None
            zone = given.zone or clock.zone
            return clock.calendar_part(clock.time, given.calendar, given.form, zone)
        case SinceObserved(since_observed=column):
            assert clock.since_observed is not None
            _check_there(frame, name, column)
            seen = frame[column]
            number = seen.dtype == pl.Float64
            observed = ~np.isnan(seen.to_numpy()) if number else seen.is_not_null().to_numpy()
            return clock.since_observed(observed[:, None], clock.time, clock.starts)[:, 0]
        case Lag(lag=column, rows=rows):
            return lag(_numbers(frame, name, column), rows, clock.starts)
        case Difference(difference=column, rows=rows):
            return difference(_numbers(frame, name, column), rows, clock.starts)
        case RollingMean(rolling_mean=column, rows=rows):
            return rolling_mean(_numbers(frame, name, column), rows, clock.starts)
        case _:
            raise TypeError(f"{type(given).__name__} is no ready-made feature")


def _check_there(frame: pl.DataFrame, name: str, column: str) -> None:
    if column not in frame.columns:
        raise RefusedError(
            "derive_failed",
            f"derive.{name} reads {column!r}, which this trial does not have: it is no column of "
            "the file, attribute or earlier derived column.",
            column=name,
        )


def _numbers(frame: pl.DataFrame, name: str, column: str) -> Float64:
    _check_there(frame, name, column)
    values = frame[column]
    if values.dtype != pl.Float64:
        raise RefusedError(
            "derive_failed",
            f"derive.{name} reads {column!r}, which is text; wanted numbers.",
            column=name,
        )
    return values.to_numpy()


def _check_finite(values: Float64, name: str) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        row = int(infinite.argmax())
        raise RefusedError("infinite", f"derive.{name} is infinite at row {row + 1}.", column=name)
