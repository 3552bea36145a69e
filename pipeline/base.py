"""The version that a build goes on from: which files it knows, and their index rows.

A build takes over whatever its base was built from and has not changed since. It may do so where
the same specification, read by the same stages, made the base; `Manifest.build` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import Refusal
from pipeline.filetable import column_list, digest_of_listing
from shards.errors import CorruptStoreError, TrialShardsError
from shards.manifest import Manifest, Tombstone
from shards.maps import missing_file, shard_files
from shards.parts import part_path, read_part
from shards.reader import Store
from shards.writer import list_versions, newest_version

log = logging.getLogger(__name__)

INDEX_COLUMNS = ("id", "digest", "source", "n_rows", "shard", "row_start")
"""What a bucket says of its segments beside their cold rows; with gaps also `trial`."""
CATALOG_STAGE = "catalog"
_FEW = 500
"""Ids that are faster to look up one by one than to join."""


@dataclass(frozen=True)
class Base:
    """The newest version, and what of it may be taken over.

    Attributes:
        store: The open version.
        reusable: Whether the same plan made it and all its files are there; if not, only its
            tombstones count.
    """

    store: Store
    reusable: bool

    @property
    def manifest(self) -> Manifest:
        """What the version says of itself."""
        return self.store.manifest

    @property
    def tombstones(self) -> tuple[Tombstone, ...]:
        """Trials that were taken out by hand."""
        return self.manifest.tombstones

    @cached_property
    def sources(self) -> pa.ChunkedArray:
        """The source of every index row."""
        return self._cold["source"]

    def says(self, name: str) -> Any:
        """Return an entry of `Manifest.build`, what an earlier build noted for this one."""
        return self.manifest.build.get(name) if self.reusable else None

    @cached_property
    def _parts(self) -> pa.Table:
        """What all parts say of files, one below the other, rows of no trial too: read once."""
        names = ["source", "size_bytes", "mtime_ns", "digest"]
        if "max_gap" in _time_of(self.manifest):
            names.append("trial")
        entries = self.manifest.parts
        tables = [read_part(self.store.path, entry, names) for entry in entries]
        return pa.concat_tables(tables, promote_options="permissive")

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """The row of each index row in `_parts`."""
        part, row = self.store.index.places()
        n_rows = np.array([entry.n_rows for entry in self.manifest.parts], np.int64)
        if len(part) and not (
            min(part.min(), row.min()) >= 0
            and part.max() < len(n_rows)
            and (row < n_rows[part]).all()
        ):
            raise CorruptStoreError(
                f"{self.store.path}: the hot index names cold rows that no part has. "
                f"Run: trialshards verify {self.store.path}"
            )
        places: npt.NDArray[np.int64] = (np.cumsum(n_rows) - n_rows)[part] + row
        return places

    @cached_property
    def _cold(self) -> pa.Table:
        """The source and the digest of every index row; with gaps also its trial."""
        parts = self._parts.drop_columns(["size_bytes", "mtime_ns"]).combine_chunks()
        return parts.take(pa.array(self._places))

    @cached_property
    def known(self) -> dict[str, tuple[int, int]]:
        """Path -> (size in bytes, modification time in ns) of every file that was read or left out.

        A file that could not be read, or that its path refuses, is looked at again each time.
        """
        if not self.reusable:
            return {}
        known = self._accepted()
        for refusal in self.refusals:
            if refusal.mtime_ns is not None:
                known.setdefault(refusal.source, (refusal.size_bytes, refusal.mtime_ns))
        for stone in self.tombstones:
            known.setdefault(stone.source, (stone.size_bytes, stone.mtime_ns))
        for path in self.says("again") or ():  # a trial of theirs shall come back
            known[path] = (-1, -1)
        return known

    def _accepted(self) -> dict[str, tuple[int, int]]:
        """Return the files of all trials, without bringing their rows into the order of ids."""
        is_live = np.zeros(self._parts.num_rows, np.bool_)
        is_live[self._places] = True
        live = is_live.tolist()
        path, size, mtime = (
            compress(column_list(self._parts, name), live)
            for name in ("source", "size_bytes", "mtime_ns")
        )
        return dict(zip(path, zip(size, mtime, strict=True), strict=True))

    @cached_property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everything that was quarantined."""
        # Not read_table: that imports pandas where it is there.
        file = pq.ParquetFile(self.store.folder / "quarantine.parquet")
        return tuple(Refusal(**row) for row in file.read().to_pylist())

    @cached_property
    def taken_out(self) -> frozenset[str]:
        """Files that are known only because all their trials were taken out by hand."""
        if not (self.reusable and self.tombstones):
            return frozenset()
        others = {refusal.source for refusal in self.refusals}.union(self.sources.to_pylist())
        return frozenset(stone.source for stone in self.tombstones) - others

    @property
    def listing(self) -> str:
        """Digest of the raw files as they were, equal to that of a catalog of the same files."""
        by_catalog = [r for r in self.refusals if r.stage == CATALOG_STAGE]
        return digest_of_listing(self.known, by_catalog, str(self.says("tables")))

    def kept_refusals(self, gone: Collection[str]) -> tuple[Refusal, ...]:
        """Return what still holds of the quarantine.

        Args:
            gone: Paths that are no more, or are read again.
        """
        if not self.reusable:
            return ()
        return tuple(
            refusal
            for refusal in self.refusals
            if refusal.mtime_ns is not None and refusal.source not in gone
        )

    def rows(self, gone: Collection[str]) -> pa.Table:
        """Return the index rows of all files but some, in id order.

        Columns are `INDEX_COLUMNS`, `part`, `part_row`, `split` and, with gaps, `trial`.
        """
        index, manifest, cold = self.store.index, self.manifest, self._cold
        part, part_row = index.places()
        shards, parts = ([e.digest for e in some] for some in (manifest.shards, manifest.parts))
        columns: dict[str, Any] = {
            "id": index.ids,
            "digest": cold["digest"],
            "source": cold["source"],
            "n_rows": index.n_rows,
            "shard": pa.array(shards).take(pa.array(index.shard)),
            "row_start": index.row_start,
            "part": pa.array(parts).take(pa.array(part)),
            "part_row": part_row,
            "split": pa.array(list(manifest.splits)).take(pa.array(index.split)),
        }
        if "trial" in cold.column_names:
            columns["trial"] = cold["trial"]
        table = pa.table(columns)
        if not gone:
            return table
        import pyarrow.compute as pc  # slow to load, and a look that finds nothing new needs none

        lost = pc.is_in(cold["source"], value_set=pa.array(sorted(gone), pa.utf8()))
        return table.filter(pc.invert(lost))

    def rows_of(self, ids: pa.ChunkedArray, *more: str) -> pa.Table:
        """Return `digest`, `shard` and `row_start` of some ids in order; null where it has none.

        Args:
            ids: Of trial segments.
            more: Cold columns to be returned as well.
        """
        import pyarrow.compute as pc

        index = self.store.index
        if len(ids) <= _FEW:
            at = pa.array([index.find(trial_id) for trial_id in ids.to_pylist()], pa.int64())
        else:
            at = pc.index_in(ids.combine_chunks(), value_set=index.ids)
        place = at.fill_null(0)
        shards = pa.array([entry.digest for entry in self.manifest.shards])
        return pa.table(
            {
                "digest": self._cold["digest"].take(at),
                "shard": shards.take(pa.array(index.shard).take(place)),
                "row_start": pa.array(index.row_start).take(place),
                **{name: self.store.cold(name)[name].take(at) for name in more},
            }
        )


