"""Many plain trials at once: what most data sets need, without a call per trial.

A trial is plain where nothing but its channels, targets, attributes and missing values is to be
looked at. What is wrong with one is left to `shape_trial`, which says so; the values that come
out are the same, bit for bit, by either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.clean import clean_segments
from pipeline.files import RefusedError
from pipeline.loading import loaded_kernels
from pipeline.rowwise import derive_rows
from pipeline.shape import label_of
from pipeline.shaped import COUNTS, ShapedBatch
from pipeline.trials import Bool, Float64, Int64, Table

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.sections import TimeSpec

_LARGEST = float(np.finfo(np.float32).max)


def is_plain(recipe: Recipe) -> bool:
    """Return whether a data set's trials can be shaped many at once."""
    spec, clean = recipe.spec, recipe.spec.clean
    return not (
        not _is_plain_time(spec.source.time)
        or not recipe.is_row_wise
        or recipe.runs_attributes
        or spec.categorical
        or spec.static
        or spec.source.holds_many
        or spec.source.pivot is not None
        or clean.outliers is not None
        or clean.time_since_observed
        or clean.missing == "drop"
        or clean.then == "drop"
    )


def _is_plain_time(time: TimeSpec | None) -> bool:
    return time is None or (
        time.format == "number"
        and time.unit is None
        and time.unsorted == "refuse"
        and time.duplicates == "refuse"
        and time.max_gap is None
        and time.resample is None
    )


def shape_plain(
    tables: Sequence[Table], recipe: Recipe
) -> tuple[ShapedBatch | None, npt.NDArray[np.bool_]]:
    """Shape trials of a data set that `is_plain`.

    Args:
        tables: One trial each, one at least, with the same columns.
        recipe: The specification.

    Returns:
        The trials that nothing is wrong with, in order, or None if there are none; and for each
        table whether something is.
    """
    batch = _Batch(tables, recipe)
    wrong = batch.find_wrong()
    if not wrong.any():
        shaped, missing = batch.shape()
        if not missing.any():
            return shaped, missing
        wrong = missing
    good = np.flatnonzero(~wrong)
    if not len(good):
        return None, wrong
    fewer, worse = shape_plain([tables[i] for i in good.tolist()], recipe)
    wrong[good[worse]] = True
    return fewer, wrong


