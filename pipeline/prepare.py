"""Files of a batch into finished trials: read, tell trials apart, shape, finish.

One bad trial, and one bad file, never stops the others.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.files import Refusal, RefusedError, SourceFile, count_of
from pipeline.finish import FinishedBatch, finish_batch
from pipeline.plain import is_plain, shape_plain
from pipeline.recipe import Recipe
from pipeline.reshape import pivot_table, split_table
from pipeline.shape import shape_trial
from pipeline.shaped import ShapedBatch, ShapedTrial, join_trials
from pipeline.sources.blocks import read_blocks
from pipeline.sources.columnar import ColumnarLayout, read_columnar
from pipeline.sources.delimited import read_delimited
from pipeline.trials import Table


def prepare_files(root: Path, files: Sequence[SourceFile], recipe: Recipe) -> FinishedBatch:
    """Read, shape and finish a batch of files.

    Args:
        root: Source root.
        files: The catalog's records.
        recipe: The specification.
    """
    tables, refused = read_tables_of(root, files, recipe)
    return prepare_tables(tables, refused, recipe)


def prepare_tables(tables: list[Table], refused: list[Refusal], recipe: Recipe) -> FinishedBatch:
    """Shape and finish what was read, however it was read.

    Args:
        tables: Files, or trials of them.
        refused: Files that could not be read.
        recipe: The specification.
    """
    if recipe.runs_attributes:
        tables, refused = _refuse_miscounted(tables, refused, recipe)
    if tables and is_plain(recipe):
        shaped, wrong = shape_plain(tables, recipe)
        faults = [o for i in np.flatnonzero(wrong) for o in _shape(tables[i], recipe)]
        reasons = [fault for fault in faults if isinstance(fault, Refusal)]
        if len(reasons) == len(faults):
            return _finish(shaped, recipe, [*refused, *reasons])
    outcomes = [outcome for table in tables for outcome in _shape(table, recipe)]
    trials = [outcome for outcome in outcomes if isinstance(outcome, ShapedTrial)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    return _finish(join_trials(trials) if trials else None, recipe, [*refused, *refusals])


def _finish(
    shaped: ShapedBatch | None, recipe: Recipe, refusals: Sequence[Refusal]
) -> FinishedBatch:
    if shaped is None:
        return FinishedBatch({}, np.zeros(0, np.int64), None, tuple(refusals))
    return dataclasses.replace(finish_batch(shaped, recipe), refusals=tuple(refusals))


def read_tables_of(
    root: Path, files: Sequence[SourceFile], recipe: Recipe
) -> tuple[list[Table], list[Refusal]]:
    """Read a batch of files by the reader of their family."""
    layout, blocks = recipe.layout, recipe.spec.source.blocks
    if isinstance(layout, ColumnarLayout):
        return read_columnar(root, files, layout)
    if blocks is not None:
        return read_blocks(root, files, layout, blocks)
    return read_delimited(root, files, layout)


def _refuse_miscounted(
    tables: Sequence[Table], refused: Sequence[Refusal], recipe: Recipe
) -> tuple[list[Table], list[Refusal]]:
    """Refuse files with more or fewer trials than the runs of an attribute count.

    One separator that is not recognized would shift the values of all trials behind it.
    """
    found = Counter(table.file.path for table in tables)
    found.update(refusal.source for refusal in refused if refusal.trial is not None)
    wrong: dict[str, Refusal] = {}
    for name, attribute in recipe.runs_attributes.items():
        for table in tables:
            path, wanted = table.file.path, sum(attribute.runs.get(table.file.path, ()))
            if wanted and wanted != found[path]:
                message = (
                    f"holds {count_of(found[path], 'trial')}; attributes.{name}.runs counts "
                    f"{wanted:,}. Look at source.blocks, or correct the runs."
                )
                error = RefusedError("runs_mismatch", message)
                wrong.setdefault(path, _refusal(table, error, None))
    kept = [table for table in tables if table.file.path not in wrong]
    others = [refusal for refusal in refused if refusal.source not in wrong]
    return kept, [*others, *wrong.values()]


def _shape(table: Table, recipe: Recipe) -> Iterator[ShapedTrial | Refusal]:
    """Yield the trials of one table, or why not."""
    source = recipe.spec.source
    try:
        if source.pivot is not None:
            table = pivot_table(table, source.pivot, recipe.pivoted, recipe.time_is_text)
        tables = split_table(table, source.split_on) if source.split_on else [table]
    except RefusedError as error:
        yield _refusal(table, error, None)
        return
    for one in tables:
        try:
            yield shape_trial(one, recipe)
        except RefusedError as error:
            yield _refusal(one, error, one.trial_id if source.holds_many else None)


def _refusal(table: Table, error: RefusedError, trial: str | None) -> Refusal:
    return Refusal(
        source=table.file.path,
        stage="clean",
        code=error.code,
        message=str(error),
        line=error.line,
        column=error.column,
        size_bytes=table.file.size_bytes,
        trial=trial,
    )
