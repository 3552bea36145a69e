"""TrialStream: a committed store as an endless supply of epochs of exact batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from loaders.batch import Batch
from loaders.chosen import pack_numbers, unpack_numbers
from loaders.cursor import SharedCursor
from loaders.gather import Draws, WindowGather
from loaders.inverse import Inverse
from loaders.options import StreamOptions, TrialIds, check_integer, check_share
from loaders.order import EpochOrder, rank_rows, worker_steps
from loaders.selection import Selection
from loaders.state import check_state
from shards import InvalidSpecError, Store, WindowSpec
from shards.manifest import TargetSchema

Int64 = npt.NDArray[np.int64]


class TrialStream(IterableDataset[Batch]):
    """Yields whole batches of windows; hand it to `DataLoader(stream, batch_size=None)` or loop.

    One loop is one epoch: when it ends, the next loop gives the next epoch; after a break, the
    next loop starts the same epoch again. Batches depend on the version, the arguments and the
    seed alone: ranks divide each step, workers divide the steps, neither changes them.

    With DataLoader workers, an epoch counts as read when the workers have produced its last step,
    which is up to `prefetch_factor * num_workers` steps before the loop gets there.

    Args:
        store: A store or its path.
        split: Split to read.
        batch_size: Rows per optimizer step over all ranks.
        batches: `windows`.
        shuffle: `global` or `none` (by trial, then by start).
        seed: Integer >= 0.
        balance: `window`: each window once per epoch. `trial`: equally many draws from each trial,
            as many in all; no window comes again before the others of its trial came.
        windows: Other windows than the store's; costs nothing.
        where: SQL expression over attributes and columns of the index, such as
            `subject = 's07' and n_rows > 500`: reads the trials of the split for which it is true.
            `Store.trials()` shows the columns, `shards/select.py` says what it may do.
        trials: Ids; reads these trials of the split. With `where` as well, those of both.
        version: Version to open when `store` is a path; by default the newest.
        rank: This process among `world_size`; by default what torch.distributed says, else 0 of 1.
        world_size: Processes that share each step.

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
        batches: str = "windows",
        shuffle: str = "global",
        seed: int = 0,
        balance: str = "window",
        windows: WindowSpec | None = None,
        where: str | None = None,
        trials: Iterable[str] | None = None,
        version: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.options = StreamOptions(
            split=split, batch_size=batch_size, batches=batches, shuffle=shuffle, seed=seed,
            balance=balance, windows=windows, rank=rank, world_size=world_size, where=where,
            trials=None if trials is None else TrialIds(trials),
        )  # fmt: skip
        self.store = store if isinstance(store, Store) else Store(store, version)
        if isinstance(store, Store) and version not in (None, store.version):
            raise InvalidSpecError(
                f"version is {version!r} beside an open store of {self.store.version}; "
                "wanted a path with a version, or an open store alone."
            )
        self._cursor = SharedCursor()
        self._chosen: Int64 | None = None
        self._parent_rank: tuple[int, int] | None = None
        self._gather: WindowGather | None = None
        self._pid = os.getpid()
        self._selection  # noqa: B018 - refuse a bad request now, not at the first batch

    # What it delivers

    @property
    def n_channels(self) -> int:
        """C, the last axis of `Batch.values`."""
        return len(self.store.manifest.channels)

    @property
    def target(self) -> TargetSchema:
        """What the model predicts."""
        return self.store.manifest.target

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

    # Where it stands

    def __len__(self) -> int:
        """Return the steps per epoch."""
        return self._selection.plan.n_steps(self.options.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop give `epoch`; a start within that epoch (after a resume) is kept.

        Raises:
            InvalidSpecError: If `epoch` is no integer >= 0.
        """
        check_integer("epoch", epoch, 0)
        if epoch != self._cursor.position[0]:
            self._cursor.move(epoch, 0)

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Return the state after `batch`, or where the next loop starts.

        It holds for any number of ranks and workers. Prefetched batches do not count: give the
        last batch that was trained on.
        """
        epoch, step = self._cursor.position
        if batch is not None:
            epoch, step = batch.epoch, batch.step + 1
            if step >= len(self):
                epoch, step = epoch + 1, 0
        return {**self._selection.identity, "epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop start where `state` was taken.

        Raises:
            ResumeError: If the state belongs to other data or another order of them.
        """
        check_state(state, self._selection.identity, n_steps=len(self))
        self._cursor.move(int(state["epoch"]), int(state["step"]))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the steps of the current epoch that belong to this rank and worker."""
        start, token = self._cursor.begin()
        return self._epoch(start, token)

    def _epoch(self, start: tuple[int, int], token: int) -> Iterator[Batch]:
        info = get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        rank, world_size = self._rank()
        check_share(self.options.batch_size, world_size)
        rows = rank_rows(self.options.batch_size, rank, world_size)
        gather = self._opened()
        order = EpochOrder(self._selection.plan, start[0], gather.resolve)
        for step in worker_steps(start[1], len(self), worker=worker, n_workers=n_workers):
            first = step * self.options.batch_size
            last = min(first + self.options.batch_size, self._selection.plan.n_draws)
            draws = Draws._make(order.read(first, last))
            mine = draws
            if world_size > 1:
                mine = Draws._make(column[..., rows[0] : rows[1]] for column in draws)
            yield Batch(
                **gather.collect(mine, rows[1] - rows[0]),  # type: ignore[arg-type]
                global_weight=self._selection.weigh(draws.weights),
                epoch=start[0],
                step=step,
            )
        self._cursor.finish(start, token)

    # What it is made of

    @cached_property
    def _selection(self) -> Selection:
        return Selection(self.store, self.options, self._chosen)

    @cached_property
    def _inverse(self) -> Inverse:
        return Inverse(self.store)

    def _rank(self) -> tuple[int, int]:
        options = self.options
        if options.rank is not None and options.world_size is not None:
            return options.rank, options.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        # Spawned workers do not see the process group; what their parent saw came with the pickle.
        if self._parent_rank is not None and get_worker_info() is not None:
            return self._parent_rank
        return 0, 1

    def _opened(self) -> WindowGather:
        if self._gather is None:
            self._gather = WindowGather(self.store, self._selection)
        elif self._pid != os.getpid():  # forked: the maps serve on, the memory is the parent's
            self._gather.renew_pool()
        self._pid = os.getpid()
        return self._gather

    def __getstate__(self) -> dict[str, Any]:
        """Return the request alone: no maps, no index; of a filter, a bit per trial."""
        filtered = self.options.where is not None or self.options.trials is not None
        return {
            "chosen": pack_numbers(self._selection.trials) if filtered else None,
            "options": self.options, "store": self.store,
            "cursor": self._cursor, "parent_rank": self._rank(),
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the same version again; maps follow when the first batch is asked for."""
        self.options = state["options"]
        self.store = state["store"]
        # The same version gives the same answer; a worker need not ask again.
        self._chosen = None if state["chosen"] is None else unpack_numbers(state["chosen"])
        self._cursor, self._parent_rank = state["cursor"], state["parent_rank"]
        self._gather, self._pid = None, os.getpid()
