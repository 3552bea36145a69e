"""Stores whose rows are holes in sparse files: any size, and next to nothing on the disk.

All is as `shards/SPEC.md` says, but for the digests of the rows, which nobody has computed:
`trialshards verify` refuses such a store, a reader that checks sizes alone reads zeros.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import Store, TrialShardsError, WindowSpec
from shards.layout import ArraySpec, array_metadata, chunk_tail, group_metadata, shard_digest
from shards.manifest import Channel, ShardEntry, TargetSchema
from shards.maps import chunk_file
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version


def make_sparse(
    path: Path, windows: WindowSpec, *, n_trials: int, n_rows: int, n_channels: int = 1,
    n_shards: int = 1,
) -> Path:  # fmt: skip
    """Write a store, unless it is there from an earlier run.

    Args:
        path: Store root; nothing else may be there.
        windows: Of the data set; with `steps`.
        n_trials: Trials in all, a multiple of `n_shards`.
        n_rows: Rows of each trial.
        n_channels: float32 columns of a row.
        n_shards: Shards.
    """
    try:
        Store(path)
    except TrialShardsError:
        pass
    else:
        return path
    each = n_trials // n_shards
    entries = [_write_hole(path, i, each * n_rows, n_channels, each) for i in range(n_shards)]
    place = np.arange(n_trials)
    trials = pa.table(
        {
            "id": [f"t{i:07d}" for i in range(n_trials)],
            "digest": [f"{i:032x}" for i in range(n_trials)],
            "n_rows": np.full(n_trials, n_rows),
            "shard": [entries[i // each].digest for i in range(n_trials)],
            "row_start": place % each * n_rows, "split": ["train"] * n_trials,
            "weight": np.ones(n_trials), "label": pa.nulls(n_trials, pa.float64()),
        }
    )  # fmt: skip
    draft = VersionDraft(
        name="limits", channels=tuple(Channel(f"c{i}") for i in range(n_channels)),
        target=TargetSchema("forecast", ("c0",)), windows=windows, splits=("train",),
        observed=False, normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"trials": n_trials, "has_missing": False}, spec={}, trials=trials,
        shards=tuple(entries), quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": {"method": "none", "scope": "none"}},
    )  # fmt: skip
    publish_version(path, draft, after=None)
    return path


def _write_hole(path: Path, number: int, n_rows: int, n_channels: int, n_trials: int) -> ShardEntry:
    spec = ArraySpec("float32", n_rows, n_channels, f"{number:032x}")
    specs = {"values": spec}
    entry = ShardEntry(shard_digest(specs), n_rows, n_trials, specs)
    file = chunk_file(path, entry.digest, "values")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.truncate(spec.size_bytes)
        out.seek(spec.data_bytes)
        out.write(chunk_tail(spec))
    array = file.parents[2]
    (array / "zarr.json").write_bytes(array_metadata(spec, "values"))
    (array.parent / "zarr.json").write_bytes(group_metadata())
    return entry


def share_on_disk(path: Path) -> float:
    """Return the bytes that files below `path` take over the bytes that they have."""
    facts = [file.stat() for file in path.rglob("*") if file.is_file()]
    return sum(fact.st_blocks * 512 for fact in facts) / sum(fact.st_size for fact in facts)
