"""Check every byte and every promise of one version, and name what is broken."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.codes import fitted_inputs
from shards.errors import CorruptStoreError, InvalidSpecError, TrialShardsError
from shards.facts import read_facts
from shards.foreign import find_foreign
from shards.identity import dataset_fingerprint, file_promise
from shards.parquetfile import admit_table
from shards.parts import part_path
from shards.problems import SHOWN_TRIALS, Problem
from shards.reader import Store
from shards.safety import check_file
from shards.sources_check import check_sources
from shards.verify_shards import check_shards
from shards.version import fingerprint_splits


def verify_store(
    path: str | Path,
    version: str | None = None,
    *,
    sources: str | Path | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Check one version; an empty list means that every promise holds.

    Args:
        path: Store root.
        version: By default the newest.
        sources: The folder that source files lie below: they are read again, and compared with
            what the version was built from.
        on_shard: Called with (shards done, shards in all).

    Raises:
        StoreNotFoundError: If there is no such version.
        CorruptStoreError: If the manifest itself cannot be read.
        FormatVersionError: If a newer trialshards wrote it.
        InvalidSpecError: If `sources` is no folder.
    """
    store = Store(path, version)
    problems = list(find_foreign(store))
    if broken := list(_check_index(store)):  # so nothing can be said of trials
        problems += [*broken, *_check_files(store)]
        return problems + check_shards(store, None, on_shard, has_index=False)
    if broken := [*_check_files(store), *_check_parts(store)]:
        return problems + broken + check_shards(store, None, on_shard)
    try:
        trials = store.cold()
        problems += _check_identity(store, trials)
        fitted_inputs(store)
        _check_delivery(store)
        facts = read_facts(store, trials)
        if sources is not None:
            problems += check_sources(store, Path(sources))
    except InvalidSpecError:
        raise
    except _UNUSABLE as error:
        broken = [Problem(str(store.folder), f"the indexes cannot be used: {error}")]
        return problems + broken + check_shards(store, None, on_shard)
    return problems + check_shards(store, facts, on_shard)


INDEX = "index.arrow"
_UNUSABLE = (TrialShardsError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError)


def _check_file(store: Store, path: Path, promise: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a file, read through a map."""
    try:
        found = check_file(store.path, path)
    except CorruptStoreError as error:
        yield str(error) if path.exists() or path.is_symlink() else "missing"
        return
    said = f"its bytes are not those the manifest promises ({dict(promise)})"
    if found.st_size != promise["size_bytes"]:
        yield f"it has {found.st_size} bytes: {said}"
        return
    with path.open("rb") as file:
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found.st_size else b""
        if file_promise(raw) != promise:
            yield said


def _check_files(store: Store) -> Iterator[Problem]:
    for name in store.manifest.version_files:
        path = store.folder / name
        if name == INDEX:
            continue
        for message in _check_file(store, path, store.manifest.files[name]):
            yield Problem(str(path), message)


def _check_index(store: Store) -> Iterator[Problem]:
    path = store.folder / INDEX
    messages = list(_check_file(store, path, store.manifest.files[INDEX]))
    if not messages:
        try:
            store.index  # noqa: B018 - it is checked when it is opened
        except TrialShardsError as error:
            messages = [f"it cannot be used: {error}"]
    for message in messages:
        yield Problem(str(path), message)


def _check_parts(store: Store) -> Iterator[Problem]:
    part = store.index.part
    for number, entry in enumerate(store.manifest.parts):
        path = part_path(store.path, entry.digest)
        promise = {"size_bytes": entry.size_bytes, "xxh3_128": entry.digest}
        members = () if part is None else np.flatnonzero(part == number)[:SHOWN_TRIALS]
        trials = tuple(store.index.id_of(int(member)) for member in members)
        for message in _check_file(store, path, promise):
            yield Problem(str(path), message, trials)


def _check_delivery(store: Store) -> None:
    """Refuse a fit that cannot be delivered by.

    Raises:
        CorruptStoreError: If a constant is missing, or is no number.
    """
    if not store.delivery.is_finite():
        raise CorruptStoreError(
            f"{store.folder / 'fit.json'}: a constant is no finite number. Restore it, or open "
            "another version."
        )
    path, name = store.folder / "quarantine.parquet", "quarantine.parquet"
    admit_table(store.path, path, store.manifest.files[name], None)


def _check_counts(store: Store) -> list[Problem]:
    index, manifest = store.index, store.manifest
    n_windows = [index.n_windows[index.split == code] for code in range(len(manifest.splits))]
    got = {
        "rows": int(index.n_rows.sum()),
        "windows": {s: int(n.sum()) for s, n in zip(manifest.splits, n_windows, strict=True)},
    }
    return [
        Problem(str(store.folder), f"it has {value} {name}, the manifest counts {wanted}")
        for name, value in got.items()
        if (wanted := manifest.counts.get(name)) != value
    ]


def _check_identity(store: Store, trials: pa.Table) -> list[Problem]:
    manifest, where = store.manifest, str(store.folder / "trials.parquet")
    if not trials["id"].cast(pa.large_utf8()).combine_chunks().equals(store.index.ids):
        return [Problem(where, "its ids are not those of index.arrow")]
    if trials["digest"].null_count:
        return [Problem(where, "a trial has no digest")]
    problems = _check_counts(store)
    split = pa.array([manifest.splits[code] for code in store.index.split], pa.utf8())
    got = fingerprint_splits(manifest, store.fit, trials.append_column("split", split))
    if got != manifest.fingerprints or dataset_fingerprint(got) != manifest.fingerprint:
        problems.append(Problem(where, "fingerprints do not follow from the trials' digests"))
    return problems
