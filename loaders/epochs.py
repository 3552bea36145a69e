"""What all streams of batches have in common: epochs, ranks, workers and resume."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from loaders.ahead import Ahead, take_turns
from loaders.batch import Batch
from loaders.choices import check_integer
from loaders.cursor import SharedCursor
from loaders.device import DeviceFeed, refuse_worker
from loaders.options import check_share
from loaders.order import worker_steps
from loaders.reader import EpochReader
from loaders.state import check_state
from loaders.wrappers import (
    refuse_forgotten_place,
    refuse_second_sharding,
    refuse_state_of_dataset,
)

THREADS = 2
"""Threads that gather, at most."""


class EpochStream(IterableDataset[Batch]):
    """An endless supply of epochs; any step of any epoch is an integer away."""

    def __init__(self) -> None:
        self._cursor = SharedCursor()
        self._parent_rank: tuple[int, int] | None = None

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Rows per optimizer step over all ranks."""

    @property
    @abstractmethod
    def ranks(self) -> tuple[int, int] | None:
        """This rank and how many there are; None: what torch.distributed says, else 0 of 1."""

    @property
    def device(self) -> torch.device | None:
        """Where a loop gives batches; None: on the host."""
        return None

    @property
    @abstractmethod
    def ahead(self) -> int:
        """Batches that threads of this process make early; 0: none."""

    @property
    @abstractmethod
    def on_device(self) -> bool:
        """Whether batches are made on the device, in the order in which they are asked for."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a state must agree with to be continued here."""

    @abstractmethod
    def n_steps(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch."""

    @abstractmethod
    def reader(self, epoch: int, ranks: tuple[int, int] | None = None) -> EpochReader:
        """Return what reads any step of an epoch, for one of several ranks."""

    # Where it stands

    def __len__(self) -> int:
        """Return the steps of the epoch that the next loop gives, from its first."""
        return self.n_steps(self._cursor.position[0])

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop give `epoch`; a start within that epoch (after a resume) is kept.

        Raises:
            InvalidSpecError: If `epoch` is no integer >= 0.
        """
        check_integer("epoch", epoch, 0, 1 << 62)
        if epoch != self._cursor.position[0]:
            self._cursor.move(epoch, 0)

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Return the state after `batch`, or where the next loop starts.

        It holds for any number of ranks and workers. Prefetched batches do not count: give the
        last batch that was trained on.
        """
        if batch is None:
            refuse_state_of_dataset()
        epoch, step = self._cursor.position
        if batch is not None:
            epoch, step = self._after(batch)
        return {**self.identity, "epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop start where `state` was taken.

        Raises:
            ResumeError: If the state belongs to other data or another order of them.
        """
        check_state(state, self.identity, n_steps=self.n_steps)
        self._cursor.move(int(state["epoch"]), int(state["step"]))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the steps of the current epoch that belong to this rank and worker.

        Raises:
            InvalidSpecError: If a wrapper would divide them again.
            ResumeError: If a trainer goes on that is past the start.
        """
        refuse_second_sharding()
        start, token = self._cursor.begin()
        return self._epoch(start, token)

    def _epoch(self, start: tuple[int, int], token: int) -> Iterator[Batch]:
        # Not when the loop is made: Lightning's clearing up would hide the error.
        refuse_forgotten_place(start)
        if self.device is not None:
            refuse_worker(self.device)
        info = get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        if info is None and self.ahead and not self.on_device:
            batches: Iterable[Batch] = self._ahead(start)
        else:
            reader = self.reader(start[0])
            steps = worker_steps(start[1], reader.n_steps, worker=worker, n_workers=n_workers)
            batches = map(reader.read, steps)
        if self.device is not None:
            batches = DeviceFeed(batches, self.device)
        yield from batches
        self._cursor.finish(start, token)

    def _ahead(self, start: tuple[int, int]) -> Iterator[Batch]:
        """Yield the steps of an epoch, each made by the next of some threads."""
        ranks, sources = self._rank(), []
        n_threads = min(THREADS, self.ahead)
        for worker in range(n_threads):
            reader = self.reader(start[0], ranks)
            steps = worker_steps(start[1], reader.n_steps, worker=worker, n_workers=n_threads)
            depth = min(-(-self.ahead // n_threads), max(1, len(steps)))
            sources.append(Ahead(map(reader.read, steps), depth))
        return take_turns(sources)

    def _after(self, batch: Batch) -> tuple[int, int]:
        """Return the epoch and step that follow those of a batch."""
        if batch.step + 1 < self.n_steps(batch.epoch):
            return batch.epoch, batch.step + 1
        return batch.epoch + 1, 0

    def _rank(self) -> tuple[int, int]:
        """Return this rank and how many there are.

        Raises:
            InvalidSpecError: If a step cannot give each of them a row.
        """
        rank = self._found_rank()
        check_share(self.batch_size, rank[1])
        return rank

    def _found_rank(self) -> tuple[int, int]:
        if self.ranks is not None:
            return self.ranks
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        # Spawned workers do not see the process group; what their parent saw came with the pickle.
        if self._parent_rank is not None and get_worker_info() is not None:
            return self._parent_rank
        return 0, 1
