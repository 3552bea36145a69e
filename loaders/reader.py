"""Any step of an epoch as a batch: what plans say, fetched by a gather."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from loaders.batch import Batch
from loaders.choices import LaneBatches
from loaders.copying import copies_early
from loaders.draws import Asked, Draws
from loaders.epochorder import EpochOrder
from loaders.gather import RowGather
from loaders.options import StreamOptions
from loaders.order import rank_rows
from loaders.selection import Selection

Int64 = npt.NDArray[np.int64]

AT_ONCE = 8
"""Steps whose rows are looked up together: behind a large copy all caches are cold, so that the
first one costs more than each of those after it."""


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

    def collect(
        self, draws: Draws, length: int, asked: Asked | None = None
    ) -> dict[str, Tensor | None]:
        """Return the tensors of a batch; see `RowGather.collect`."""


class Rows(NamedTuple):
    """What a step needs.

    Attributes:
        draws: This rank's rows, filler included.
        length: Steps of the batch.
        weight: What all rows of the step weigh, over all ranks.
        reset: bool `[B]` of this rank's lanes, if they are lanes.
    """

    draws: Draws
    length: int
    weight: float
    reset: npt.NDArray[np.bool_] | None = None


class Following:
    """The two steps after the one that is read: one is being copied, one waits to be.

    Args:
        gather: Fetches them.
        options: Of the stream.
    """

    def __init__(self, gather: Gather, options: StreamOptions) -> None:
        # Workers are processes of their own already, and on a device nothing is copied here.
        wanted = options.copies_early and get_worker_info() is None
        self._gather = gather if wanted and isinstance(gather, RowGather) else None
        self._last: int | None = None
        self._begun: tuple[int, Rows, Asked] | None = None
        self._ready: tuple[int, Rows, Asked] | None = None

    def take(self, step: int) -> tuple[Rows, Asked] | None:
        """Return the step, copied, and begin with the next; None if it was not foreseen."""
        begun, self._begun = self._begun, None
        if begun is None or begun[0] != step:
            self._ready = None
            return None
        begun[2].fetch.finish()
        self._begin()
        return begun[1:]

    def prepare(self, step: int, n_steps: int, rows_of: Callable[[int], Rows]) -> None:
        """Prepare what comes after `step`, where steps are read in order."""
        in_order, self._last = step - 1 == self._last, step
        if self._gather is None or not in_order or not copies_early():
            return
        if self._begun is None:
            self._ask(step + 1, n_steps, rows_of)
            self._begin()
        self._ask(step + 2, n_steps, rows_of)

    def _ask(self, step: int, n_steps: int, rows_of: Callable[[int], Rows]) -> None:
        if self._gather is not None and step < n_steps:
            rows = rows_of(step)
            self._ready = step, rows, self._gather.ask(rows.draws, rows.length)

    def _begin(self) -> None:
        self._begun, self._ready = self._ready, None
        if self._begun is not None:
            self._begun[2].fetch.begin()


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
        self._size, self._n_draws = options.batch_size, selection.plan.n_draws
        self._mine = rank_rows(options.batch_size, *ranks)
        self._following = Following(gather, options)
        self._known: dict[int, Rows] = {}
        self._newest = -2
        # No method of this reader: what refers to itself keeps the maps until a collection.
        resolve = partial(_resolve, selection, gather, epoch)
        self._order = EpochOrder(selection.plan, epoch, resolve)

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        rows, asked = self._following.take(step) or (self._rows(step), None)
        batch = Batch(
            **self._gather.collect(rows.draws, rows.length, asked),  # type: ignore[arg-type]
            global_weight=rows.weight,
            epoch=self._epoch,
            step=step,
        )
        self._following.prepare(step, self.n_steps, self._rows)
        return batch

    def _rows(self, step: int) -> Rows:
        rows = self._known.pop(step, None)
        if rows is None:
            n_steps = AT_ONCE if step == self._newest + 1 else 1
            last = min(step + n_steps, self.n_steps)
            self._known = {each: self._look_up(each) for each in range(step, last)}
            rows = self._known.pop(step)
        self._newest = step
        return rows

    def _look_up(self, step: int) -> Rows:
        first = step * self._size
        last = min(first + self._size, self._n_draws)
        draws = Draws._make(self._order.read(first, last))
        mine, (begin, end) = draws, self._mine
        if end - begin < self._size:
            mine = Draws._make(column[..., begin:end] for column in draws)
        weight = self._selection.weigh(draws.weights)
        return Rows(mine.filled(end - begin), self._selection.windows.length, weight)


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
        self._mine = slice(*rank_rows(options.batch_size, *ranks))
        self._lanes = options.batches if isinstance(options.batches, LaneBatches) else None
        self._following = Following(gather, options)

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        rows, asked = self._following.take(step) or (self._rows(step), None)
        batch = Batch(
            **self._gather.collect(rows.draws, rows.length, asked),  # type: ignore[arg-type]
            global_weight=rows.weight,
            epoch=self._epoch,
            step=step,
        )
        if rows.reset is not None:
            batch.reset = torch.from_numpy(rows.reset).to(batch.valid.device)
        if self._lanes is not None and self._lanes.burn_in:
            warm = self._lanes.burn_in - batch.start[:, None]
            at = torch.arange(rows.length, device=batch.valid.device)
            batch.counts = batch.valid & (at >= warm)
        self._following.prepare(step, self.n_steps, self._rows)
        return batch

    def _rows(self, step: int) -> Rows:
        trial, start, n_rows, length, reset = self._plan.rows(step, 0, self._size)
        weights = self._weights(trial, start, n_rows)
        mine = self._mine
        places = self._gather.place(trial[mine], start[mine], n_rows[mine])
        draws = Draws(places, weights[mine].copy())
        own_reset = None if reset is None else reset[mine].copy()
        return Rows(draws, length, self._selection.weigh(weights), own_reset)

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
