"""New raw files, wherever they lie, through the stages of a build: one bad file stops no other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from pipeline.buckets import BATCH_BYTES
from pipeline.catalog import claim_files
from pipeline.engine import map_batches
from pipeline.files import Refusal, SourceFile
from pipeline.finish import FinishedBatch
from pipeline.fit import refuse_overflow
from pipeline.pack import plan_batches
from pipeline.paths import fixed_parts, identifier, matches_glob
from pipeline.prepare import prepare_files
from pipeline.sections import SourceSpec
from pipeline.tables import JoinedTables, read_tables
from pipeline.transformrecipe import InputRecipe
from shards import InvalidSpecError

ROOT = Path("/")
"""New files may lie anywhere; a build knows a file by its path below one folder."""


class NewFiles(NamedTuple):
    """Files that were named, looked at.

    Attributes:
        files: Those that hold trials; paths are below `ROOT`.
        refusals: Why others do not.
        said: Path below `ROOT` -> the path as it was named.
    """

    files: tuple[SourceFile, ...]
    refusals: tuple[Refusal, ...]
    said: Mapping[str, str]

    def naming(self, refusals: Sequence[Refusal]) -> list[Refusal]:
        """Return refusals whose sources are the paths as they were named."""
        return [dataclasses.replace(r, source=self.said[r.source]) for r in refusals]


def look_at(
    paths: Sequence[str | Path], recipe: InputRecipe, root: str | Path | None = None
) -> NewFiles:
    """Find out which trials files hold, without opening one.

    Args:
        paths: The files; one that is named twice counts once.
        recipe: How they are read.
        root: Trials are named by the paths below this folder, as if it were the one that
            `source.files` lies in; by default see `place_of`.

    Raises:
        InvalidSpecError: If attributes come from a table that is not known, or not readable.
    """
    recipe.check_folder()
    source = recipe.spec.source
    folder = None if root is None else os.path.abspath(root)  # noqa: PTH100 (links stay)
    if folder is None and recipe.has_folder:
        folder = os.path.abspath(recipe.root)  # noqa: PTH100
    said = {os.path.abspath(path).lstrip("/"): str(path) for path in paths}  # noqa: PTH100
    places = {path: place_of(path, source, folder) for path in sorted(said)}
    tables = JoinedTables({}, {}, "")
    if not source.holds_many:
        tables = read_tables(recipe.root, recipe.spec.attributes)
    files, refusals = claim_files(ROOT, places, recipe.spec, tables)
    found = NewFiles(files, (), said)
    return found._replace(refusals=tuple(found.naming(refusals)))


def place_of(path: str, source: SourceSpec, folder: str | None = None) -> str:
    """Return the path by which a build would name a file's trial.

    It is the one below `folder`; for a file elsewhere, the one from the fixed folders of
    `source.files` on, if they are in its path. Else the file is taken to lie in those folders,
    with as many folders of its own as the glob has; where that is any number, with the fewest that
    make `source.trial_id` find most of its groups.

    Args:
        path: Absolute, without the first slash.
        source: Where a build looks for files.
        folder: Absolute.
    """
    fixed, parts = fixed_parts(source.files), PurePosixPath(path).parts
    if folder is not None and PurePosixPath(f"/{path}").is_relative_to(folder):
        below = PurePosixPath(f"/{path}").relative_to(folder).as_posix()
        return below if matches_glob(below, source.files) else "/".join([*fixed, below])
    free = PurePosixPath(source.files).parts[len(fixed) :]
    depths = list(range(1, len(parts) + 1)) if "**" in free else [min(len(free), len(parts))]
    for depth in depths if fixed else []:
        if list(parts[:-depth][-len(fixed) :]) == fixed:
            return "/".join(parts[-depth - len(fixed) :])
    identify = identifier(source)
    candidates = ["/".join([*fixed, *parts[-depth:]]) for depth in depths]
    found = [-1 if (named := identify(place)) is None else len(named[1]) for place in candidates]
    return candidates[found.index(max(found))]


def finish_files(
    new: NewFiles, recipe: InputRecipe, fit: Mapping[str, Any], refusals: list[Refusal]
) -> Iterator[FinishedBatch]:
    """Yield finished trials in the order of the files, and note what is refused on the way.

    Args:
        new: The files.
        recipe: How they are read.
        fit: `fit.json` of the version.
        refusals: Gets those of files, and of trials of files with many.
    """

    def work(batch: range) -> FinishedBatch:
        files = new.files[batch.start : batch.stop]
        return refuse_beyond(prepare_files(ROOT, files, recipe), recipe, fit)

    batches = plan_batches([file.size_bytes for file in new.files], BATCH_BYTES)
    for done in map_batches(work, batches if new.files else []):
        refusals.extend(new.naming(done.refusals))
        yield done


def refuse_beyond(
    batch: FinishedBatch, recipe: InputRecipe, fit: Mapping[str, Any]
) -> FinishedBatch:
    """Refuse trials that normalization would make infinite, as a build refuses them all."""
    if batch.rows is None or _fits(batch, recipe, fit, slice(0, None)) is None:
        return batch
    kept, refusals = np.ones(len(batch.n_rows), np.bool_), list(batch.refusals)
    trials = batch.rows["trial" if recipe.has_segments else "id"].to_pylist()
    for trial in dict.fromkeys(trials):
        mine = [number for number, other in enumerate(trials) if other == trial]
        message = _fits(batch, recipe, fit, slice(mine[0], mine[-1] + 1))
        if message is not None:
            kept[mine] = False
            refusals.append(_refusal(batch, mine[0], recipe, message))
    return dataclasses.replace(keep_segments(batch, kept), refusals=tuple(refusals))


def _fits(
    batch: FinishedBatch, recipe: InputRecipe, fit: Mapping[str, Any], segments: slice
) -> str | None:
    """Return why float32 cannot hold what trials are delivered as; None where it can."""
    if batch.rows is None:
        return None
    try:
        refuse_overflow(recipe.spec, fit["normalize"], batch.rows[segments])
    except InvalidSpecError as error:
        return str(error)
    return None


def _refusal(batch: FinishedBatch, number: int, recipe: InputRecipe, message: str) -> Refusal:
    assert batch.rows is not None
    names = ["source", "size_bytes", "trial" if recipe.has_segments else "id"]
    source, size_bytes, trial = (batch.rows[name][number].as_py() for name in names)
    return Refusal(
        source=source,
        stage="normalize",
        code="beyond_float32",
        message=message,
        size_bytes=size_bytes,
        trial=trial if recipe.spec.source.holds_many else None,
    )


def keep_segments(batch: FinishedBatch, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> FinishedBatch:
    """Return a batch with some of its segments alone; `kept` says which."""
    if batch.rows is None or not kept.any():
        return FinishedBatch({}, np.zeros(0, np.int64), None, batch.refusals)
    rows = np.repeat(kept, batch.n_rows)
    return dataclasses.replace(
        batch,
        arrays={name: array[rows] for name, array in batch.arrays.items()},
        n_rows=batch.n_rows[kept],
        rows=batch.rows.filter(kept),
        time=None if batch.time is None else batch.time[rows],
    )
