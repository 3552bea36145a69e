"""Turn trial rows and shards into the files of one version, and publish them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards.identity import (
    canonical_json,
    dataset_fingerprint,
    file_promise,
    pairs_digest,
    split_fingerprint,
)
from shards.index import index_to_bytes
from shards.manifest import (
    COLD,
    Channel,
    EncodedInput,
    Manifest,
    PartEntry,
    ShardEntry,
    TargetSchema,
    Tombstone,
)
from shards.tables import parquet_bytes
from shards.windows import WindowSpec, count_windows
from shards.writer import commit_version

QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.utf8()), ("stage", pa.utf8()), ("code", pa.utf8()), ("line", pa.int64()),
        ("column", pa.utf8()), ("message", pa.utf8()), ("size_bytes", pa.int64()),
        ("trial", pa.utf8()), ("mtime_ns", pa.int64()),
    ]
)  # fmt: skip
_HOT_ONLY = ("shard", "row_start", "split", "weight", "label")


@dataclass(frozen=True)
class VersionDraft:
    """Everything a version will say, before it is sorted, hashed and numbered.

    Attributes:
        trials: One row per trial in any order: the cold columns of SPEC section 9 (at least `id`,
            `digest`, `n_rows`), and `shard` (digest), `row_start`, `split` (name), `weight`,
            `label` (null without one). With `parts`, of the cold columns `id`, `digest` and
            `n_rows` alone, and `part` (digest) and `part_row`.
        shards: Every shard that `trials` names; others are left out of the version.
        quarantine: Rows of `QUARANTINE_SCHEMA`.
        fit: `fit.json`.
        codes: Categorical columns; `trials` then has `categories`.
        statics: Attributes that are inputs.
        layout: `rows` or `windows`.
        container: `zarr` or `parquet`.
        parts: Every part that `trials` names; without any, the cold index is a file of the version.
        tombstones: Trials taken out by hand.
        build: What a builder needs to know of this version.
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
    layout: str = "rows"
    container: str = "zarr"
    parts: tuple[PartEntry, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)


def sort_by_id(trials: pa.Table) -> pa.Table:
    """Return the rows in the order of trial numbers: ids compared as UTF-8 bytes."""
    order = pc.sort_indices(trials["id"].cast(pa.large_binary())).to_numpy()
    if (np.diff(order.astype(np.int64)) == 1).all():
        return trials  # as it mostly is: a copy would double what the table takes
    return trials.take(pa.array(order))


def split_digest(trials: pa.Table, split: str) -> str:
    """Return `pairs_digest` of a split's (id, digest) pairs, in the order of the table."""
    rows = trials.select(["id", "digest"]).filter(pc.equal(trials["split"], split))
    parts: list[pa.ChunkedArray] = []
    for name in ("id", "digest"):
        text = rows[name].combine_chunks().cast(pa.large_binary())
        sizes = pc.binary_length(text).to_numpy().astype("<i8")
        fixed = pa.Array.from_buffers(pa.binary(8), len(text), [None, pa.py_buffer(sizes)])
        parts += [fixed.cast(pa.large_binary()), text]
    # All that is to be hashed, end to end: one call, where piece by piece takes four per trial.
    joined = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))
    n_bytes = pc.sum(pc.binary_length(joined)).as_py() or 0  # a buffer may be longer
    return hashlib.sha256(joined.buffers()[2][:n_bytes] if n_bytes else b"").hexdigest()


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
    return {s: split_fingerprint(document, split_digest(trials, s)) for s in schema.splits}


def _hot_columns(
    draft: VersionDraft, trials: pa.Table, numbers: Mapping[str, int]
) -> dict[str, Any]:
    n_rows = trials["n_rows"].to_numpy().astype(np.int64)
    codes = {split: code for code, split in enumerate(draft.splits)}
    label = trials["label"].cast(pa.float32())
    return {
        "id": trials["id"].cast(pa.large_utf8()).combine_chunks(),
        "shard": _codes(trials["shard"], numbers).astype(np.int32),
        "row_start": trials["row_start"].to_numpy().astype(np.int64),
        "n_rows": n_rows,
        "n_windows": count_windows(n_rows, draft.windows),
        "split": _codes(trials["split"], codes).astype(np.int16),
        "weight": trials["weight"].to_numpy().astype(np.float32),
        "label": label.fill_null(float("nan")).combine_chunks(),
    }


