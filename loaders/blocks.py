"""The epoch plan for stores larger than memory: a pool of blocks at a time. Pure NumPy, no files.

A block is a run of neighbouring trials of one shard. Each epoch permutes the blocks,
`pool_blocks` successive ones make a pool, and the draws of a pool come in random order before the
next pool begins. Reads thereby touch no more than a pool at a time, and the pages of the last one
may go. Every step is the keyed bijection of `loaders/order.py`, so that any position of any epoch
is one evaluation away here as well.

Unlike the order over a whole epoch, this one is tied to the packing of a version: where the trials
lie decides which of them meet in a pool. Checkpoints rely on it; `BLOCK_ORDER_VERSION` tells a
better one apart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.order import EpochPlan, Int64, _TrialLookup, permute, splitmix64
from shards.errors import InvalidSpecError

BLOCK_ORDER_VERSION = 1
LEAST_POOL_BLOCKS = 2
"""With a single block a batch would hold neighbours alone."""

_POOL_KEY = 0x94D049BB133111EB
"""Sets the keys of blocks and pools apart from the round keys that follow an epoch's key."""
_EPOCHS_KEPT = 2  # one being read, one being prepared


def cut_blocks(
    shard: npt.NDArray[Any], row_start: Int64, n_rows: Int64, *, row_bytes: int, block_bytes: int
) -> Int64:
    """Number the blocks of some trials in storage order.

    A block begins with each shard, and with the first trial that starts at or behind a multiple of
    `block_bytes`, in bytes of these trials of the shard: what lies between them does not count. A
    block is below `block_bytes` long without its last trial. Trials are never cut.

    Args:
        shard: `[n]` integer, shard number of each trial.
        row_start: `[n]` int64, first row in the shard; the trials may come in any order.
        n_rows: `[n]` int64.
        row_bytes: Bytes of a row.
        block_bytes: Size aimed at.

    Returns:
        `[n]` int64, 0, 1, 2, ... without gaps.

    Raises:
        InvalidSpecError: If `row_bytes` or `block_bytes` is below 1.
    """
    _check_at_least("row_bytes", row_bytes, 1)
    _check_at_least("block_bytes", block_bytes, 1)
    storage = np.lexsort((row_start, shard))
    home = np.asarray(shard)[storage]
    size = np.asarray(n_rows, np.int64)[storage] * row_bytes
    before = np.cumsum(size) - size
    starts_shard = np.diff(home, prepend=home[:1] - 1) != 0
    # Bytes ahead of the trial in its shard: `before` never falls, so the last start is the largest.
    before -= np.maximum.accumulate(np.where(starts_shard, before, 0))
    passed = before // block_bytes
    starts_block = starts_shard | (np.diff(passed, prepend=0) != 0)
    numbers = np.empty(len(storage), np.int64)
    numbers[storage] = np.cumsum(starts_block) - 1
    return numbers


