"""An open version as a draft again, so that another one can say all but a few things as it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import CorruptStoreError
from shards.reader import Store
from shards.version import VersionDraft

_SAME = (
    "name", "channels", "target", "windows", "splits", "observed", "normalization", "spec",
    "shards", "codes", "statics", "layout", "container", "parts", "tombstones", "build",
)  # fmt: skip


def redraft_version(store: Store) -> VersionDraft:
    """Return the draft of an open version: to publish it after that version changes nothing.

    Raises:
        CorruptStoreError: If a file of the version cannot be read.
    """
    manifest = store.manifest
    path = store.folder / "quarantine.parquet"
    try:
        quarantine = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open "
            "another version."
        ) from error
    counts = {name: count for name, count in manifest.counts.items() if name != "windows"}
    return VersionDraft(
        **{name: getattr(manifest, name) for name in _SAME},
        counts=counts,
        trials=_trials(store),
        quarantine=quarantine,
        fit=store.fit,
    )


def _trials(store: Store) -> pa.Table:
    index, manifest = store.index, store.manifest
    if manifest.parts:
        part, part_row = index.places()
        columns: dict[str, Any] = {
            "id": index.ids, "digest": store.cold("digest")["digest"], "n_rows": index.n_rows,
            "part": name_codes(part, [part.digest for part in manifest.parts]),
            "part_row": part_row,
        }  # fmt: skip
    else:
        cold = store.cold()
        columns = {name: cold[name] for name in cold.column_names}
    columns |= {
        "shard": name_codes(index.shard, [shard.digest for shard in manifest.shards]),
        "row_start": index.row_start,
        "split": name_codes(index.split, manifest.splits),
        "weight": index.weight,
        "label": index.label,
    }
    return pa.table(columns)


def name_codes(codes: npt.NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Return the name that each code is the place of."""
    return pa.array(names, pa.utf8()).take(pa.array(codes))


def whole_trials(store: Store) -> pa.Array:
    """Return the id of the trial that each row of the index is a segment of, large_utf8."""
    counts, ids = store.manifest.counts, store.index.ids
    if counts.get("segments", counts["trials"]) == counts["trials"]:
        return ids  # none is torn
    return store.cold("trial")["trial"].combine_chunks().cast(ids.type).fill_null(ids)