def _codes(column: pa.ChunkedArray, numbers: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Return the number of each text."""
    words = column.combine_chunks().dictionary_encode()
    own = np.array([numbers[word] for word in words.dictionary.to_pylist()], np.int64)
    codes: npt.NDArray[np.int64] = own[words.indices.to_numpy()]
    return codes


def _windows_by_split(draft: VersionDraft, hot: Mapping[str, Any]) -> dict[str, int]:
    sums = np.bincount(hot["split"], hot["n_windows"], minlength=len(draft.splits))
    return {split: int(sums[code]) for code, split in enumerate(draft.splits)}


def render_version(draft: VersionDraft) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the other files of a version: a pure function of the draft."""
    trials = sort_by_id(draft.trials)
    shards = {entry.digest: entry for entry in draft.shards}
    n_trials = _count_values(trials["shard"])
    hot = _hot_columns(draft, trials, {digest: i for i, digest in enumerate(n_trials)})
    files: dict[str, bytes] = {}
    parts: tuple[PartEntry, ...] = ()
    if draft.parts:
        entries = {entry.digest: entry for entry in draft.parts}
        used = _count_values(trials["part"])
        parts = tuple(entries[digest] for digest in used)
        hot["part"] = _codes(trials["part"], {digest: i for i, digest in enumerate(used)})
        hot["part_row"] = trials["part_row"].to_numpy().astype(np.int64)
    else:
        files[COLD] = parquet_bytes(trials.drop_columns(list(_HOT_ONLY)))
    files |= {
        "index.arrow": index_to_bytes(hot),
        "quarantine.parquet": parquet_bytes(_quarantine(draft)),
        "fit.json": canonical_json(draft.fit) + b"\n",
    }
    by_split = _windows_by_split(draft, hot)
    fingerprints = fingerprint_splits(draft, draft.fit, trials)
    manifest = Manifest(
        **{name: getattr(draft, name) for name in _SAID},
        counts={**draft.counts, "windows": by_split},
        fingerprints=fingerprints,
        fingerprint=dataset_fingerprint(fingerprints),
        shards=tuple(replace(shards[digest], n_trials=n) for digest, n in n_trials.items()),
        parts=parts,
        files={name: file_promise(content) for name, content in files.items()},
    )
    return manifest, files


_SAID = (
    "name", "channels", "target", "windows", "splits", "observed", "normalization", "spec",
    "codes", "statics", "layout", "container", "tombstones", "build",
)  # fmt: skip
"""What the manifest says as the draft does."""


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Return each text -> how often it comes, in order of first appearance."""
    return {c["values"]: c["counts"] for c in column.value_counts().to_pylist()}


def _quarantine(draft: VersionDraft) -> pa.Table:
    rows = draft.quarantine
    for name in set(QUARANTINE_SCHEMA.names) - set(rows.column_names):
        field_type = QUARANTINE_SCHEMA.field(name).type
        rows = rows.append_column(name, pa.nulls(rows.num_rows, field_type))
    return rows.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA).sort_by("source")


def publish_version(store: Path, draft: VersionDraft, *, after: str | None) -> str:
    """Render and commit a version.

    Args:
        store: Store root; it must already hold the shards.
        draft: What to publish.
        after: The newest version when the build began, or None.

    Returns:
        The name of the version that now holds this content: `after` itself when it says the same
        already and is whole, and then nothing is written.

    Raises:
        CommitConflictError: If another build committed first.
    """
    manifest, files = render_version(draft)
    if after is not None:
        wanted = {**files, "dataset.json": manifest.to_bytes()}
        current = [(store / "versions" / after / name, content) for name, content in wanted.items()]
        # One with a damaged index would else be what every build finds, and leaves so.
        if all(path.is_file() and path.read_bytes() == content for path, content in current):
            return after
    return commit_version(store, manifest, files, after=after)
