"""Any step of an epoch as a batch: what plans say, fetched by a gather."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loaders.batch import Batch
from loaders.choices import LaneBatches
from loaders.epochorder import EpochOrder
from loaders.gather import Draws
from loaders.options import StreamOptions
from loaders.order import rank_rows
from loaders.selection import Selection

Int64 = npt.NDArray[np.int64]


class EpochReader(Protocol):
    """One epoch of a stream, as one rank sees it.

    Attributes:
        n_steps: Its optimizer steps.
    """

    n_steps: int

    def read(self, step: int) -> Batch:
        """Return the batch of a step; steps in order are cheapest."""


class Gather(Protocol):
    """Makes batches of rows: `RowGather` on the host, others on a device."""

    def resolve(self, trial: Int64, start: Int64) -> Draws:
        """Look up what windows need; see `RowGather.resolve`."""

    def place(self, trial: Int64, start: Int64, n_rows: Int64) -> Int64:
        """Look up what parts of trials need; see `RowGather.place`."""

    def collect(self, draws: Draws, length: int) -> dict[str, Tensor | None]:
        """Return the tensors of a batch; see `RowGather.collect`."""


class WindowReader:
    """Reads windows.

    Args:
        selection: What to read.
        gather: Fetches it.
        options: Of the stream.
        epoch: The epoch.
        ranks: This rank and how many there are.
    """

    def __init__(
        self, selection: Selection, gather: Gather, options: StreamOptions,
        *, epoch: int, ranks: tuple[int, int],
    ) -> None:  # fmt: skip
        self.n_steps = selection.n_steps(epoch)
        self._selection, self._gather, self._epoch = selection, gather, epoch
        self._size = options.batch_size
        self._rows = rank_rows(options.batch_size, *ranks)
        # No method of this reader: what refers to itself keeps the maps until a collection.
        resolve = partial(_resolve, selection, gather, epoch)
        self._order = EpochOrder(selection.plan, epoch, resolve)

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        first = step * self._size
        last = min(first + self._size, self._selection.plan.n_draws)
        draws = Draws._make(self._order.read(first, last))
        mine, (begin, end) = draws, self._rows
        if end - begin < self._size:
            mine = Draws._make(column[..., begin:end] for column in draws)
        return Batch(
            **self._gather.collect(  # type: ignore[arg-type]
                mine.filled(end - begin), self._selection.windows.length
            ),
            global_weight=self._selection.weigh(draws.weights),
            epoch=self._epoch,
            step=step,
        )


class PartReader:
    """Reads whole trials, or the chunks of lanes; takes what `WindowReader` does."""

    def __init__(
        self, selection: Selection, gather: Gather, options: StreamOptions,
        *, epoch: int, ranks: tuple[int, int],
    ) -> None:  # fmt: skip
        assert selection.steps is not None
        self._plan = selection.steps.epoch(epoch)
        self.n_steps = self._plan.n_steps
        self._selection, self._gather, self._epoch = selection, gather, epoch
        self._size = options.batch_size
        self._rows = slice(*rank_rows(options.batch_size, *ranks))
        self._lanes = options.batches if isinstance(options.batches, LaneBatches) else None

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        trial, start, n_rows, length, reset = self._plan.rows(step, 0, self._size)
        weights = self._weights(trial, start, n_rows)
        mine = self._rows
        places = self._gather.place(trial[mine], start[mine], n_rows[mine])
        batch = Batch(
            **self._gather.collect(Draws(places, weights[mine].copy()), length),  # type: ignore[arg-type]
            global_weight=self._selection.weigh(weights),
            epoch=self._epoch,
            step=step,
        )
        if reset is not None:
            batch.reset = torch.from_numpy(reset[mine].copy()).to(batch.valid.device)
        if self._lanes is not None and self._lanes.burn_in:
            warm = self._lanes.burn_in - batch.start[:, None]
            at = torch.arange(length, device=batch.valid.device)
            batch.counts = batch.valid & (at >= warm)
        return batch

    def _weights(self, trial: Int64, start: Int64, n_rows: Int64) -> npt.NDArray[np.float32]:
        own: npt.NDArray[np.float32] = self._selection.weights.take(np.maximum(trial, 0))
        if self._lanes is None:
            own[trial < 0] = 0
            return own
        counted = np.clip(start + n_rows - np.maximum(start, self._lanes.burn_in), 0, None)
        shares: npt.NDArray[np.float64] = own.astype(np.float64) * counted / self._lanes.chunk
        return shares.astype(np.float32)


def _resolve(
    selection: Selection, gather: Gather, epoch: int, trial: Int64, window: Int64
) -> Draws:
    return gather.resolve(trial, selection.first_rows(trial, window, epoch))
