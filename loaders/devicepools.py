"""Rows of a pool of blocks at a time on a device, for splits that do not fit there as a whole.

`BlockPlan` reads an epoch pool by pool. Pool p lies in slot p modulo the number of slots; while
batches are made of one, the next is uploaded by a thread of its own, on a stream of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.blocks import BlockPlan
from loaders.device import SideStream, await_mark, mark
from loaders.devicegather import DeviceGather
from loaders.devicerows import DeviceRows, RowSource, Staging, first_rows
from loaders.draws import Asked, Draws
from loaders.selection import Selection
from shards import Store

Int64 = npt.NDArray[np.int64]
LEAST_SLOTS = 2


class PooledGather:
    """Makes the gather of each epoch; the slots are theirs together.

    Args:
        store: The open version, of layout rows.
        selection: What to deliver of it: windows by a `BlockPlan`.
        device: Where.
        batch_size: Rows per step over all ranks.
    """

    def __init__(
        self, store: Store, selection: Selection, device: torch.device, batch_size: int
    ) -> None:
        assert isinstance(selection.plan, BlockPlan)
        self._plan, self._batch_size = selection.plan, batch_size
        self._source = RowSource(store, selection)
        self._slots = _Slots(self._source, device, most_pool_rows(self._plan, self._source))
        none = DeviceRows(self._source.kinds, 0, device)
        nowhere = np.zeros(len(selection.trials), np.int64)
        self._gather = DeviceGather(store, selection, device, none, nowhere)

    def renew_pool(self) -> None:
        """Do nothing: there is no memory of the host's to forget."""

    def of_epoch(self, epoch: int) -> EpochGather:
        """Return the gather of an epoch."""
        pools = PoolRows(self._plan, self._source, epoch)
        n_slots = max(LEAST_SLOTS, pools.most_in_a_step(self._batch_size))
        return EpochGather(self._gather, self._slots, pools, n_slots)


def most_pool_rows(plan: BlockPlan, source: RowSource) -> int:
    """Return how many rows the pools of any epoch may have: those of the largest blocks."""
    per_block = np.zeros(int(plan.blocks.max(initial=0)) + 1, np.int64)
    np.add.at(per_block, plan.blocks, source.n_rows)
    return int(np.sort(per_block)[-plan.pool_blocks :].sum())


class PoolRows:
    """Which trials are in which pool of an epoch, and where in it.

    Attributes:
        epoch: The epoch.
        n_pools: Pools.
        pool: `[n]` int64, the pool of each trial; -1 for those that are never drawn.
        first: `[n]` int64, where the trial begins in its pool.
    """

    def __init__(self, plan: BlockPlan, source: RowSource, epoch: int) -> None:
        pools = plan.pools(epoch)
        self.epoch, self.n_pools = epoch, len(pools)
        self._ends = np.array([pool.last for pool in pools], np.int64)
        of_block = np.full(int(plan.blocks.max(initial=0)) + 1, -1, np.int64)
        for number, pool in enumerate(pools):
            of_block[pool.blocks] = number
        self.pool: Int64 = np.where(source.n_rows > 0, of_block[plan.blocks], -1)
        members = source.storage[np.argsort(self.pool[source.storage], kind="stable")]
        self._cuts = np.searchsorted(self.pool[members], np.arange(self.n_pools + 1))
        self._members = members
        first = first_rows(members, source.n_rows)
        begin = first[members[self._cuts[:-1]]]
        self.first: Int64 = np.where(self.pool >= 0, first - begin[self.pool], 0)

    def members(self, pool: int) -> Int64:
        """Return the trials of a pool in storage order."""
        members: Int64 = self._members[self._cuts[pool] : self._cuts[pool + 1]]
        return members

    def most_in_a_step(self, batch_size: int) -> int:
        """Return how many pools the rows of one step lie in at most."""
        n_draws = int(self._ends[-1])
        begin = np.arange(0, n_draws, batch_size)
        last = np.minimum(begin + batch_size, n_draws) - 1
        spans = np.searchsorted(self._ends, last, "right") - np.searchsorted(
            self._ends, begin, "right"
        )
        return int(spans.max(initial=0)) + 1


