"""Checks of a store: how it was written, and what else the stream needs before it can read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from shards import Store
from shards.compact import DEAD_SHARE, MOST_SMALL, TARGET_BYTES
from shards.localcache import BOUND, MOST_BYTES, PLACE, LocalCache
from shards.maps import chunk_file
from shards.schema import ShardEntry
from shards.shape import describe_shape
from trialshards.doctor.check import Check, verdict
from trialshards.sizes import show_bytes, streamed_arrays

FAST = "TRIALSHARDS_FAST"
"""As in `loaders.copying`, which is not imported here: torch may not be there."""


def check_shards(store: Store) -> Check:
    """Look for what `trialshards compact` would rewrite."""
    manifest = store.manifest
    target = int((manifest.spec.get("shards") or {}).get("target_bytes") or TARGET_BYTES)
    sizes = [raw_bytes(entry) for entry in manifest.shards]
    n_small = sum(size * 4 < target for size in sizes)
    shape = describe_shape(store)
    seen = (
        f"{len(sizes):,} shards, {n_small:,} of them under {show_bytes(target / 4)}; "
        f"{shape['dead_share']:.0%} of the rows are of no trial any more; "
        f"{shape['n_parts']} parts of the cold index"
    )
    due = n_small > MOST_SMALL or shape["n_parts"] > MOST_SMALL or shape["dead_share"] > DEAD_SHARE
    return verdict("shards", seen, f"trialshards compact {store.path}" if due else "")


def check_container(store: Store, numbers: Sequence[int]) -> Check:
    """Look whether compressed shards are decoded already.

    Args:
        store: The version.
        numbers: Of the shards that are read.
    """
    if store.manifest.container != "parquet":
        return verdict("container", "zarr: mapped as it is", "")
    entries = [store.manifest.shards[number] for number in numbers]
    cache = LocalCache()
    missing = [entry for entry in entries if cache.files([entry], "values") is None]
    seen = f"parquet: {len(entries) - len(missing)} of {len(entries)} shards are decoded"
    if not missing:
        return verdict("container", f"{seen} in {cache.place}", "")
    wanted = sum(raw_bytes(entry) for entry in entries)
    seen += f"; the first epoch decodes {show_bytes(sum(raw_bytes(entry) for entry in missing))}"
    remedy = (
        "decode them before: trialshards plan STORE; or build the store with shards.format: zarr"
    )
    said = os.environ.get(BOUND, "")
    # What the cache would hold to by itself depends on the disk; what was said holds in any case.
    bound = int(said) if said.isdecimal() else MOST_BYTES
    if wanted > bound:
        seen += f"; the cache may hold {show_bytes(bound)}"
        remedy = (
            f"set {BOUND} to {wanted} or more, or {PLACE} to a folder "
            "on a larger disk, or build the store with shards.format: zarr"
        )
    return verdict("container", seen, remedy.replace("STORE", str(store.path)))


def check_format(store: Store) -> Check:
    """Look for what early writers did not say."""
    minor = store.manifest.format_minor
    if "has_missing" in store.manifest.counts:
        return verdict("format", f"1.{minor}", "")
    return verdict(
        "format",
        f"1.{minor}, by a writer that did not say whether values are missing: every batch is "
        "searched for them",
        "build it into a new folder: trialshards build DATASET.yaml --store NEW",
    )


def check_fast_path() -> Check:
    """Look whether the compiled copy can be used."""
    if os.environ.get(FAST) == "0":
        return verdict("fast path", f"{FAST}=0 switches it off", f"unset {FAST}")
    if importlib.util.find_spec("llvmlite") is None:
        return verdict("fast path", "llvmlite is not installed", "pip install 'trialshards[fast]'")
    return verdict("fast path", "llvmlite is installed", "")


def raw_bytes(entry: ShardEntry) -> int:
    """Return the bytes of a shard's rows, not compressed."""
    return sum(spec.data_bytes for spec in entry.arrays.values())


def data_files(store: Store, numbers: Sequence[int]) -> list[tuple[Path, int]] | None:
    """Return the files that are mapped for some shards, and their sizes in bytes.

    Returns:
        None if compressed shards are not decoded yet.
    """
    files: list[tuple[Path, int]] = []
    for entry in (store.manifest.shards[number] for number in numbers):
        for name, spec in streamed_arrays(entry).items():
            if store.manifest.container != "parquet":
                files.append((chunk_file(store.path, entry.digest, name), spec.size_bytes))
                continue
            found = LocalCache().files([entry], name)
            if found is None:
                return None
            files += found
    return files
