"""One trial as its source says it into clean series: time, derived columns, outliers, gaps.

Everything here sees one trial at a time, so nothing can leak from another one (law 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from pipeline.clean import check_share, clean_segments, clip_outliers
from pipeline.codes import check_statics, encode_columns
from pipeline.derive import Clock, derive_columns
from pipeline.files import RefusedError, quote
from pipeline.recipe import Recipe
from pipeline.sections import PerTrialTarget
from pipeline.shaped import ShapedTrial
from pipeline.spec import DatasetSpec
from pipeline.tables import runs_value
from pipeline.timeline import Arranged, arrange_rows, calendar_part, parse_time, since_observed
from pipeline.trials import Float64, Table

_LARGEST = float(np.finfo(np.float32).max)


def shape_trial(table: Table, recipe: Recipe) -> ShapedTrial:
    """Bring one trial to clean series.

    Raises:
        RefusedError: Whatever is wrong with it.
    """
    spec = recipe.spec
    attributes = read_attributes(table, recipe)
    arranged = _arrange(table, recipe)
    columns = _columns(table, recipe, attributes, arranged)
    raw = columns(recipe.channels)
    check_range(raw, recipe.channels)
    n_outliers = 0
    if spec.clean.outliers is not None:
        raw, n_outliers = clip_outliers(raw, recipe.channels, spec.clean.outliers)
    if recipe.since:  # never missing, so they have no say in how much is
        check_share(int(np.isnan(raw).sum()), raw.size, spec.clean)
        raw = _add_since(raw, recipe, arranged)
    cleaned = clean_segments(raw, arranged.starts, spec.clean)
    targets = columns(spec.target_columns())[cleaned.keep]
    check_range(targets, spec.target_columns())
    codes, categories = np.empty((len(cleaned.values), 0), np.uint16), list[list[str]]()
    if spec.categorical:
        kept = arranged.text_rows[cleaned.keep]
        codes, categories = encode_columns(table.text.select(list(spec.categorical)), kept)
    timed = len(arranged.time) > 0
    return ShapedTrial(
        table=table,
        attributes=attributes,
        label=label_of(spec, attributes),
        values=cleaned.values,
        observed=cleaned.observed,
        targets=targets,
        codes=codes,
        categories=categories,
        starts=cleaned.starts,
        counts={
            "n_dropped": len(raw) - len(cleaned.values),
            "n_merged": arranged.n_merged,
            "n_inserted": arranged.n_inserted,
            "n_outliers": n_outliers,
        },
        span=(float(arranged.time[0]), float(arranged.time[-1])) if timed else (np.nan, np.nan),
        time=None if spec.source.time is None else arranged.time[cleaned.keep],
    )


def _arrange(table: Table, recipe: Recipe) -> Arranged:
    """Return the rows in the order of time; without a time column as they are."""
    time = recipe.spec.source.time
    n_rows = len(table.numbers)
    if time is None:
        rows = np.arange(n_rows, dtype=np.int64)
        return Arranged(np.empty(0), table.numbers, rows, np.zeros(1, np.int64), 0, 0)
    given = (
        table.text[time.column]
        if time.column in table.text.columns
        else table.numbers[:, table.names.index(time.column)]
    )
    parsed = parse_time(given, time)
    return arrange_rows(parsed, table.numbers, time)


def _columns(
    table: Table, recipe: Recipe, attributes: Mapping[str, str], arranged: Arranged
) -> Callable[[Sequence[str]], Float64]:
    """Return a look-up of columns by name as `[rows, columns]`; derived ones are computed."""
    places = {name: place for place, name in enumerate(table.names)}
    derived: Mapping[str, Float64] = {}
    time = recipe.spec.source.time
    if recipe.derivations:
        clock = Clock(
            starts=arranged.starts,
            time=arranged.time if len(arranged.time) else None,
            zone=(time and time.zone) or "UTC",
            since_observed=since_observed,
            calendar_part=calendar_part,
        )
        frame = table.frame_of(recipe.derive_inputs, arranged.numbers, arranged.text_rows)
        if time is not None and time.column in frame.columns:
            frame = frame.with_columns(pl.Series(time.column, arranged.time))
        made = derive_columns(frame, recipe.derivations, attributes, clock)
        derived = {name: made[name].to_numpy() for name in recipe.derivations}

    def stack(names: Sequence[str]) -> Float64:
        columns = np.empty((len(arranged.numbers), len(names)))
        for place, name in enumerate(names):
            if name in derived:
                columns[:, place] = derived[name]
            elif time is not None and name == time.column:
                columns[:, place] = arranged.time
            else:
                columns[:, place] = arranged.numbers[:, places[name]]
        return columns

    return stack


def _add_since(raw: Float64, recipe: Recipe, arranged: Arranged) -> Float64:
    chosen = [recipe.channels.index(name) for name in recipe.since]
    time = arranged.time if len(arranged.time) else None
    observed = ~np.isnan(raw[:, chosen])
    return np.concatenate([raw, since_observed(observed, time, arranged.starts)], axis=1)


def check_range(values: Float64, names: Sequence[str]) -> None:
    """Refuse what float32 cannot hold: it would be stored as infinite.

    Raises:
        RefusedError: `beyond_float32`.
    """
    beyond = np.abs(values) > _LARGEST
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise RefusedError(
            "beyond_float32",
            f"column {names[column]!r}, row {row + 1}: {values[row, column]:g} is beyond float32 "
            f"(+-{_LARGEST:g}); scale the column with derive, or correct the value.",
            column=names[column],
        )


def read_attributes(table: Table, recipe: Recipe) -> dict[str, str]:
    """Return all that is known of a trial: from its path, its file, tables and its columns.

    Raises:
        RefusedError: If something that must be known is not, or is not constant.
    """
    found = {**table.file.attributes, **table.found}
    if recipe.spec.source.holds_many:
        found |= recipe.tables.lookup(table.trial_id)
    for name, attribute in recipe.runs_attributes.items():
        found[name] = runs_value(attribute, table.file.path, table.number)
    found |= _column_values(table, recipe)
    if recipe.spec.static:
        check_statics(found, recipe.spec)
    return found


def _column_values(table: Table, recipe: Recipe) -> dict[str, str]:
    """Read attributes from columns, which must say one thing throughout the trial."""
    values = {}
    for name, attribute in recipe.column_attributes.items():
        column = attribute.column
        distinct = _distinct(table, column)
        if not distinct and attribute.default is not None:
            distinct = [str(attribute.default)]
        if len(distinct) != 1:
            shown = ", ".join(quote(value) for value in distinct[:3])
            raise RefusedError(
                "attribute_not_constant",
                f"column {column!r} (attribute {name!r}) has {len(distinct)} values ({shown}); "
                "wanted one per trial" + ("." if distinct else f", or attributes.{name}.default."),
                column=column,
            )
        values[name] = distinct[0]
    return values


def _distinct(table: Table, column: str) -> list[str]:
    """Return the distinct texts of a column in order of first appearance."""
    if column in table.text.columns:
        return table.text[column].drop_nulls().unique(maintain_order=True).to_list()
    numbers = table.numbers[:, table.names.index(column)]
    present = dict.fromkeys(numbers[~np.isnan(numbers)].tolist())
    return [str(int(x)) if x == int(x) else repr(x) for x in present]


def label_of(spec: DatasetSpec, attributes: Mapping[str, str]) -> str | None:
    """Return the per-trial target as text, or None where it is of another kind.

    Raises:
        RefusedError: `no_label` or `label_not_a_number`.
    """
    target = spec.windows.target
    if not isinstance(target, PerTrialTarget):
        return None
    if target.attribute not in attributes:
        raise RefusedError("no_label", f"the trial has no attribute {target.attribute!r}.")
    label = attributes[target.attribute]
    if target.task == "value":
        try:
            if abs(float(label)) <= _LARGEST:
                return label
        except ValueError:
            pass
        raise RefusedError(
            "label_not_a_number",
            f"attribute {target.attribute!r} is {quote(label)}; a value target wants a number.",
        )
    return label
