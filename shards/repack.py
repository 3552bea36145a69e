"""Move live trials from shards to new ones: which rows lie together, and writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from shards.errors import CorruptStoreError
from shards.manifest import ShardEntry
from shards.parquetshard import shard_file
from shards.reader import Store
from shards.writer import write_shard

Int64 = npt.NDArray[np.int64]


class Blocks(NamedTuple):
    """What lies in the shards of a version, each stretch of rows once.

    Attributes:
        trials: int64 `[blocks]`, rising: a trial that lies there, the first one; others with the
            same bytes may lie there, too.
        of: int64 `[trials]`: the block of each trial; -1 where it has nothing in any shard.
    """

    trials: Int64
    of: Int64


def find_blocks(store: Store) -> Blocks:
    """Return the different stretches of rows that trials lie in."""
    index, extent = store.index, store.n_stored
    full = np.flatnonzero(extent > 0)
    keys = [column[full] for column in (extent, index.row_start, index.shard)]
    order = np.lexsort(keys)
    is_new = np.ones(len(order), bool)
    if len(order):
        is_new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    first = full[order[is_new]]  # the sort is stable: of equal ones the lowest number
    by_trial = np.argsort(first)
    rank = np.empty_like(by_trial)
    rank[by_trial] = np.arange(len(by_trial))
    of = np.full(len(extent), -1, np.int64)
    of[full[order]] = rank[np.cumsum(is_new) - 1]
    return Blocks(first[by_trial], of)


class Repacked(NamedTuple):
    """Where blocks lie now.

    Attributes:
        entries: The new shards.
        shard: int64 `[moved blocks]`: place in `entries`.
        start: int64 `[moved blocks]`: first row there.
    """

    entries: list[ShardEntry]
    shard: Int64
    start: Int64


def repack_trials(store: Store, trials: Int64, target_bytes: int) -> Repacked:
    """Write the rows of some trials into new shards, in their order.

    Args:
        store: The version they are in.
        trials: int64 `[n]`; each must have rows.
        target_bytes: A shard ends before the trial that would make it larger.

    Raises:
        CorruptStoreError: If a shard that is read is not as promised.
    """
    packed = Repacked([], *(np.zeros(len(trials), np.int64) for _ in range(2)))
    sources = _Sources(store)
    extent, shards = store.n_stored[trials], store.index.shard[trials]
    for members in _alike(sources, shards):
        row_bytes = sum(a.row_bytes for a in sources.entry(int(shards[members[0]])).arrays.values())
        for chosen in _fill(members, extent * row_bytes, target_bytes):
            packed.shard[chosen] = len(packed.entries)
            packed.start[chosen] = np.cumsum(extent[chosen]) - extent[chosen]
            packed.entries.append(sources.join(trials[chosen]))
    return packed


def _alike(sources: _Sources, shards: npt.NDArray[Any]) -> Iterator[Int64]:
    """Yield the places of those that may lie in one shard: with the same arrays and names."""
    kinds: dict[str, list[int]] = {}
    for shard in np.unique(shards).tolist():
        arrays = sorted(sources.entry(shard).arrays)
        kinds.setdefault(json.dumps([arrays, sources.columns(shard)]), []).append(shard)
    for members in kinds.values():
        yield np.flatnonzero(np.isin(shards, members))


def _fill(members: Int64, n_bytes: Int64, target_bytes: int) -> Iterator[Int64]:
    """Yield members that fit into the target together; all but the last fill a quarter of it.

    One that leaves less than a quarter to others goes alone, and ends no shard: else tiny trials
    between huge ones would lie in tiny shards, which are due to be compacted again.
    """
    size, shard = 0, 0
    shards = np.empty(len(members), np.int64)
    for place, more in enumerate(n_bytes[members].tolist()):
        if more * 4 > target_bytes * 3:
            shards[place] = -1
            continue
        if size and size + more > target_bytes:
            size, shard = 0, shard + 1
        shards[place] = shard
        size += more
    yield from members[shards < 0].reshape(-1, 1)
    kept = members[shards >= 0]
    if len(kept):
        yield from np.split(kept, np.flatnonzero(np.diff(shards[shards >= 0])) + 1)


class _Sources:
    """The shards that rows are taken from, each checked once before any of its rows is moved."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._maps: dict[tuple[int, str], npt.NDArray[Any]] = {}
        self._checked: set[tuple[int, str]] = set()

    def entry(self, shard: int) -> ShardEntry:
        """Return what the manifest says of a shard."""
        return self._store.manifest.shards[shard]

    def columns(self, shard: int) -> Any:
        """Return the names that a Parquet shard has for the columns of its arrays."""
        entry = self.entry(shard)
        if entry.file is None:
            return None
        path = shard_file(self._store.path, entry.digest)
        return json.loads((pq.read_schema(path).metadata or {}).get(b"trialshards", b"null"))

    def join(self, trials: Int64) -> ShardEntry:
        """Write the rows of trials as one shard."""
        runs = self._runs(trials)
        used = {shard for shard, _, _ in runs}
        self._maps = {key: rows for key, rows in self._maps.items() if key[0] in used}
        arrays = {
            name: [self._rows(shard, name)[start:stop] for shard, start, stop in runs]
            for name in self.entry(runs[0][0]).arrays
        }
        return write_shard(
            self._store.path,
            arrays,
            len(trials),
            container=self._store.manifest.container,
            columns=self.columns(runs[0][0]),
        )

    def _runs(self, trials: Int64) -> list[tuple[int, int, int]]:
        """Return (shard, first row, end) of the trials, those that follow each other joined."""
        index = self._store.index
        shard, start = index.shard[trials].astype(np.int64), index.row_start[trials]
        stop = start + self._store.n_stored[trials]
        breaks = np.flatnonzero((shard[1:] != shard[:-1]) | (start[1:] != stop[:-1])) + 1
        first, last = np.r_[0, breaks], np.r_[breaks, len(trials)] - 1
        columns = (shard[first].tolist(), start[first].tolist(), stop[last].tolist())
        return list(zip(*columns, strict=True))

    def _rows(self, shard: int, name: str) -> npt.NDArray[Any]:
        if (shard, name) not in self._maps:
            rows = self._maps[shard, name] = self._store.shard_rows(shard, name)
            self._check(shard, name, rows)
        return self._maps[shard, name]

    def _check(self, shard: int, name: str, rows: npt.NDArray[Any]) -> None:
        """Refuse rows that are not as promised: moved, they would get a digest that fits."""
        if (shard, name) in self._checked:
            return
        entry = self.entry(shard)
        if xxhash.xxh3_128_hexdigest(rows.data) != entry.arrays[name].xxh3_128:
            raise CorruptStoreError(
                f"{self._store.path / 'shards' / entry.digest}: {name} is not what the manifest "
                f"promises. Nothing was published. Run: trialshards verify {self._store.path}"
            )
        self._checked.add((shard, name))