def pool_blocks_of(blocks: Int64, n_bytes: Int64, pool_bytes: int) -> int:
    """Return how many blocks make a pool of `pool_bytes` on average; at least 2.

    By the blocks as they are: those of small shards are below `block_bytes`, those of long trials
    above. Where `pool_bytes` holds every block the answer is their number.

    Args:
        blocks: `[n]` int64, as of `cut_blocks`.
        n_bytes: `[n]` int64, bytes of each trial.
        pool_bytes: Size aimed at.

    Raises:
        InvalidSpecError: If `pool_bytes` is below 1.
    """
    _check_at_least("pool_bytes", pool_bytes, 1)
    n_blocks = len(np.unique(blocks))
    total = max(1, int(n_bytes.sum()))
    return max(LEAST_POOL_BLOCKS, min(n_blocks, pool_bytes * n_blocks // total))


class Pool(NamedTuple):
    """Positions `[first, last)` of an epoch and the blocks that they draw from."""

    first: int
    last: int
    blocks: Int64


class _Pools(NamedTuple):
    """The tables of an epoch; slots of blocks are consecutive in the order of the epoch."""

    key: int
    order: Int64  # [blocks] rank of the block that comes at each place
    ends: Int64  # [pools + 1] first position of each pool, then the draws of the epoch
    offset: Int64  # [blocks] from a slot of the epoch to the slot in storage order
    lookup: _TrialLookup


@dataclass(frozen=True, eq=False)
class BlockPlan(EpochPlan):
    """Which windows an epoch draws, in an order that reads a pool of blocks at a time.

    The draws of an epoch are those of an `EpochPlan` of the same numbers and seed; only their
    order is another.

    Attributes:
        n_windows: `[trials]` int64, windows of each trial.
        quotas: `[trials]` int64, draws of each trial per epoch; 0 where there are no windows.
        seed: Any integer >= 0.
        shuffle: `blocks`.
        blocks: `[trials]` int64, number of the block of each trial, in any order; a number may
            have no trials or no draws, and then takes no place in a pool.
        pool_blocks: Blocks of a pool, at least 1; the last pool of an epoch takes what is left.

    Raises:
        InvalidSpecError: If `blocks` is not one number per trial, `pool_blocks` is below 1, or a
            trial is too long for quotas that differ from its windows.
    """

    shuffle: str = field(default="blocks", init=False)
    blocks: Int64 = field(kw_only=True)
    pool_blocks: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks.shape != self.n_windows.shape:
            raise InvalidSpecError(
                f"blocks has shape {self.blocks.shape}; wanted {self.n_windows.shape}, the number "
                "of its block for each trial. Make them with cut_blocks."
            )
        _check_at_least("pool_blocks", self.pool_blocks, 1)

    def draws_at(self, epoch: int, positions: Int64) -> tuple[Int64, Int64]:
        """Return `(trial, window)` of ascending positions."""
        pools = self._pools(epoch)
        slots = np.empty(len(positions), np.int64)
        done = 0
        while done < len(positions):
            pool = _pool_at(pools, int(positions[done]))
            start, end = int(pools.ends[pool]), int(pools.ends[pool + 1])
            part = slice(done, int(np.searchsorted(positions, end)))
            key = splitmix64(pools.key + 1 + pool)
            slots[part] = permute(positions[part] - start, end - start, key) + start
            done = part.stop
        slots += pools.offset[pools.lookup(slots)]
        place = self._place_of(slots)
        trial = self._storage[place]
        draw = slots - self._storage_slots[place]
        return trial, draw if self.draws_each_once else self._window(trial, draw, epoch)

    def pool_of(self, epoch: int, position: int) -> int:
        """Return the number of the pool in `pools(epoch)` that holds `position`."""
        return _pool_at(self._pools(epoch), position)

    def pools(self, epoch: int) -> list[Pool]:
        """Return the pools of an epoch in the order in which it reads them."""
        pools = self._pools(epoch)
        numbers = self._live[pools.order]
        ends, size = pools.ends.tolist(), self.pool_blocks
        return [
            Pool(first, last, numbers[i * size : (i + 1) * size])
            for i, (first, last) in enumerate(itertools.pairwise(ends))
        ]

    def digest(self, identity: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but the seed that decides the batches.

        The blocks and the size of a pool are a part of it: a version that packs the same trials in
        another way has another order.
        """
        blocks = hashlib.sha256(np.ascontiguousarray(self.blocks, "<i8").data).hexdigest()
        order = {"version": BLOCK_ORDER_VERSION, "blocks": blocks, "pool_blocks": self.pool_blocks}
        return super().digest({**identity, "block_order": order})

    @cached_property
    def _storage(self) -> Int64:
        """Trials that are drawn, by block; the order in a block is theirs, not that of its rows."""
        drawn = np.flatnonzero(self.quotas)
        return drawn[np.argsort(self.blocks[drawn], kind="stable")]

    @cached_property
    def _storage_slots(self) -> Int64:
        """First slot of each of `_storage`, then the number of draws."""
        return np.concatenate([[0], np.cumsum(self.quotas[self._storage])]).astype(np.int64)

    @cached_property
    def _place_of(self) -> _TrialLookup:
        return _TrialLookup(self._storage_slots[1:])

    @cached_property
    def _block_starts(self) -> Int64:
        """Places in `_storage` where a block begins; blocks without draws are not there."""
        numbers = self.blocks[self._storage]
        return np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))

    @property
    def _live(self) -> Int64:
        """Numbers of the blocks that have draws, ascending."""
        return self.blocks[self._storage[self._block_starts]]

    @cached_property
    def _kept(self) -> dict[int, _Pools]:
        return {}

    def _pools(self, epoch: int) -> _Pools:
        pools = self._kept.get(epoch)
        if pools is None:
            pools = self._make_pools(epoch)
            self._kept[epoch] = pools
            # Another thread may have taken it away already.
            for old in list(self._kept)[:-_EPOCHS_KEPT]:
                self._kept.pop(old, None)
        return pools

    def _make_pools(self, epoch: int) -> _Pools:
        key = splitmix64(splitmix64(self.seed) + epoch) ^ _POOL_KEY
        n_blocks = len(self._block_starts)
        order = permute(np.arange(n_blocks, dtype=np.int64), n_blocks, splitmix64(key))
        starts = self._storage_slots[self._block_starts]
        n_draws = np.diff(starts, append=self.n_draws)
        ends = np.cumsum(n_draws[order])
        first = ends - n_draws[order]
        return _Pools(
            key=key,
            order=order,
            ends=np.append(first[:: self.pool_blocks], self.n_draws),
            offset=starts[order] - first,
            lookup=_TrialLookup(ends),
        )


def _pool_at(pools: _Pools, position: int) -> int:
    return int(np.searchsorted(pools.ends, position, "right")) - 1


def _check_at_least(name: str, got: int, least: int) -> None:
    if got < least:
        raise InvalidSpecError(f"{name} is {got}; wanted an integer of at least {least}.")
