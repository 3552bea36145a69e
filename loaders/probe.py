"""How fast a stream delivers here, and how long a training loop waits for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from loaders.batch import Batch
from shards.errors import InvalidSpecError


class Resumable(Protocol):
    """What probing needs of a stream, so that it stands afterwards where it stood before."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return where the next loop starts."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop start there."""


@dataclass(frozen=True)
class Probe:
    """What a short loop over a stream came to.

    Attributes:
        n_workers: DataLoader workers; 0: in process.
        first_seconds: From the start to the first batch.
        seconds: From the first batch to the last; 0 if there was one batch.
        n_batches: Batches that came in `seconds`.
        n_rows: Rows of these that are no filler: windows, trials, or chunks of lanes.
        n_valid_steps: Time steps of these that are no padding.
        batch_bytes: Size of the first batch's tensors.
    """

    n_workers: int
    first_seconds: float
    seconds: float
    n_batches: int
    n_rows: int
    n_valid_steps: int
    batch_bytes: int

    @property
    def rows_per_second(self) -> float:
        """Windows, trials or chunks per second, the first batch left out."""
        return self.n_rows / self.seconds if self.seconds else 0.0


def probe_stream(stream: Resumable, seconds: float, *, n_workers: int = 0) -> Probe:
    """Iterate a stream for some seconds, over several epochs if one is shorter.

    Args:
        stream: A `TrialStream` or what is made of several; it goes on afterwards where it stood.
        seconds: How long, from the first batch on; at least two batches are read.
        n_workers: DataLoader workers to read it with.

    Raises:
        InvalidSpecError: If `seconds` is not positive.
    """
    if not seconds > 0:
        raise InvalidSpecError(f"seconds is {seconds!r}; wanted more than 0.")
    state = stream.state_dict()
    batches = _endless(_with_workers(stream, n_workers))
    try:
        begin = time.perf_counter()
        batch = next(batches)
        first = last = time.perf_counter()
        batch_bytes, n_batches, n_rows, n_steps = size_of(batch), 0, 0, 0
        while not n_batches or last - first < seconds:
            batch = next(batches)
            n_batches += 1
            n_rows += int((batch.trial >= 0).sum())
            n_steps += int(batch.lengths.sum())
            last = time.perf_counter()
    finally:
        batches.close()
        stream.load_state_dict(state)
    return Probe(n_workers, first - begin, last - first, n_batches, n_rows, n_steps, batch_bytes)


@dataclass(frozen=True)
class Waiting:
    """How a training loop spent its time.

    Attributes:
        n_steps: Steps that were measured.
        seconds: Of all of them.
        wait_seconds: Of these, how long nothing was computed because no batch was there.
    """

    n_steps: int
    seconds: float
    wait_seconds: float

    @property
    def share(self) -> float:
        """Share of the time spent waiting for data; below .02 there is nothing to gain."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0


def share_waiting(
    batches: Iterable[Batch],
    step: Callable[[Batch], object],
    *,
    n_steps: int = 50,
    n_warm_up: int = 5,
    device: torch.device | str = "cpu",
) -> Waiting:
    """Measure how long a training loop waits for its data.

    On a CUDA device the host runs ahead, so that its clock would say nothing: there the wait is
    the time between the end of one step's kernels and the beginning of the next one's work on the
    device, by CUDA events on the current stream.

    Args:
        batches: A stream, or a DataLoader over one. Iterated anew when it ends.
        step: Does everything that training does with a batch, copying to the device included.
        n_steps: Steps to measure.
        n_warm_up: Steps before these, unmeasured: kernels are chosen, memory is taken.
        device: Where `step` computes.

    Raises:
        InvalidSpecError: If there is nothing to measure.
    """
    if n_steps < 1 or n_warm_up < 0:
        raise InvalidSpecError(
            f"n_steps is {n_steps}, n_warm_up is {n_warm_up}; wanted at least 1 and 0."
        )
    clock = _CudaMarks() if torch.device(device).type == "cuda" else _HostMarks()
    source = _endless(batches)
    try:
        for _ in range(n_warm_up):
            step(next(source))
        clock.mark()
        for _ in range(n_steps):
            batch = next(source)
            clock.mark()
            step(batch)
            clock.mark()
        marks = clock.seconds()
    finally:
        source.close()
    spans = np.diff(marks)
    return Waiting(n_steps, float(spans.sum()), float(spans[0::2].sum()))


class _HostMarks:
    """Moments by the clock of the host."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return self._marks


class _CudaMarks:
    """Moments on a CUDA device: when everything queued before has been done."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [self._marks[0].elapsed_time(event) / 1e3 for event in self._marks]


def size_of(batch: Batch) -> int:
    """Return the bytes of all tensors of a batch."""
    return sum(x.numel() * x.element_size() for x in vars(batch).values() if isinstance(x, Tensor))


def private_bytes(root: object) -> int:
    """Return the bytes of the NumPy arrays that an object holds in memory of its own.

    What is memory-mapped does not count, and nothing counts twice.

    Args:
        root: Looked through with all its attributes, lists, tuples, sets and mappings, as far as
            they are arrays, builtin containers, or objects of this package.
    """
    seen: set[int] = set()
    todo: list[object] = [root]
    total = 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            total += thing.nbytes if thing.base is None else 0
            todo.append(thing.base)
        elif isinstance(thing, Mapping):
            todo += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            todo += thing
        elif type(thing).__module__.partition(".")[0] in ("loaders", "shards"):
            todo += getattr(thing, "__dict__", {}).values()
    return total


def _with_workers(stream: Resumable, n_workers: int) -> Iterable[Batch]:
    if not n_workers:
        return stream
    if not isinstance(stream, IterableDataset):
        raise InvalidSpecError(f"{type(stream).__name__} is no IterableDataset; wanted a stream.")
    return DataLoader(stream, batch_size=None, num_workers=n_workers)


def _endless(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """Yield one epoch after the other; `close` ends workers and threads of the one that is open."""
    for turn in itertools.count():
        epoch, is_empty = iter(batches), True
        try:
            for batch in epoch:
                is_empty = False
                yield batch
        finally:
            close = getattr(epoch, "close", None)
            if close is not None:
                close()
            del epoch
        if is_empty:
            raise InvalidSpecError(
                f"epoch {turn} of {type(batches).__name__} has no batch; nothing can be measured."
            )
