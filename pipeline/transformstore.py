"""New files as a store of their own, so that a stream delivers them like those of the build.

It has the channels, windows, target and fit of the version that it follows, one split, and no
targets: those of new files are not known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.files import Refusal
from pipeline.finish import FinishedBatch
from pipeline.members import segments, shard_form, size_of, write_members
from pipeline.pack import pack_trials
from pipeline.transform import Transform
from pipeline.transformfiles import finish_files, look_at
from shards import Store
from shards.manifest import Manifest, ShardEntry
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version

NEW = "new"
"""The split that new trials are in."""


class Origin(NamedTuple):
    """Where a row of the new store's index comes from.

    Attributes:
        trial: Id of the trial that it is, or is a segment of.
        first_row: The trial's row that it begins with.
        source: The file, as it was named.
    """

    trial: str
    first_row: int
    source: str


@dataclass(frozen=True)
class NewStore:
    """What became of new files.

    Attributes:
        store: With the trials; None where none was accepted.
        refusals: Files, and trials of files with many, that a build would quarantine.
        origins: By id in the new store.
    """

    store: Store | None
    refusals: tuple[Refusal, ...]
    origins: Mapping[str, Origin]

    def last_segments(self) -> list[int]:
        """Return the trial numbers that hold the last rows of each trial, in order."""
        if self.store is None:
            return []
        newest: dict[str, tuple[int, int]] = {}
        for number in range(len(self.store.index)):
            origin = self.origins[self.store.index.id_of(number)]
            found = (origin.first_row, number)
            newest[origin.trial] = max(found, newest.get(origin.trial, found))
        return sorted(number for _, number in newest.values())


def write_new_store(
    transform: Transform,
    paths: Sequence[str | Path],
    folder: Path,
    *,
    root: str | Path | None = None,
    split: str = NEW,
) -> NewStore:
    """Write new files as a store.

    Args:
        transform: Of the version that they are inputs for.
        paths: The files.
        folder: Where the store shall be; nothing may be there.
        root: As `Transform.read` takes it.
        split: What its one split is called.

    Raises:
        InvalidSpecError: If an attribute comes from a table that is not known.
    """
    new = look_at(paths, transform.recipe, root)
    refusals = list(new.refusals)
    done = finish_files(new, transform.recipe, transform.store.fit, refusals)
    manifest, form = transform.store.manifest, shard_form(transform.recipe.spec)
    batches = (_with_targets(batch, manifest) for batch in done)
    target_bytes = transform.recipe.spec.shards.target_bytes
    entries, tables = [], []
    for members in pack_trials(segments(batches, form), size_of, target_bytes):
        entry, table = write_members(folder, members, form)
        entries.append(entry)
        tables.append(table)
    refused = tuple(sorted(refusals, key=lambda refusal: refusal.source))
    if not tables:
        return NewStore(None, refused, {})
    trials = pa.concat_tables(tables)
    draft = _draft(transform.store, trials, tuple(entries), split)
    draft = dataclasses.replace(draft, counts={**draft.counts, "files": len(new.said)})
    version = publish_version(folder, draft, after=None)
    return NewStore(Store(folder, version), refused, _origins(trials, new.said))


def _draft(
    store: Store, trials: pa.Table, shards: tuple[ShardEntry, ...], split: str
) -> VersionDraft:
    """Return a version of trials that follows an open one in all else.

    Args:
        store: The version to follow.
        trials: Index rows with their cold columns, `shard` and `row_start`.
        shards: Where they lie.
        split: Which all of them are in.
    """
    n = trials.num_rows
    names = trials["trial" if "trial" in trials.column_names else "id"]
    known = trials.drop_columns([name for name in ("label",) if name in trials.column_names])
    for name, column in (
        ("split", pa.array([split] * n, pa.utf8())),
        ("weight", pa.array(np.ones(n, np.float32))),
        ("label", pa.nulls(n, pa.float32())),
    ):
        known = known.append_column(name, column)
    return VersionDraft(
        **{name: getattr(store.manifest, name) for name in _SAME},
        splits=(split,),
        counts={"trials": len(names.unique()), "segments": n},
        spec={},
        trials=known,
        shards=shards,
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit=store.fit,
    )


_SAME = (
    "name", "channels", "target", "windows", "observed", "normalization", "codes", "statics",
)  # fmt: skip
"""What the new store says as the one that it follows."""


def _origins(trials: pa.Table, said: Mapping[str, str]) -> dict[str, Origin]:
    """Return where each row comes from; segments of a trial follow one another in the table."""
    names = trials["trial" if "trial" in trials.column_names else "id"].to_pylist()
    columns = [trials[name].to_pylist() for name in ("id", "source", "n_rows")]
    origins: dict[str, Origin] = {}
    last, end = None, 0
    for trial, row_id, source, n_rows in zip(names, *columns, strict=True):
        first_row = end if trial == last else 0
        origins[row_id] = Origin(trial, first_row, said[source])
        last, end = trial, first_row + n_rows
    return origins


def _with_targets(batch: FinishedBatch, manifest: Manifest) -> FinishedBatch:
    """Return a batch with missing targets, where targets are stored."""
    if batch.rows is None or manifest.target.kind != "per_step":
        return batch
    shape = (int(batch.n_rows.sum()), len(manifest.target.columns))
    targets = np.full(shape, np.nan, np.float32)
    return dataclasses.replace(batch, arrays={**batch.arrays, "targets": targets})