class EpochGather:
    """Delivers the windows of one epoch; has the methods of `RowGather` that this takes.

    Args:
        gather: Of the same trials.
        slots: Where pools lie.
        pools: Of the epoch.
        n_slots: As many as a step needs at least.
    """

    def __init__(self, gather: DeviceGather, slots: _Slots, pools: PoolRows, n_slots: int) -> None:
        self._slots, self._pools, self._n_slots = slots, pools, n_slots
        self._first: Int64 = pools.first + np.maximum(pools.pool, 0) % n_slots * slots.capacity
        self._gather = gather.lying(slots.rows, self._first)

    def resolve(self, trial: Int64, start: Int64) -> Draws:
        """Look up what windows need; see `RowGather.resolve`."""
        return self._gather.resolve(trial, start)

    def place(self, trial: Int64, start: Int64, n_rows: Int64) -> Int64:
        """Refuse: a pool holds the windows of a step, not the parts of trials."""
        raise NotImplementedError

    def collect(
        self, draws: Draws, length: int, _: Asked | None = None
    ) -> dict[str, Tensor | None]:
        """Return the tensors of a batch on the device; see `RowGather.collect`."""
        places = draws.places
        needed = np.unique(self._pools.pool[places[0, places[1] >= 0]]).tolist()
        with self._slots.holding(self._pools, needed, self._n_slots) as rows:
            return self._gather.lying(rows, self._first).collect(draws, length)


class _Slots:
    """Slots of equal size on a device and what is in them.

    Attributes:
        capacity: Rows of a slot.
        rows: Of all slots.
    """

    def __init__(self, source: RowSource, device: torch.device, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self._source, self._device = source, device
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="trialshards-pools")
        self._side, self._staging = SideStream(device), Staging(device)
        self._arriving: list[Future[Any] | None] = []
        self._make_room(LEAST_SLOTS)

    @contextmanager
    def holding(self, pools: PoolRows, needed: list[int], n_slots: int) -> Iterator[DeviceRows]:
        """Return the rows while some successive pools lie in their slots; for one reader a time."""
        with self._lock:
            yield self._require(pools, needed, n_slots)
            event = mark(self._device)
            for pool in needed:  # they may go when what was asked of them is done
                self._used[pool % n_slots] = event

    def _require(self, pools: PoolRows, needed: list[int], n_slots: int) -> DeviceRows:
        """Let pools be there, and begin to load the one behind them."""
        if n_slots != self._n_slots:
            self._make_room(n_slots)
        for pool in needed:
            self._load(pools, pool)
        for pool in needed:
            await_mark(self._device, self._arrived(pool % n_slots))
        following = max(needed, default=-1) + 1
        if needed and following < pools.n_pools and len(needed) < n_slots:
            self._load(pools, following)
        return self.rows

    def _load(self, pools: PoolRows, pool: int) -> None:
        """Begin to load a pool into its slot, unless it is there."""
        slot, key = pool % self._n_slots, (pools.epoch, pool)
        if self._holds[slot] == key:
            return
        self._holds[slot] = key
        self._arriving[slot] = self._loader.submit(
            self._upload, pools.members(pool), slot, self._used[slot]
        )

    def _upload(self, members: Int64, slot: int, used: Any) -> Any:
        """Copy the rows of a pool, in the loader's thread; return the event behind it."""
        self._side.wait(used)
        with self._side.on():
            self.rows.fill(self._source, members, slot * self.capacity, self._staging)
            return mark(self._device)

    def _arrived(self, slot: int) -> Any:
        """Wait for the host's part of a load; return the event behind the device's."""
        arriving = self._arriving[slot]
        assert arriving is not None
        try:
            return arriving.result()
        except BaseException:
            self._holds[slot] = None
            raise

    def _make_room(self, n_slots: int) -> None:
        wait([arriving for arriving in self._arriving if arriving is not None])
        self._n_slots = n_slots
        self._holds: list[tuple[int, int] | None] = [None] * n_slots
        self._arriving = [None] * n_slots
        self._used: list[Any] = [None] * n_slots
        with torch.inference_mode(False):  # the loader's thread, which is in none, writes to them
            self.rows = DeviceRows(self._source.kinds, n_slots * self.capacity, self._device)
        for rows in self.rows.arrays.values():
            self._side.keep(rows)
        if self._device.type == "cuda":  # the memory may be somebody's who is not through
            torch.cuda.synchronize(self._device)
