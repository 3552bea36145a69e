"""Check every byte of the shards of a version, and every promise about their trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from shards.facts import TrialFacts
from shards.layout import array_metadata, chunk_tail, group_metadata, shard_digest
from shards.manifest import ShardEntry
from shards.problems import SHOWN_TRIALS, Problem
from shards.reader import Store


def trials_by_shard(store: Store) -> dict[int, npt.NDArray[np.int64]]:
    """Return the trial numbers that each shard number holds."""
    order = np.argsort(store.index.shard, kind="stable")
    shards, first = np.unique(store.index.shard[order], return_index=True)
    parts = np.split(order, first[1:]) if len(order) else []
    return {int(s): part for s, part in zip(shards, parts, strict=True)}


def check_shards(
    store: Store, facts: TrialFacts | None, on_shard: Callable[[int, int], None] | None
) -> list[Problem]:
    """Check every shard of a version.

    Args:
        store: The open version.
        facts: What the cold index says of the trials; None where the indexes cannot be trusted, and
            then nothing is said of trials.
        on_shard: Called with (shards done, shards in all).
    """
    members = {} if facts is None else trials_by_shard(store)
    problems = []
    for number, entry in enumerate(store.manifest.shards):
        numbers = members.get(number, np.empty(0, np.int64))
        # Without facts the index is not to be trusted, so it is not opened.
        named = tuple(store.index.id_of(int(i)) for i in numbers[:SHOWN_TRIALS])
        found = list(_check_shard_files(store.path / "shards" / entry.digest, entry, named))
        if not found and facts is not None:
            found = list(_check_trials(store, number, numbers, facts))
        problems += found
        if on_shard is not None:
            on_shard(number + 1, len(store.manifest.shards))
    return problems


def _check_shard_files(
    folder: Path, entry: ShardEntry, trials: tuple[str, ...]
) -> Iterator[Problem]:
    if shard_digest(dict(entry.arrays)) != entry.digest:
        yield Problem(str(folder), "its name does not follow from its arrays", trials)
    wanted = {"zarr.json": group_metadata()}
    for name, spec in entry.arrays.items():
        wanted[f"{name}/zarr.json"] = array_metadata(spec)
        yield from _check_chunk(folder / name / "c" / "0" / "0", spec, trials)
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file():
            yield Problem(str(path), "missing", trials)
        elif path.read_bytes() != content:
            yield Problem(str(path), "its bytes are not what its arrays require", trials)
    chunks = {f"{name}/c/0/0" for name in entry.arrays}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in wanted and name not in chunks:
            yield Problem(str(path), "a foreign file", trials)


def _check_chunk(path: Path, spec: Any, trials: tuple[str, ...]) -> Iterator[Problem]:
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


def _check_trials(
    store: Store, number: int, members: npt.NDArray[np.int64], facts: TrialFacts
) -> Iterator[Problem]:
    entry = store.manifest.shards[number]
    maps = {name: store.shard_rows(number, name) for name in entry.arrays}
    index = store.index
    broken: dict[str, list[str]] = {}
    for trial in members.tolist():
        start, stop = int(index.row_start[trial]), int(index.row_start[trial] + index.n_rows[trial])
        arrays = {name: rows[start:stop] for name, rows in maps.items()}
        unchanged, named = facts.holds(store, trial, arrays)
        for message, holds in (
            ("trials are not those their digests promise", unchanged),
            ("trials have codes that no word of theirs has", named),
            ("trials have infinite values", not np.isinf(arrays["values"]).any()),
        ):
            if not holds:
                broken.setdefault(message, []).append(index.id_of(trial))
    where = str(store.path / "shards" / entry.digest)
    for message, ids in broken.items():
        yield Problem(where, f"{len(ids)} {message}", tuple(ids[:SHOWN_TRIALS]))