def _time_of(manifest: Manifest) -> dict[str, Any]:
    """Return `source.time` as far as it says anything."""
    time = (manifest.spec.get("source") or {}).get("time") or {}
    return {name: value for name, value in time.items() if value is not None}


def find_base(root: Path, plan: str) -> Base | None:
    """Return the newest version as the base of a build; None without one, or if it is damaged.

    Args:
        root: Store root.
        plan: What makes trials equal if files are (`buckets.plan_digest`).
    """
    return read_base(root, lambda said, _: said.get("plan") == plan)


def read_base(
    root: Path, suits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
) -> Base | None:
    """Return the newest version; None without one that can be opened.

    Args:
        root: Store root.
        suits: Tells from `build` and `spec` of a manifest whether its trials may be taken over.
    """
    version = newest_version(root)
    if version is None:
        return None
    try:
        store = Store(root, version)
    except (TrialShardsError, OSError) as error:
        log.warning("everything is built again: %s", error)
        return _older_base(root)
    manifest = store.manifest
    if not manifest.parts or not suits(manifest.build, manifest.spec):
        return Base(store, reusable=False)
    if missing := _missing(store):
        log.warning("%s %s lacks %s; everything is built again", root, version, missing)
        return Base(store, reusable=False)
    base = Base(store, reusable=True)
    try:
        base.known  # noqa: B018 - so that a damaged index is found now
    except (TrialShardsError, OSError, pa.ArrowException) as error:
        log.warning("everything is built again: %s", error)
        return Base(store, reusable=False)  # what was taken out by hand stays out
    return base


def _older_base(root: Path) -> Base | None:
    """Return the newest version that can be opened, for its tombstones; None without one."""
    for version in reversed(list_versions(root)):
        try:
            return Base(Store(root, version), reusable=False)
        except (TrialShardsError, OSError):
            continue
    return None


def _missing(store: Store) -> str:
    """Return a file that the version needs and that is not there, or has another size."""
    own = store.manifest.files.items()
    needed = [(store.folder / name, int(promise["size_bytes"])) for name, promise in own]
    needed += [(part_path(store.path, p.digest), p.size_bytes) for p in store.manifest.parts]
    for shard in store.manifest.shards:
        needed += shard_files(store.path, shard)
    return missing_file(needed)
