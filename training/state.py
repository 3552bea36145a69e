"""Where a run stands, and the two things that end it early: a signal, and no progress."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from training.config import TrainConfig

# Ranks ask each other for signals only now and then: each asking is a synchronisation.
AGREE_EVERY_STEPS = 16
# Ctrl-C reaches every process of a terminal, and a parent then forwards it: one wish, two signals.
SAME_WISH_S = 2.0


@dataclass
class RunState:
    """The counters of a run; all of it goes into the checkpoint.

    Attributes:
        epoch: Finished epochs.
        step_in_epoch: Batches learned from since then; with `optimizer.accumulate` of 1 they are
            the optimizer's steps.
        step: Batches in all.
        loss_sum: Sum of loss x weight over the steps of this epoch; the mean over ranks counts.
        weight_sum: Sum of the weights in this epoch, over all ranks.
        best_loss: Lowest validation loss.
        best_epoch: Number of finished epochs when it was seen.
        history: Metrics of each finished epoch.
        stream: State of the training stream after the last step.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: Any = 0.0
    weight_sum: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    stream: dict[str, Any] | None = None

    def count_step(self, loss: Tensor, weight: float, stream: dict[str, Any]) -> None:
        """Count one batch that was learned from.

        Args:
            loss: Its loss on this rank; the mean over ranks is the batch's loss.
            weight: Weight of its rows over all ranks.
            stream: State of the stream after it.
        """
        # Stays on the device: reading it would wait for the step.
        self.loss_sum = self.loss_sum + loss.detach().to(sum_dtype(loss.device)) * weight
        self.weight_sum += weight
        self.step_in_epoch += 1
        self.step += 1
        self.stream = stream

    def close_epoch(self, metrics: dict[str, float]) -> bool:
        """Count one epoch; return whether it is the best so far (without validation: always)."""
        self.epoch += 1
        self.step_in_epoch, self.loss_sum, self.weight_sum = 0, 0.0, 0.0
        self.history.append(metrics)
        loss = metrics.get("val_loss", self.best_loss)
        better = loss < self.best_loss or "val_loss" not in metrics
        if better:
            self.best_loss, self.best_epoch = loss, self.epoch
        return better

    def status(self, config: TrainConfig) -> str:
        """Return `running`, `finished` or `early stopped`; derived, so a config may extend it."""
        if self.epoch >= config.epochs:
            return "finished"
        patience = config.early_stopping.patience if config.early_stopping else math.inf
        return "early stopped" if self.epoch - self.best_epoch >= patience else "running"


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type that sums are kept in: float64, which Apple's devices do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def reduce_ranks(fabric: Fabric, value: Tensor | float, op: Literal["sum", "mean"]) -> Tensor:
    """Return the sum or mean of a value over ranks, on the device; every rank must call it."""
    tensor = torch.as_tensor(value, device=fabric.device)
    return cast("Tensor", fabric.all_reduce(tensor, reduce_op=op))


@dataclass
class StopSignal:
    """Whether someone asked the run to stop.

    Attributes:
        requested: A signal reached this process.
        agreed: All ranks know of one: stop now.
    """

    requested: bool = False
    agreed: bool = False

    def poll(self, fabric: Fabric, step: int) -> bool:
        """Return whether to stop after this step; every rank must call it for the same steps."""
        if fabric.world_size == 1:
            self.agreed = self.requested
        elif step % AGREE_EVERY_STEPS == 0:
            self.agreed = bool(reduce_ranks(fabric, float(self.requested), "sum"))
        return self.agreed


@contextmanager
def watch_signals() -> Iterator[StopSignal]:
    """Turn the first SIGINT or SIGTERM into a flag; one that comes later acts as it did before."""
    stop = StopSignal()
    before: dict[signal.Signals, Any] = {}
    first_s = 0.0

    def request(number: int, _: object) -> None:
        nonlocal first_s
        first_s = first_s or time.monotonic()
        if stop.requested and time.monotonic() - first_s > SAME_WISH_S:
            for known, handler in before.items():
                signal.signal(known, handler)
            signal.raise_signal(number)
        stop.requested = True

    if threading.current_thread() is threading.main_thread():  # Python allows no other
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        out: Run folder; it holds `best.ckpt` and `last.ckpt`.
        status: `finished`, `early stopped` or `interrupted`.
        epochs: Finished epochs.
        steps: Optimizer steps.
        best_epoch: Number of the best epoch, from 1.
        best_loss: Its validation loss, standardised; None without validation.
        seconds: Time of this call.
        history: Metrics of each epoch.
        store_version: What it was trained on.
        device: Where, such as `cuda:0`.
        digest: Of config and train data; runs that may go on from each other share it.
    """

    out: Path
    status: str
    epochs: int
    steps: int
    best_epoch: int
    best_loss: float | None
    seconds: float
    history: tuple[dict[str, float], ...]
    store_version: str
    device: str
    digest: str

    def rows_per_s(self) -> float | None:
        """Return the mean rate over all epochs, None without one."""
        seconds = sum(row["seconds"] for row in self.history)
        n_rows = sum(row["rows_per_s"] * row["seconds"] for row in self.history)
        return n_rows / seconds if seconds else None
