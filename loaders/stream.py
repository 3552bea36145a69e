"""TrialStream: a committed store as an endless supply of epochs of exact batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.batch import Batch
from loaders.choices import (
    Balance,
    BlockShuffle,
    LaneBatches,
    LossWeights,
    TrialBatches,
    WindowBatches,
)
from loaders.chosen import pack_numbers, unpack_numbers
from loaders.devicegather import DeviceGather
from loaders.devicepools import PooledGather
from loaders.epochs import EpochStream
from loaders.forks import open_before_forks
from loaders.gather import RowGather
from loaders.inverse import Inverse
from loaders.options import StreamOptions
from loaders.reader import EpochReader, PartReader, WindowReader
from loaders.resident import check_layout, open_gather
from loaders.selection import Selection
from loaders.wrappers import refuse_second_sharding
from shards import InvalidSpecError, Store, WindowSpec
from shards.manifest import TargetSchema

Int64 = npt.NDArray[np.int64]

FEW_BYTES = 4096
"""Of what a filter chose, up to which it is sent to workers; beyond, they ask it again."""


class TrialStream(EpochStream):
    """Yields whole batches; hand it to `DataLoader(stream, batch_size=None)` or loop.

    One loop is one epoch: when it ends, the next loop gives the next epoch; after a break, the
    next loop starts the same epoch again. Batches depend on the version, the arguments and the
    seed alone: ranks divide each step, workers divide the steps, neither changes them.

    With DataLoader workers, an epoch counts as read when the workers have produced its last step,
    which is up to `prefetch_factor * num_workers` steps before the loop gets there.

    Args:
        store: A store or its path.
        split: Split to read.
        batch_size: Rows per optimizer step over all ranks.
        batches: `windows`; `trials`: whole ones, padded, those of like length together; `lanes`:
            stateful, each of `batch_size` lanes walks one trial after the other in chunks. Or
            `WindowBatches`, `TrialBatches`, `LaneBatches`.
        shuffle: `global`; `none` (by trial, then by start); `blocks` or a `BlockShuffle`: for
            stores beyond memory.
        seed: Integer >= 0.
        balance: `window`: each window once per epoch. `trial`: equally many draws from each trial,
            as many in all; no window comes again before the others of its trial came. `sqrt`,
            `class`, or a `Balance`.
        weights: What a row weighs in the loss: `own`, `trial`, `class`, or `LossWeights`.
        windows: Other windows than the store's; costs nothing. `WindowBatches` changes some.
        target: Another target than the store's: a forecast of channels.
        where: SQL expression over attributes and columns of the index, such as
            `subject = 's07' and n_rows > 500`: reads the trials of the split for which it is true.
            `Store.trials()` shows the columns, `shards/select.py` says what it may do.
        trials: Ids; reads these trials of the split. With `where` as well, those of both.
        version: Version to open when `store` is a path; by default the newest.
        rank: This process among `world_size`; by default what torch.distributed says, else 0 of 1.
        world_size: Processes that share each step.
        ahead: Batches that up to two threads of this process gather early; 0: none. By default 2
            with a CUDA device; else a second thread of compiled code copies the next windows
            while a batch is used, where there is a core for it (decision 0021).
        device: Where a loop gives batches, such as `cuda`: copies overlap with the computing. Not
            with DataLoader workers.
        resident: Whether the rows of the split lie on the device, where batches are then made.
            `auto`: on CUDA if they take at most half of its free memory; else, with blocks of
            windows, a pool of them at a time (which `blocks` demands); else not.

    Raises:
        InvalidSpecError: If an argument is out of range, or nothing to read is left.
        StoreNotFoundError: If there is no such store, version or split.
        TrialNotFoundError: If the version has no trial of one of the ids.
        CorruptStoreError: If its files are not what they should be.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        split: str = "train",
        batch_size: int = 256,
        batches: str | WindowBatches | TrialBatches | LaneBatches = "windows",
        shuffle: str | BlockShuffle = "global",
        seed: int = 0,
        balance: str | Balance = "window",
        weights: str | LossWeights = "own",
        windows: WindowSpec | None = None,
        target: TargetSchema | None = None,
        where: str | None = None,
        trials: Iterable[str] | None = None,
        version: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        ahead: int | None = None,
        device: torch.device | str | None = None,
        resident: bool | str = "auto",
    ) -> None:
        super().__init__()
        self.options = StreamOptions.of(
            split=split, batch_size=batch_size, batches=batches, shuffle=shuffle, seed=seed,
            balance=balance, weights=weights, windows=windows, target=target, rank=rank,
            world_size=world_size, where=where, trials=trials, ahead=ahead,
            device=device, resident=resident,
        )  # fmt: skip
        self.store = store if isinstance(store, Store) else Store(store, version)
        if isinstance(store, Store) and version not in (None, store.version):
            raise InvalidSpecError(
                f"version is {version!r} beside an open store of {self.store.version}; "
                "wanted a path with a version, or an open store alone."
            )
        self._chosen: Int64 | None = None
        self._gather: RowGather | DeviceGather | PooledGather | None = None
        self._pid = os.getpid()
        check_layout(self.store, self._selection, self.options)
        open_before_forks(self)

    # What it delivers

    @property
    def n_channels(self) -> int:
        """C, the last axis of `Batch.values`."""
        return len(self.store.manifest.channels)

    @property
    def target(self) -> TargetSchema:
        """What the model predicts."""
        return self._selection.target

    @property
    def n_targets(self) -> int:
        """K, the target columns; 1 for a target per trial."""
        return 1 if self.target.kind == "per_trial" else len(self.target.columns)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in code order, or None when targets are values."""
        return self.target.classes

    @property
    def windows(self) -> WindowSpec:
        """The windows in force."""
        return self._selection.windows

    @property
    def batch_size(self) -> int:
        """Rows per optimizer step over all ranks."""
        return self.options.batch_size

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The rank that was asked for, and of how many."""
        rank, world_size = self.options.rank, self.options.world_size
        return None if rank is None or world_size is None else (rank, world_size)

    @property
    def ahead(self) -> int:
        """Batches that threads of this process make early; 0: none."""
        return self.options.ahead

    @property
    def on_device(self) -> bool:
        """Whether batches are made on the device, in the order in which they are asked for."""
        return not isinstance(self._opened(), RowGather)

    @property
    def device(self) -> torch.device | None:
        """Where a loop gives batches; None: on the host."""
        return self.options.device

    @property
    def fingerprint(self) -> str:
        """The split's fingerprint: what data these are."""
        return self.store.manifest.fingerprints[self.options.split]

    def to_physical(
        self, values: Tensor, of: Batch | Tensor, columns: Sequence[str] | None = None
    ) -> Tensor:
        """Return delivered values, targets or predictions in the channels' physical units.

        Targets per step and per trial are physical as delivered: without `columns` they come back
        as they are.

        Args:
            values: float `[B, ..., K]`, in the units of `Batch.values`.
            of: The batch that they belong to, row by row. `Batch.trial` will do where no column
                has normalization scope `regime` or `window`.
            columns: Channel names of the last axis; by default those of the forecast target. Those
                of scope `regime` need values of the batch's own steps, `[B, L, K]`.

        Raises:
            InvalidSpecError: If a column is no channel, or their number is not K, or its affine
                cannot be told from what is given.
        """
        if columns is None and self.target.kind != "forecast":
            return values
        columns = tuple(self.target.columns if columns is None else columns)
        names = [channel.name for channel in self.store.manifest.channels]
        if not set(columns) <= set(names) or len(columns) != values.shape[-1]:
            raise InvalidSpecError(
                f"columns are {list(columns)} for a last axis of {values.shape[-1]}; "
                f"wanted one of {names} for each."
            )
        return self._inverse.apply(values, of, [names.index(column) for column in columns])

    @property
    def identity(self) -> dict[str, Any]:
        """What a state must agree with to be continued here."""
        return self._selection.identity

    def n_steps(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch; of lanes they may differ."""
        return self._selection.n_steps(epoch)

    @property
    def varies(self) -> bool:
        """Whether epochs may differ in steps: those of lanes may."""
        return isinstance(self.options.batches, LaneBatches)

    def reader(self, epoch: int, ranks: tuple[int, int] | None = None) -> EpochReader:
        """Return what reads any step of an epoch.

        Args:
            epoch: The epoch.
            ranks: Which rank of how many; by default this process among its like.
        """
        kind = WindowReader if self._selection.steps is None else PartReader
        ranks = self._rank() if ranks is None else ranks
        opened = self._opened()
        gather = opened.of_epoch(epoch) if isinstance(opened, PooledGather) else opened
        return kind(self._selection, gather, self.options, epoch=epoch, ranks=ranks)

    def open(self) -> None:
        """Map what the first batch would map, unless that lies on a device."""
        if self.device is None:
            self._opened()

    # What it is made of

    @cached_property
    def _selection(self) -> Selection:
        return Selection(self.store, self.options, self._chosen)

    @cached_property
    def _inverse(self) -> Inverse:
        return Inverse(self.store)

    def _opened(self) -> RowGather | DeviceGather | PooledGather:
        if self._gather is None:
            self._gather = open_gather(self.store, self._selection, self.options)
        elif self._pid != os.getpid():  # forked: the maps serve on, the memory is the parent's
            self._gather.renew_pool()
        self._pid = os.getpid()
        return self._gather

    def __getstate__(self) -> dict[str, Any]:
        """Return the request alone: no maps, no index; of a filter, a bit per trial if few."""
        refuse_second_sharding()  # a spawned worker would not see who its parent works for
        chosen = None
        if self.options.where is not None or self.options.trials is not None:
            packed = pack_numbers(self._selection.trials)
            chosen = packed if len(packed) <= FEW_BYTES else None
        return {
            "chosen": chosen,
            "options": self.options, "store": self.store,
            "cursor": self._cursor, "parent_rank": self._found_rank(),
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the same version again; maps follow when the first batch is asked for."""
        self.options = state["options"]
        self.store = state["store"]
        # The same version gives the same answer; a worker need not ask again.
        self._chosen = None if state["chosen"] is None else unpack_numbers(state["chosen"])
        self._cursor, self._parent_rank = state["cursor"], state["parent_rank"]
        self._gather, self._pid = None, os.getpid()
