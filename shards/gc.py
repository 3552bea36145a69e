"""Remove versions that nobody needs, then whatever no version that stays refers to.

A version stays if it is among the newest, has a tag, or is open anywhere: an open one holds a lock
(`shards/leases.py`). Whoever is killed at any moment leaves every version that stays whole, because
versions go before what they name, and folders lose their names before their content. Files that are
mapped stay readable after their names are gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.disk import remove_all
from shards.errors import InvalidSpecError, StoreNotFoundError
from shards.layout import DIGEST
from shards.leases import refuse_link, removing, sole_use
from shards.manifest import Manifest
from shards.safety import read_inside
from shards.tags import read_tags
from shards.writer import list_versions

KEPT_VERSIONS = 3
"""The newest that stay by default: the one in use, and two to go back to after a bad build."""
_STAGED_DIGEST = re.compile(rb'"digest": ?"([0-9a-f]{32})"')
"""A shard or part in the schema of a staged bucket, which Arrow keeps as plain JSON."""


@dataclass(frozen=True)
class Removal:
    """What was removed, or would be.

    Attributes:
        versions: Names of versions, oldest first.
        kept: Versions that stay -> why: `newest`, `tag best`, `in use`.
        n_shards: Shards.
        n_parts: Parts of cold indexes.
        n_leftovers: Files and folders of killed builds, and staged buckets that cannot be used
            again, because shards of theirs are gone.
        n_bytes: Of all their files.
    """

    versions: tuple[str, ...]
    kept: Mapping[str, str]
    n_shards: int
    n_parts: int
    n_leftovers: int
    n_bytes: int


def gc_store(store: Path, *, keep: int = KEPT_VERSIONS, dry_run: bool = False) -> Removal:
    """Remove versions, and all that only they needed.

    Args:
        store: Store root.
        keep: How many of the newest versions stay in any case, at least 1. Tagged versions and
            those that are open, also in other processes, stay as well.
        dry_run: Only say what would be removed.

    Raises:
        InvalidSpecError: If `keep` is less than 1.
        StoreNotFoundError: If there is no store.
        StoreBusyError: If the store is being built, or its file system has no locks.
        CorruptStoreError: If a version that stays, or a tag, cannot be read: what it needs is not
            known, then. If a folder of the store is a link.
        FormatVersionError: If a newer trialshards wrote a version that stays.
    """
    if keep < 1:
        raise InvalidSpecError(f"keep is {keep}; wanted 1 or more of the newest versions.")
    if not list_versions(store):
        raise StoreNotFoundError(
            f"no committed version in {store}. Check the path; to start over, remove the folder."
        )
    for name in ("versions", "shards", "parts", "tags", "staging"):
        refuse_link(store / name)  # what it leads to is not ours to remove
    with removing(store), contextlib.ExitStack() as leases:
        versions = list_versions(store)
        kept = _why_kept(store, versions, keep)
        for version in [version for version in versions if version not in kept]:
            if not leases.enter_context(sole_use(_manifest_path(store, version))):
                kept[version] = "in use"
        named = _named(store, kept)
        gone = [store / "versions" / version for version in versions if version not in kept]
        shards, parts = _unnamed(store, named | _staged(store, versions[-1]))
        leftovers = [*_temporary(store), *_useless_staging(store, [*shards, *parts])]
        n_bytes = sum(map(_size, [*gone, *shards, *parts, *leftovers]))
        if not dry_run:
            remove_all(gone)  # in this order: what a version names outlives it
            remove_all([*shards, *parts, *leftovers])
    return Removal(
        versions=tuple(path.name for path in gone),
        kept={version: kept[version] for version in versions if version in kept},
        n_shards=len(shards),
        n_parts=len(parts),
        n_leftovers=len(leftovers),
        n_bytes=n_bytes,
    )


def _why_kept(store: Path, versions: list[str], keep: int) -> dict[str, str]:
    kept = dict.fromkeys(versions[-keep:], "newest")
    for name, tag in read_tags(store).items():
        if tag.version in versions:
            why = kept.get(tag.version, "")
            kept[tag.version] = f"{why}, tag {name}".removeprefix(", ")
    return kept


def _manifest_path(store: Path, version: str) -> Path:
    return store / "versions" / version / "dataset.json"


def _named(store: Path, versions: Iterable[str]) -> set[str]:
    """Return the digests of all shards and parts that versions refer to."""
    named: set[str] = set()
    for version in versions:
        path = _manifest_path(store, version)
        manifest = Manifest.from_bytes(read_inside(store, path), str(path))
        named |= {shard.digest for shard in manifest.shards}
        named |= {part.digest for part in manifest.parts}
    return named


def _staged(store: Path, newest: str) -> set[str]:
    """Return shards and parts that were staged since the last commit: a build may go on there.

    What was staged before is in a version by now, or was built from other files.
    """
    committed = _manifest_path(store, newest).stat().st_mtime_ns
    fresh = [path for path in _staged_files(store) if path.stat().st_mtime_ns > committed]
    return {digest for path in fresh for digest in _named_in(path)}


def _staged_files(store: Path) -> list[Path]:
    """Return the staged buckets."""
    return sorted(path for plan in _plans(store) for path in plan.glob("*.arrow"))


def _plans(store: Path) -> list[Path]:
    """Return the folders of staged buckets."""
    return [p for p in (store / "staging").glob("*") if p.is_dir() and not p.is_symlink()]


def _named_in(path: Path) -> set[str]:
    return {digest.decode() for digest in _STAGED_DIGEST.findall(path.read_bytes())}


def _unnamed(store: Path, named: set[str]) -> tuple[list[Path], list[Path]]:
    """Return the shards and the parts that nobody names."""
    shards = [p for p in (store / "shards").glob("*") if DIGEST.fullmatch(p.name)]
    parts = [p for p in (store / "parts").glob("*.parquet") if DIGEST.fullmatch(p.stem)]
    return (
        sorted(path for path in shards if path.name not in named),
        sorted(path for path in parts if path.stem not in named),
    )


def _temporary(store: Path) -> list[Path]:
    """Return what killed writers left: nobody writes now, so all of it."""
    folders = [store, *(store / name for name in ("shards", "parts", "versions", "tags"))]
    folders += (store / "staging", *_plans(store))
    return [path for folder in folders for path in folder.glob(".tmp-*")]


def _useless_staging(store: Path, unnamed: Iterable[Path]) -> list[Path]:
    """Return staged buckets that name shards or parts which are gone, or will be."""
    there = {path.stem for folder in ("shards", "parts") for path in (store / folder).glob("*")}
    there -= {path.stem for path in unnamed}
    return [path for path in _staged_files(store) if not _named_in(path) <= there]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        os.stat(f"{folder}/{name}").st_size  # noqa: PTH116 (many small files)
        for folder, _, names in os.walk(path)
        for name in names
    )
