"""Check every byte of the shards of a version, and every promise about their trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from shards.cutting import stored_digest
from shards.errors import CorruptStoreError, TrialShardsError
from shards.facts import TrialFacts
from shards.foreign import find_links
from shards.layout import ArraySpec, array_metadata, chunk_tail, group_metadata, shard_digest
from shards.manifest import ShardEntry, column_names
from shards.parquetshard import FILE, decode_shard
from shards.problems import SHOWN_TRIALS, Problem
from shards.reader import Store


def trials_by_shard(store: Store) -> dict[int, npt.NDArray[np.int64]]:
    """Return the trial numbers that each shard number holds."""
    order = np.argsort(store.index.shard, kind="stable")
    shards, first = np.unique(store.index.shard[order], return_index=True)
    parts = np.split(order, first[1:]) if len(order) else []
    return {int(s): part for s, part in zip(shards, parts, strict=True)}


def check_shards(
    store: Store,
    facts: TrialFacts | None,
    on_shard: Callable[[int, int], None] | None,
    *,
    has_index: bool = True,
) -> list[Problem]:
    """Check every shard of a version.

    Args:
        store: The open version.
        facts: What the cold index says of the trials; None where it cannot be trusted, and then
            they are not compared with it.
        on_shard: Called with (shards done, shards in all).
        has_index: Whether the hot index can be trusted; if not, nothing is said of trials.
    """
    members = trials_by_shard(store) if has_index else {}
    promised, problems = _promised_windows(store, facts)
    for number, entry in enumerate(store.manifest.shards):
        numbers = members.get(number, np.empty(0, np.int64))
        named = tuple(store.index.id_of(int(i)) for i in numbers[:SHOWN_TRIALS])
        found = list(_check_name(store, entry, named))
        folder = store.path / "shards" / entry.digest
        if links := find_links(folder):  # nothing behind them is looked at
            found += [Problem(str(path), "no file of its own", named) for path in links]
        elif entry.file is None:
            found += _check_zarr(store.path / "shards" / entry.digest, entry, named)
        else:
            found += _check_parquet(store.path / "shards" / entry.digest, named)
        if not found:
            found = list(_check_content(store, number, numbers, facts, promised))
        problems += found
        if on_shard is not None:
            on_shard(number + 1, len(store.manifest.shards))
    return problems


def _promised_windows(
    store: Store, facts: TrialFacts | None
) -> tuple[Sequence[str | None], list[Problem]]:
    """Return what the windows of each trial hash to, in layout windows."""
    if facts is None or store.manifest.layout == "rows":
        return (), []
    try:
        return store.cold("stored")["stored"].to_pylist(), []
    except (TrialShardsError, pa.ArrowException, KeyError) as error:
        problem = Problem(str(store.folder), f"no digests of the trials' windows: {error}")
        return [None] * len(store.index), [problem]


def _check_name(store: Store, entry: ShardEntry, trials: tuple[str, ...]) -> Iterator[Problem]:
    columns = None if entry.file is None else column_names(store.manifest)
    if shard_digest(entry.arrays, columns) != entry.digest:
        where = str(store.path / "shards" / entry.digest)
        yield Problem(where, "its name does not follow from its arrays", trials)


def _check_zarr(folder: Path, entry: ShardEntry, trials: tuple[str, ...]) -> Iterator[Problem]:
    wanted: dict[str, tuple[bytes, ...]] = {"zarr.json": (group_metadata(),)}
    for name, spec in entry.arrays.items():
        wanted[f"{name}/zarr.json"] = tuple(array_metadata(spec, n) for n in (name, None))
        yield from _check_chunk(folder / name / "c" / "0" / "0", spec, trials)
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file():
            yield Problem(str(path), "missing", trials)
        elif path.read_bytes() not in content:
            yield Problem(str(path), "its bytes are not what its arrays require", trials)
    chunks = {f"{name}/c/0/0" for name in entry.arrays}
    yield from _find_foreign(folder, {*wanted, *chunks}, trials)


def _check_parquet(folder: Path, trials: tuple[str, ...]) -> Iterator[Problem]:
    """Look for other files; the file itself is checked when it is decoded."""
    yield from _find_foreign(folder, {FILE}, trials)


def _find_foreign(folder: Path, known: set[str], trials: tuple[str, ...]) -> Iterator[Problem]:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in known:
            yield Problem(str(path), "a foreign file", trials)


def _check_chunk(path: Path, spec: ArraySpec, trials: tuple[str, ...]) -> Iterator[Problem]:
    if not path.is_file() or path.stat().st_size != spec.size_bytes:
        got = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
        yield Problem(str(path), f"{got}; wanted {spec.size_bytes} bytes", trials)
        return
    content = np.fromfile(path, np.uint8)
    rows, tail = content[: spec.data_bytes], content[spec.data_bytes :]
    if xxhash.xxh3_128_hexdigest(rows.data) != spec.xxh3_128:
        yield Problem(str(path), "its rows are not those the manifest promises", trials)
    if tail.tobytes() != chunk_tail(spec):
        yield Problem(str(path), "its padding or chunk index is broken", trials)


def _check_content(
    store: Store,
    number: int,
    members: npt.NDArray[np.int64],
    facts: TrialFacts | None,
    promised: Sequence[str | None],
) -> Iterator[Problem]:
    """Check the trials of a shard whose files are as they should be."""
    entry = store.manifest.shards[number]
    where = str(store.path / "shards" / entry.digest)
    try:
        arrays = _read_arrays(store, number)
    except CorruptStoreError as error:
        shown = tuple(store.index.id_of(int(i)) for i in members[:SHOWN_TRIALS])
        yield Problem(where, str(error), shown)
        return
    if facts is None:
        return
    index = store.index
    arrays.pop("time", None)  # no part of a trial's digest
    broken: dict[str, list[str]] = {}
    for trial in members.tolist():
        start, stop = int(index.row_start[trial]), int(index.row_start[trial])
        stop += int(store.n_stored[trial])
        own = {name: rows[start:stop] for name, rows in arrays.items()}
        for message, holds in _trial_claims(store, trial, own, facts, promised):
            if not holds:
                broken.setdefault(message, []).append(index.id_of(trial))
    for message, ids in broken.items():
        yield Problem(where, f"{len(ids)} {message}", tuple(ids[:SHOWN_TRIALS]))


def _read_arrays(store: Store, number: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a shard; one that is packed is unpacked here, and not into the cache.

    Raises:
        CorruptStoreError: If a packed one is not what the manifest promises.
    """
    entry = store.manifest.shards[number]
    if entry.file is None:
        return {name: store.shard_rows(number, name) for name in entry.arrays}
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.empty((spec.n_rows, spec.n_columns), spec.dtype)
        for name, spec in entry.arrays.items()
    }
    done = 0
    for group in decode_shard(store.path, entry):
        n_rows = len(group["values"])
        for name, rows in group.items():
            arrays[name][done : done + n_rows] = rows
        done += n_rows
    return arrays


def _trial_claims(
    store: Store,
    trial: int,
    own: dict[str, npt.NDArray[Any]],
    facts: TrialFacts,
    promised: Sequence[str | None],
) -> Iterator[tuple[str, bool]]:
    """Yield what must hold of a trial's own rows or windows."""
    if store.manifest.layout == "rows":
        unchanged, named = facts.holds(store, trial, own)
        yield "trials are not those their digests promise", unchanged
    else:
        codes = own.get("codes")
        flat = None if codes is None else codes.reshape(-1, len(store.manifest.codes))
        named = facts.has_words(trial, flat)
        yield "trials have not the windows they promise", stored_digest(own) == promised[trial]
    yield "trials have codes that no word of theirs has", named
    yield "trials have infinite values", not np.isinf(own["values"]).any()
