"""New files as a store of their own, so that a stream delivers them like those of the build.

It has the channels, windows, target and fit of the version that it follows, one split, and no
targets: those of new files are not known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.files import Refusal
from pipeline.finish import FinishedBatch
from pipeline.members import segments, shard_form, size_of, write_members
from pipeline.pack import pack_trials
from pipeline.transform import Transform
from pipeline.transformfiles import finish_files, look_at
from shards import Store
from shards.manifest import Manifest
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version

NEW = "new"
"""The split that new trials are in."""


@dataclass(frozen=True)
class NewStore:
    """What became of new files.

    Attributes:
        store: With the trials; None where none was accepted.
        refusals: Files, and trials of files with many, that a build would quarantine.
        sources: Trial id, or that of a segment -> its file, as it was named.
    """

    store: Store | None
    refusals: tuple[Refusal, ...]
    sources: dict[str, str]


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
    form = dataclasses.replace(form, columns={**form.columns, **_target_columns(manifest)})
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
    sources = dict(zip(trials["id"].to_pylist(), trials["source"].to_pylist(), strict=True))
    draft = VersionDraft(
        **{name: getattr(manifest, name) for name in _SAME},
        splits=(split,),
        layout="rows",
        container="zarr",
        counts={"files": len(new.said), "trials": trials.num_rows},
        spec={},
        trials=_rows(trials, split),
        shards=tuple(entries),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit=transform.store.fit,
    )
    version = publish_version(folder, draft, after=None)
    named = {trial: new.said[source] for trial, source in sources.items()}
    return NewStore(Store(folder, version), refused, named)


_SAME = (
    "name", "channels", "target", "windows", "observed", "normalization", "codes", "statics",
)  # fmt: skip
"""What the new store says as the one that it follows."""


def _rows(trials: pa.Table, split: str) -> pa.Table:
    """Return index rows with what a build decides over all trials."""
    n = trials.num_rows
    if "label" in trials.column_names:
        trials = trials.drop_columns(["label"])
    trials = trials.append_column("split", pa.array([split] * n, pa.utf8()))
    trials = trials.append_column("weight", pa.array(np.ones(n, np.float32)))
    return trials.append_column("label", pa.nulls(n, pa.float32()))


def _target_columns(manifest: Manifest) -> dict[str, Sequence[str]]:
    per_step = manifest.target.kind == "per_step"
    return {"targets": manifest.target.columns} if per_step else {}


def _with_targets(batch: FinishedBatch, manifest: Manifest) -> FinishedBatch:
    """Return a batch with missing targets, where targets are stored."""
    if batch.rows is None or manifest.target.kind != "per_step":
        return batch
    shape = (int(batch.n_rows.sum()), len(manifest.target.columns))
    targets = np.full(shape, np.nan, np.float32)
    return dataclasses.replace(batch, arrays={**batch.arrays, "targets": targets})
