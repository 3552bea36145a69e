"""Turn trial rows and shards into the files of one version, and publish them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.identity import (
    canonical_json,
    dataset_fingerprint,
    file_promise,
    pairs_digest,
    split_fingerprint,
)
from shards.index import index_to_bytes
from shards.manifest import Channel, EncodedInput, Manifest, ShardEntry, TargetSchema
from shards.windows import WindowSpec, count_windows
from shards.writer import commit_version

QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.utf8()), ("stage", pa.utf8()), ("code", pa.utf8()), ("line", pa.int64()),
        ("column", pa.utf8()), ("message", pa.utf8()), ("size_bytes", pa.int64()),
        ("trial", pa.utf8()),
    ]
)  # fmt: skip
_HOT_ONLY = ("shard", "row_start", "split", "weight", "label")


@dataclass(frozen=True)
class VersionDraft:
    """Everything a version will say, before it is sorted, hashed and numbered.

    Attributes:
        trials: One row per trial in any order: the cold columns of SPEC section 9 (at least `id`,
            `digest`, `n_rows`), and `shard` (digest), `row_start`, `split` (name), `weight`,
            `label` (null without one).
        shards: Every shard that `trials` names; others are left out of the version.
        quarantine: Rows of `QUARANTINE_SCHEMA`.
        fit: `fit.json`.
        codes: Categorical columns; `trials` then has `categories`.
        statics: Attributes that are inputs.
    """

    name: str
    channels: tuple[Channel, ...]
    target: TargetSchema
    windows: WindowSpec
    splits: tuple[str, ...]
    observed: bool
    normalization: Mapping[str, Any]
    counts: Mapping[str, Any]
    spec: Mapping[str, Any]
    trials: pa.Table
    shards: tuple[ShardEntry, ...]
    quarantine: pa.Table
    fit: Mapping[str, Any]
    codes: tuple[EncodedInput, ...] = ()
    statics: tuple[EncodedInput, ...] = ()


def sort_by_id(trials: pa.Table) -> pa.Table:
    """Return the rows in the order of trial numbers: ids compared as UTF-8 bytes."""
    return trials.take(pc.sort_indices(trials["id"].cast(pa.large_binary())))


def split_pairs(trials: pa.Table, split: str) -> list[tuple[str, str]]:
    """Return the (id, digest) pairs of a split, in the order of the table."""
    rows = trials.filter(pc.equal(trials["split"], split))
    return list(zip(rows["id"].to_pylist(), rows["digest"].to_pylist(), strict=True))


def fingerprint_splits(
    schema: VersionDraft | Manifest, fit: Mapping[str, Any], trials: pa.Table
) -> dict[str, str]:
    """Return the fingerprint of each split of id-sorted `trials` (SPEC section 7)."""
    document = {
        "channels": [dict(vars(channel)) for channel in schema.channels],
        "target": {
            "kind": schema.target.kind,
            "columns": list(schema.target.columns),
            "classes": list(schema.target.classes or ()),
        },
        "windows": schema.windows.as_dict(),
        "normalization": dict(schema.normalization),
        "fit": pairs_digest([("fit", canonical_json(fit).decode())]),
    }
    for name, entries in (("codes", schema.codes), ("statics", schema.statics)):
        if entries:  # without them a fingerprint is the one it always was
            document[name] = [dict(vars(entry)) for entry in entries]
    return {s: split_fingerprint(document, split_pairs(trials, s)) for s in schema.splits}


def _hot_columns(
    draft: VersionDraft, trials: pa.Table, numbers: Mapping[str, int]
) -> dict[str, Any]:
    n_rows = trials["n_rows"].to_numpy().astype(np.int64)
    codes = {split: code for code, split in enumerate(draft.splits)}
    label = trials["label"].cast(pa.float32())
    return {
        "id": trials["id"].cast(pa.large_utf8()).combine_chunks(),
        "shard": np.array([numbers[d] for d in trials["shard"].to_pylist()], np.int32),
        "row_start": trials["row_start"].to_numpy().astype(np.int64),
        "n_rows": n_rows,
        "n_windows": count_windows(n_rows, draft.windows),
        "split": np.array([codes[s] for s in trials["split"].to_pylist()], np.int16),
        "weight": trials["weight"].to_numpy().astype(np.float32),
        "label": label.fill_null(float("nan")).combine_chunks(),
    }


def _windows_by_split(draft: VersionDraft, hot: Mapping[str, Any]) -> dict[str, int]:
    sums = np.bincount(hot["split"], hot["n_windows"], minlength=len(draft.splits))
    return {split: int(sums[code]) for code, split in enumerate(draft.splits)}


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as Parquet, zstd."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def render_version(draft: VersionDraft) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the other files of a version: a pure function of the draft."""
    trials = sort_by_id(draft.trials)
    used = dict.fromkeys(trials["shard"].to_pylist())
    entries = {shard.digest: shard for shard in draft.shards}
    n_trials = Counter(trials["shard"].to_pylist())  # equal content is one shard
    shards = tuple(replace(entries[digest], n_trials=n_trials[digest]) for digest in used)
    hot = _hot_columns(draft, trials, {digest: number for number, digest in enumerate(used)})
    files = {
        "index.arrow": index_to_bytes(hot),
        "trials.parquet": parquet_bytes(trials.drop_columns(list(_HOT_ONLY))),
        "quarantine.parquet": parquet_bytes(
            draft.quarantine.cast(QUARANTINE_SCHEMA).sort_by("source")
        ),
        "fit.json": canonical_json(draft.fit) + b"\n",
    }
    fingerprints = fingerprint_splits(draft, draft.fit, trials)
    by_split = _windows_by_split(draft, hot)
    manifest = Manifest(
        name=draft.name,
        channels=draft.channels,
        target=draft.target,
        windows=draft.windows,
        splits=draft.splits,
        observed=draft.observed,
        normalization=draft.normalization,
        counts={**draft.counts, "windows": by_split},
        fingerprints=fingerprints,
        fingerprint=dataset_fingerprint(fingerprints),
        shards=shards,
        files={name: file_promise(content) for name, content in files.items()},
        spec=draft.spec,
        codes=draft.codes,
        statics=draft.statics,
    )
    return manifest, files


def publish_version(store: Path, draft: VersionDraft, *, after: str | None) -> str:
    """Render and commit a version.

    Args:
        store: Store root; it must already hold the shards.
        draft: What to publish.
        after: The newest version when the build began, or None.

    Returns:
        The name of the version that now holds this content: `after` itself when it says the same
        already, and then nothing is written.

    Raises:
        CommitConflictError: If another build committed first.
    """
    manifest, files = render_version(draft)
    if after is not None:
        current = store / "versions" / after / "dataset.json"
        if current.is_file() and current.read_bytes() == manifest.to_bytes():
            return after
    return commit_version(store, manifest, files, after=after)
