"""Publish shards and versions: temporary name, fsync, one exclusive rename, manifest last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.disk import (
    claim_folder,
    make_folder,
    remove_all,
    replace_file,
    sync_store,
    temporary_folder,
    write_files,
)
from shards.errors import CommitConflictError, CorruptStoreError
from shards.identity import file_promise, little_endian
from shards.layout import (
    ArraySpec,
    array_metadata,
    chunk_tail,
    describe_array,
    group_metadata,
    shard_digest,
)
from shards.manifest import Manifest, ShardEntry
from shards.maps import missing_file, shard_files
from shards.parquetshard import FILE, decode_shard, encode_shard, shard_file

VERSION_NAME = re.compile(r"v[0-9]{4,}")

Rows = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]


def write_shard(
    store: Path,
    arrays: Mapping[str, Rows],
    n_trials: int,
    *,
    container: str = "zarr",
    columns: Mapping[str, Sequence[str]] | None = None,
) -> ShardEntry:
    """Write one immutable shard, unless the store already holds the same content.

    One that is there and damaged makes way: whoever writes it again needs it.

    Args:
        store: Store root.
        arrays: `[rows, columns]` float64, float32, uint16 or uint8 in C order, equally many rows;
            or such arrays in pieces, so that nobody needs to join them.
        n_trials: Trials in it.
        container: `zarr` or `parquet`.
        columns: Container parquet: names of the columns of its arrays, for other readers.

    Returns:
        What the manifest lists.
    """
    pieces = {
        name: [little_endian(p) for p in ([rows] if isinstance(rows, np.ndarray) else rows)]
        for name, rows in arrays.items()
    }
    specs = {name: describe_array(*parts) for name, parts in pieces.items()}
    if len({spec.n_rows for spec in specs.values()}) != 1:
        raise ValueError(f"arrays of one shard differ in rows: {specs}")
    if wide := [n for n, spec in specs.items() if spec.dtype == "float64" and n != "time"]:
        raise ValueError(f"arrays {wide} are float64, which only times may be")
    named = None if container == "zarr" else {k: list(v) for k, v in (columns or {}).items()}
    entry = ShardEntry(shard_digest(specs, named), specs["values"].n_rows, n_trials, specs)
    final = store / "shards" / entry.digest
    if final.is_dir() and not _is_whole(store, entry, is_parquet=named is not None):
        remove_all([final])
    if not final.is_dir():
        files = _zarr_files(pieces, specs)
        if named is not None:
            files = {FILE: [memoryview(encode_shard(pieces, specs, named))]}
        with temporary_folder(final.parent) as temporary:
            write_files(temporary, files)
            claim_folder(temporary, final)
    if named is None:
        return entry
    return _with_file(store, entry)


def _with_file(store: Path, entry: ShardEntry) -> ShardEntry:
    """Promise the file that is there: another version of the library may pack it otherwise."""
    return replace(entry, file=file_promise(shard_file(store, entry.digest).read_bytes()))


def _is_whole(store: Path, entry: ShardEntry, *, is_parquet: bool) -> bool:
    """Return whether a shard that is there can be used: no file is missing or cut short."""
    if not is_parquet:
        return not missing_file(shard_files(store, entry))
    try:
        for _ in decode_shard(store, _with_file(store, entry)):
            pass
    except (CorruptStoreError, OSError):
        return False
    return True


def _zarr_files(
    pieces: Mapping[str, Sequence[npt.NDArray[Any]]], specs: Mapping[str, ArraySpec]
) -> dict[str, list[bytes | memoryview]]:
    """Return the files of a Zarr group, in parts, by path below it."""
    files: dict[str, list[bytes | memoryview]] = {}
    for name, parts in pieces.items():
        rows = [part.data.cast("B") for part in parts if len(part)]
        files[f"{name}/c/0/0"] = [*rows, chunk_tail(specs[name])]
        files[f"{name}/zarr.json"] = [array_metadata(specs[name], name)]
    return {**files, "zarr.json": [group_metadata()]}


def list_versions(store: Path) -> list[str]:
    """Return the committed versions of a store, oldest first."""
    folder = store / "versions"
    if not folder.is_dir():
        return []
    names = [
        entry.name
        for entry in folder.iterdir()
        if VERSION_NAME.fullmatch(entry.name) and (entry / "dataset.json").is_file()
    ]
    return sorted(names, key=lambda name: int(name[1:]))


def newest_version(store: Path) -> str | None:
    """Return the newest committed version of a store, or None."""
    return next(reversed(list_versions(store)), None)


def commit_version(
    store: Path, manifest: Manifest, files: Mapping[str, bytes], *, after: str | None
) -> str:
    """Publish a version.

    Args:
        store: Store root.
        manifest: What `dataset.json` says.
        files: The other files of the version by name.
        after: The newest version when this build began, or None: the commit is refused if
            another one has come since.

    Returns:
        The new version's name.

    Raises:
        CommitConflictError: If another build committed first.
    """
    folder = store / "versions"
    make_folder(folder)
    # Beyond any folder that is in the way, also one that never became a version. Listed before the
    # newest version is looked up: a commit in between then takes the very number claimed below.
    taken = [int(p.name[1:]) for p in folder.iterdir() if VERSION_NAME.fullmatch(p.name)]
    newest = newest_version(store)
    if newest != after:
        raise _conflict(store, newest, after)
    version = f"v{max(taken, default=0) + 1:04d}"
    sync_store(store)
    contents = {**files, "dataset.json": manifest.to_bytes()}
    with temporary_folder(folder) as temporary:
        write_files(temporary, {name: [content] for name, content in contents.items()})
        if not claim_folder(temporary, folder / version):
            raise _conflict(store, version, after)
    replace_file(store / "latest.json", f'{{"version": "{version}"}}\n'.encode())
    return version


def _conflict(store: Path, version: str | None, after: str | None) -> CommitConflictError:
    what = f"version {version} was committed" if version else "all versions were removed"
    return CommitConflictError(
        f"{store}: {what} by somebody else while this build ran (it started from "
        f"{after or 'an empty store'}). Run the build again."
    )
