"""What `bench/gpu.py` times: batches, copies, two gathers, and steps of a small LSTM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from loaders import Batch, BlockShuffle, TrialBatches, TrialStream

Turn = Callable[[int], float]
"""Number of batches -> seconds."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, act: Callable[[int], Any]) -> Turn:
    """Return how long it takes to do something so many times, until the device is through."""

    def turn(n: int) -> float:
        synchronize(device)
        begin = time.perf_counter()
        for i in range(n):
            act(i)
        synchronize(device)
        return time.perf_counter() - begin

    return turn


def endless(stream: TrialStream) -> Iterator[Batch]:
    """Return the batches of one epoch after the other."""
    return chain.from_iterable(repeat(stream))


def streams(
    store: str, device: torch.device, batch_size: int, blocks: BlockShuffle, **request: Any
) -> dict[str, TrialStream]:
    """Return the ways to a batch on the device, by name."""
    common = {"batch_size": batch_size, "device": device, **request}
    return {
        "host": TrialStream(store, resident=False, **common),
        "host_ahead": TrialStream(store, resident=False, ahead=4, **common),
        "resident": TrialStream(store, resident=True, **common),
        "blocks": TrialStream(store, resident="blocks", shuffle=blocks, **common),
    }


def copies(device: torch.device, batch_bytes: int) -> dict[str, Turn]:
    """Return plain copies of as many bytes as a batch has: to the device, and on it."""
    locked = device.type == "cuda"
    host = [torch.zeros(batch_bytes, dtype=torch.uint8, pin_memory=locked) for _ in range(2)]
    there = [torch.zeros(batch_bytes, dtype=torch.uint8, device=device) for _ in range(4)]
    return {
        "copy_to_device": timed(
            device, lambda i: there[i % 2].copy_(host[i % 2], non_blocking=True)
        ),
        "copy_on_device": timed(device, lambda i: there[2 + i % 2].copy_(there[i % 2])),
    }


def kernels(
    device: torch.device, n_rows: int, n_columns: int, batch_size: int, length: int
) -> dict[str, Turn]:
    """Return two ways to gather windows from rows on the device; both give the same.

    `kernel_rows` selects `B x L` rows, `kernel_view` B rows of an overlapping view.

    Raises:
        ValueError: If they do not.
    """
    rows = torch.randn(n_rows, n_columns, device=device)
    view = rows.as_strided((n_rows - length + 1, length * n_columns), (n_columns, 1))
    firsts = [torch.randint(n_rows - length + 1, (batch_size,), device=device) for _ in range(8)]
    step = torch.arange(length, device=device)

    def by_rows(i: int) -> Tensor:
        return rows.index_select(0, (firsts[i % 8][:, None] + step).view(-1))

    def by_view(i: int) -> Tensor:
        return view.index_select(0, firsts[i % 8])

    if not torch.equal(by_rows(0).view(-1), by_view(0).view(-1)):
        raise ValueError("the two gathers differ")
    return {"kernel_rows": timed(device, by_rows), "kernel_view": timed(device, by_view)}


class Marks:
    """Moments on the device: CUDA events, or the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, list[Any]()

    def add(self) -> None:
        """Mark where the work given to the device ends so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the time from each to the next."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type == "cuda":
            return [first.elapsed_time(second) / 1000 for first, second in pairs]
        return [second - first for first, second in pairs]


class Learner(nn.Module):
    """An LSTM of two layers with a value per step."""

    def __init__(self, n_channels: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.lstm = nn.LSTM(n_channels, hidden, 2, batch_first=True, device=device)
        self.head = nn.Linear(hidden, 1, device=device)
        self.optimizer = torch.optim.Adam(self.parameters(), 1e-4)

    def learn(self, loss: Tensor) -> None:
        """Take an optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def step_window(self, batch: Batch) -> None:
        """Learn the forecast of windows."""
        out, _ = self.lstm(batch.values)
        self.learn((self.head(out[:, -1]) - batch.targets[:, 0]).nan_to_num().square().mean())

    def step_padded(self, batch: Batch) -> None:
        """Learn from whole trials with their padding."""
        out, _ = self.lstm(batch.values)
        self.learn(self.head(out).square().mul(batch.valid[:, :, None]).mean())

    def step_packed(self, batch: Batch) -> None:
        """Learn from whole trials without it."""
        out, _ = self.lstm(batch.packed())
        self.learn(self.head(out.data).square().mean())

    def step_lanes(self, batch: Batch, state: tuple[Tensor, Tensor] | None) -> Any:
        """Go on where the lanes stand; a lane that starts a trial starts from 0."""
        if state is not None:
            keep = (~batch.reset)[None, :, None]  # type: ignore[operator]
            state = (state[0].detach() * keep, state[1].detach() * keep)
        out, state = self.lstm(batch.values, state)
        self.learn(self.head(out).square().mul(batch.valid[:, :, None]).mean())
        return state


def waiting(device: torch.device, learner: Learner, batches: Iterator[Batch], n_steps: int) -> Any:
    """Train some steps.

    Returns:
        The share of the time that the device spends between steps, and seconds per step.
    """
    marks = Marks(device)
    for _ in range(n_steps):
        batch = next(batches)
        marks.add()
        learner.step_window(batch)
        marks.add()
    spans = marks.seconds()[1:]  # from the end of the first step on
    return sum(spans[::2]) / sum(spans), sum(spans) / len(spans) * 2


def whole_trials(
    store: str, device: torch.device, learner: Learner, batches: TrialBatches, n_trials: int,
    n_lanes: int,
) -> dict[str, Callable[[int], tuple[float, int]]]:  # fmt: skip
    """Return ways to learn from whole trials: steps -> seconds and rows that were learned from."""
    common = {"device": device, "resident": True}
    trials, again = (
        endless(TrialStream(store, batches=batches, batch_size=n_trials, **common))
        for _ in range(2)
    )
    lanes = endless(TrialStream(store, batches="lanes", batch_size=n_lanes, **common))
    state: list[Any] = [None]

    def step_lanes(batch: Batch) -> None:
        state[0] = learner.step_lanes(batch, state[0])

    def method(
        batches: Iterator[Batch], learn: Callable[[Batch], None]
    ) -> Callable[[int], tuple[float, int]]:
        def turn(n: int) -> tuple[float, int]:
            ready = [next(batches) for _ in range(n)]
            seconds = timed(device, lambda i: learn(ready[i]))(n)
            return seconds, int(sum(int(batch.lengths.sum()) for batch in ready))

        return turn

    return {
        "padded": method(trials, learner.step_padded),
        "packed": method(again, learner.step_packed),
        "lanes": method(lanes, step_lanes),
    }