class _Batch:
    """The rows of all trials in one matrix."""

    def __init__(self, tables: Sequence[Table], recipe: Recipe) -> None:
        self.tables, self.recipe, self.spec = tables, recipe, recipe.spec
        self.sizes = np.array([len(table.numbers) for table in tables], np.int64)
        self.edges: Int64 = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.numbers = _join([table.numbers for table in tables])
        self.raw = self.targets = self.numbers[:, :0]
        self.known = [dict(table.file.attributes) for table in tables]
        self.labels: list[str | None] = [None] * len(tables)

    def _take(self, names: Sequence[str], derived: Mapping[str, Float64]) -> Float64:
        """Return columns; the matrix itself where they are all of it."""
        own = self.tables[0].names
        if derived:
            columns = [derived.get(name) for name in names]
            taken = np.empty((len(self.numbers), len(names)))
            for place, (name, column) in enumerate(zip(names, columns, strict=True)):
                taken[:, place] = self.numbers[:, own.index(name)] if column is None else column
            return taken
        places = [own.index(name) for name in names]
        whole = places == list(range(self.numbers.shape[1]))
        return self.numbers if whole else self.numbers[:, places]

    def _derive(self) -> bool:
        """Fill in the channels and targets, unless trials must be looked at one by one."""
        derived: Mapping[str, Float64] | None = {}
        if self.recipe.derivations:
            derived = derive_rows(self.recipe, self.tables, self.numbers, self.sizes, self.known)
        if derived is None:
            return False
        self.raw = self._take(self.recipe.channels, derived)
        self.targets = self._take(self.spec.target_columns(), derived)
        return True

    def find_wrong(self) -> Bool:
        """Return which trials must be looked at one by one; fill in what is known of the others."""
        wrong = np.zeros(len(self.tables), np.bool_)
        for name, attribute in self.recipe.column_attributes.items():
            self._read_attribute(name, attribute.column, wrong)
        if wrong.any():  # the others come again, without these
            return wrong
        if not self._derive():
            return ~wrong
        beyond, missing = self._find_faults(self.raw)
        wrong |= beyond > 0
        if missing.any():
            share = missing / (self.sizes * self.raw.shape[1])
            wrong |= share > self.spec.clean.drop_trial_if_missing
        if self.targets.shape[1]:
            wrong |= self._find_faults(self.targets)[0] > 0
        if self.spec.source.time is not None:
            self._check_time(wrong)
        for i in np.flatnonzero(~wrong).tolist():
            try:
                self.labels[i] = label_of(self.spec, self.known[i])
            except RefusedError:
                wrong[i] = True
        return wrong

    def _find_faults(self, values: Float64) -> tuple[Int64, Int64]:
        """Return per trial how many values float32 cannot hold, and how many are missing."""
        kernels = loaded_kernels()
        if kernels is not None:
            beyond, missing = kernels.find_faults(values, self.edges, _LARGEST)
            return beyond, missing
        return self._sums(np.abs(values) > _LARGEST), self._sums(np.isnan(values))

    def _mark(self, wrong: Bool, bad: Bool) -> None:
        if bad.any():
            wrong |= self._sums(bad) > 0

    def _sums(self, flags: Bool) -> Int64:
        if not flags.any():
            return np.zeros(len(self.tables), np.int64)
        total: Int64 = np.add.reduceat(np.count_nonzero(flags, axis=1), self.edges[:-1])
        return total

    def _check_time(self, wrong: Bool) -> None:
        time = self.time
        assert time is not None
        bad = ~np.isfinite(time)
        step = np.diff(time, prepend=-np.inf) <= 0
        step[self.edges[:-1]] = False
        self._mark(wrong, (bad | step)[:, None])

    @cached_property
    def time(self) -> Float64 | None:
        """When each row was: a copy, for a view would keep all columns until a shard is full."""
        time = self.spec.source.time
        if time is None:
            return None
        return self.numbers[:, self.tables[0].names.index(time.column)].copy()

    def _read_attribute(self, name: str, column: str, wrong: Bool) -> None:
        """Read an attribute from the first row, where all others say the same."""
        texts = pl.concat([table.text[column] for table in self.tables])
        differs = (texts.ne_missing(texts.shift(1)) | texts.is_null()).to_numpy().copy()
        differs[self.edges[:-1]] = texts[self.edges[:-1]].is_null().to_numpy()
        self._mark(wrong, differs[:, None])
        for known, text in zip(self.known, texts[self.edges[:-1]].to_list(), strict=True):
            known[name] = text

    def shape(self) -> tuple[ShapedBatch, Bool]:
        """Return the trials, and which of them miss values that must not be missing."""
        refuses = self.spec.clean.then == "refuse"
        values, observed = self._clean()
        n = len(self.tables)
        missing = np.zeros(n, np.bool_)
        if refuses:
            self._mark(missing, np.isnan(values))
        spans = np.full((n, 2), np.nan)
        if self.time is not None:
            spans = self.time[np.stack([self.edges[:-1], self.edges[1:] - 1], axis=1)]
        none = np.zeros(n, np.int64)
        shaped = ShapedBatch(
            tables=self.tables,
            attributes=self.known,
            labels=self.labels,
            values=values,
            observed=observed,
            targets=self.targets,
            codes=np.empty((len(self.numbers), 0), np.uint16),
            categories=[()] * n,
            trial_edges=self.edges,
            edges=self.edges,
            counts=dict.fromkeys(COUNTS, none),
            spans=spans,
            time=self.time,
        )
        return shaped, missing

    def _clean(self) -> tuple[Float64, Bool]:
        """Return values whose gaps are filled or stay, and what the source held."""
        clean = self.spec.clean
        if clean.missing == "none" and clean.then != "constant":
            return self.raw, ~np.isnan(self.raw)
        changed: dict[str, object] = {"drop_trial_if_missing": 1.0}
        if clean.then == "refuse":
            changed["then"] = "mask"
        cleaned = clean_segments(self.raw, self.edges[:-1], clean.model_copy(update=changed))
        return cleaned.values, cleaned.observed


def _join(parts: Sequence[Float64]) -> Float64:
    """Return rows below each other: without a copy where they are neighbours in one matrix."""
    whole, first = parts[0].base, parts[0]
    if len(parts) == 1 or not isinstance(whole, np.ndarray) or whole.shape[1:] != first.shape[1:]:
        return np.concatenate(parts)
    if whole.dtype == first.dtype and whole.flags.c_contiguous:
        begins = [_address(part) for part in parts if part.base is whole]
        ends = [begin + part.nbytes for begin, part in zip(begins, parts, strict=False)]
        if len(begins) == len(parts) and begins[1:] == ends[:-1]:
            row_bytes, origin = whole.itemsize * whole.shape[1], _address(whole)
            joined: Float64 = whole[
                (begins[0] - origin) // row_bytes : (ends[-1] - origin) // row_bytes
            ]
            return joined
    return np.concatenate(parts)


def _address(array: Float64) -> int:
    return int(array.__array_interface__["data"][0])
