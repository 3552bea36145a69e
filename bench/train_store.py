"""The store of `bench/train.py`: random walks like a robot's sensors, normalized at delivery."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import Store, TrialShardsError, WindowSpec
from shards.identity import trial_digest
from shards.manifest import Channel, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version
from shards.writer import write_shard

CHANNELS = 12
FORECAST = TargetSchema("forecast", ("c0", "c1", "c2"))


def make(path: Path, n_trials: int) -> Path:
    """Write trials of 200 to 800 steps into a store, unless it is there from an earlier run."""
    try:
        Store(path)
    except TrialShardsError:
        shutil.rmtree(path, ignore_errors=True)
    else:
        return path
    rng = np.random.default_rng(0)
    lengths = rng.integers(200, 801, n_trials)
    trials = [rng.normal(0, 1, (n, CHANNELS)).cumsum(0).astype(np.float32) for n in lengths]
    entry = write_shard(path, {"values": np.concatenate(trials)}, n_trials)
    starts = np.cumsum([0, *lengths[:-1]])
    rows = [
        {
            "id": f"t{i:05d}", "digest": trial_digest(f"t{i:05d}", {"values": trial}, None),
            "n_rows": len(trial), "shard": entry.digest, "row_start": int(starts[i]),
            "split": "train", "weight": 1.0,
        }
        for i, trial in enumerate(trials)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    table = table.append_column("label", pa.nulls(n_trials, pa.float64()))
    every = np.concatenate(trials)
    normalize = {
        "method": "zscore", "scope": "train", "offset": every.mean(0).tolist(),
        "scale": every.std(0).tolist(),
    }  # fmt: skip
    draft = VersionDraft(
        name="train", channels=tuple(Channel(f"c{i}") for i in range(CHANNELS)), target=FORECAST,
        windows=WindowSpec(length=64, stride=4, horizon=4, steps=4), splits=("train",),
        observed=False,
        normalization={"method": "zscore", "scope": "train", "lookahead": []},
        counts={"trials": n_trials, "has_missing": False}, spec={}, trials=table, shards=(entry,),
        quarantine=QUARANTINE_SCHEMA.empty_table(), fit={"normalize": normalize},
    )  # fmt: skip
    publish_version(path, draft, after=None)
    return path
