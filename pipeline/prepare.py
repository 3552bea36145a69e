"""One parsed file into one finished trial: derive, clean, normalize, measure, digest.

Everything here sees one trial at a time, so nothing can leak from another one (law 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.clean import check_time, clean_values
from pipeline.derive import derive_columns
from pipeline.normalize import Affine, identity_affine, measure_moments, trial_affine
from pipeline.recipe import Recipe
from pipeline.sections import PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.trials import Float64, Refusal, RefusedError, Table, quote
from shards.identity import trial_digest

VERSION = 1
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class PreparedTrial:
    """A trial as it will be stored.

    Attributes:
        arrays: `values` float32 `[rows, channels]`, and `observed`, `targets` where the data set
            has them.
        row: Its row of the cold index, with `label` as text (or None).
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    row: Mapping[str, Any]

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def prepare_table(table: Table, recipe: Recipe) -> PreparedTrial | Refusal:
    """Finish one trial, or say why not."""
    try:
        return _prepare(table, recipe)
    except RefusedError as error:
        return Refusal(
            source=table.file.path,
            stage="clean",
            code=error.code,
            message=str(error),
            line=error.line,
            column=error.column,
            size_bytes=table.file.size_bytes,
        )


def _prepare(table: Table, recipe: Recipe) -> PreparedTrial:
    spec, file = recipe.spec, table.file
    attributes = {**file.attributes, **_column_values(table.frame, recipe.column_attributes)}
    columns = _columns(table, recipe, attributes)
    if spec.source.time is not None:
        name = spec.source.time.column
        check_time(columns([name])[:, 0], name)
    raw = columns(recipe.channels)
    _check_range(raw, recipe.channels)
    cleaned = clean_values(raw, spec.clean)
    targets = columns(spec.target_columns())[cleaned.keep]
    _check_range(targets, spec.target_columns())
    moments = measure_moments(np.concatenate([cleaned.values, targets], axis=1))
    affine = _trial_affine(spec, cleaned.values, moments)
    arrays: dict[str, npt.NDArray[Any]] = {"values": affine.apply(cleaned.values)}
    if spec.clean.stores_observed():
        arrays["observed"] = np.packbits(cleaned.observed, axis=1, bitorder="little")
    if targets.shape[1]:
        arrays["targets"] = targets.astype(np.float32)
    label = _label(spec, attributes)
    row = {
        "id": file.trial_id,
        "digest": trial_digest(file.trial_id, arrays, _typed_label(spec, label)),
        "source": file.path,
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
        "source_xxh3": table.source_xxh3,
        "bucket": file.bucket,
        "n_rows": len(cleaned.values),
        "n_rows_in": len(raw),
        "n_missing": int(cleaned.observed.size - cleaned.observed.sum()),
        "n_masked": int(np.isnan(cleaned.values).sum()),
        **{name: column.tolist() for name, column in moments.items()},
        "attributes": attributes,
        "label": label,
    }
    if spec.normalize.scope == "trial":
        row |= {"offset": affine.offset.tolist(), "scale": affine.scale.tolist()}
    return PreparedTrial(arrays, row)


def _check_range(values: Float64, names: Sequence[str]) -> None:
    """Refuse what float32 cannot hold: it would be stored as infinite."""
    beyond = np.abs(values) > _LARGEST
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise RefusedError(
            "beyond_float32",
            f"column {names[column]!r}, row {row + 1}: {values[row, column]:g} is beyond float32 "
            f"(+-{_LARGEST:g}); scale the column with derive, or correct the value.",
            column=names[column],
        )


def _columns(
    table: Table, recipe: Recipe, attributes: Mapping[str, str]
) -> Callable[[Sequence[str]], Float64]:
    """Return a look-up of columns by name as `[rows, columns]`; derived ones are computed."""
    places = {name: place for place, name in enumerate(recipe.layout.numeric)}
    if not recipe.expressions:
        return lambda names: table.numbers[:, [places[name] for name in names]]
    inputs = table.frame.select(recipe.derive_inputs)
    frame = derive_columns(inputs, recipe.expressions, attributes)

    def stack(names: Sequence[str]) -> Float64:
        columns = np.empty((frame.height, len(names)))
        for place, name in enumerate(names):
            derived = name in recipe.expressions
            # A null becomes NaN on the way out of polars.
            columns[:, place] = (
                frame[name].to_numpy() if derived else table.numbers[:, places[name]]
            )
        return columns

    return stack


def _trial_affine(spec: DatasetSpec, values: Float64, moments: Mapping[str, Float64]) -> Affine:
    if spec.normalize.method == "none" or spec.normalize.scope != "trial":
        return identity_affine(values.shape[1])
    return trial_affine(spec.normalize.method, values, moments)


def _column_values(frame: pl.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Read attributes from columns, which must say one thing throughout the trial."""
    values = {}
    for name, column in columns.items():
        distinct = list(dict.fromkeys(v for v in frame[column].to_list() if v is not None))
        if len(distinct) != 1:
            shown = ", ".join(quote(value) for value in distinct[:3])
            raise RefusedError(
                "attribute_not_constant",
                f"column {column!r} (attribute {name!r}) has {len(distinct)} values ({shown}); "
                "wanted one per trial.",
                column=column,
            )
        values[name] = distinct[0]
    return values


def _label(spec: DatasetSpec, attributes: Mapping[str, str]) -> str | None:
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


def _typed_label(spec: DatasetSpec, label: str | None) -> str | float | None:
    target = spec.windows.target
    is_value = isinstance(target, PerTrialTarget) and target.task == "value"
    return float(label) if is_value and label is not None else label
