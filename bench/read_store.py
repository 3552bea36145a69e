"""Stores of the work of `bench/read.py`, over one shard or many."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from read_work import CHANNELS, LENGTH, STRIDE, Work

from shards import Store, TrialShardsError, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

WINDOWS = WindowSpec(length=LENGTH, stride=STRIDE, horizon=1, steps=1)


def make_store(path: Path, work: Work, n_shards: int) -> Path:
    """Write the trials into a store, unless it is there from an earlier run."""
    try:
        Store(path)
    except TrialShardsError:  # not there, or of an earlier format
        shutil.rmtree(path, ignore_errors=True)
    else:
        return path
    trials = work.trials()
    rows, shards = [], []
    for members in np.array_split(np.arange(len(trials)), n_shards):
        entry = write_shard(path, {"values": [trials[i] for i in members]}, len(members))
        shards.append(entry)
        start = 0
        for i in members.tolist():
            digest = trial_digest(f"t{i:05d}", {"values": trials[i]}, None)
            rows.append(
                {"id": f"t{i:05d}", "digest": digest, "n_rows": len(trials[i]),
                 "shard": entry.digest, "row_start": start, "split": "train", "weight": 1.0}
            )  # fmt: skip
            start += len(trials[i])
    table = pa.Table.from_pylist(rows)
    table = table.append_column("label", pa.nulls(len(rows), pa.float64()))
    draft = VersionDraft(
        name="bench", channels=tuple(Channel(f"c{i}") for i in range(CHANNELS)),
        target=TargetSchema("forecast", ("c0",)), windows=WINDOWS, splits=("train",),
        observed=False, normalization={"method": "none", "scope": "none", "lookahead": []},
        counts={"trials": len(trials), "has_missing": False}, spec={}, trials=table,
        shards=tuple(shards), quarantine=QUARANTINE_SCHEMA.empty_table(),
        fit={"normalize": {"method": "none", "scope": "none"}},
    )  # fmt: skip
    publish_version(path, draft, after=None)
    return path
