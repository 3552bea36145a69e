"""What a run tells the outside: TensorBoard, CSV and a progress bar. Rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from training.job import LOGS, Job
from training.state import RunState

# Reading the loss waits for the device, so only now and then.
LOG_EVERY_STEPS = 50
# Who watches from afar wants to know that it runs, and no log of a million lines.
OBSERVE_EVERY_S = 10.0

Observer = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Observers:
    """Who is told (step, metrics) on rank 0.

    Attributes:
        on_metrics: After each epoch.
        on_step: Every `OBSERVE_EVERY_S` seconds within one: epoch, place, loss and rate.
    """

    on_metrics: Observer | None = None
    on_step: Observer | None = None


class RateColumn(ProgressColumn):
    """Optimizer steps per second."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


def progress_bar() -> Progress:
    """Return a bar for `train(progress=...)`: epoch and loss, steps, rate, time left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip


class Recorder:
    """Writes `logs/csv/metrics.csv` (a row per epoch) and `logs/tensorboard`, and moves the bar.

    Epochs up to the checkpoint are written again on resume, so that the files hold each epoch
    once, whatever a killed run had added after its last checkpoint.

    Args:
        job: The run; other ranks than 0 record nothing.
        state: Where it starts.
        progress: A bar, or None.
        observers: Whom to tell.
    """

    def __init__(
        self,
        job: Job,
        state: RunState,
        progress: Progress | None,
        observers: Observers,
    ) -> None:
        self.job, self.state = job, state
        first = job.fabric.is_global_zero
        self.observers = observers if first else Observers()
        self.progress = progress if first else None
        self.loggers = _open_loggers(job, state) if first else []
        self.task = TaskID(0)
        self._started_s = self._observed_s = 0.0
        if self.progress is not None:
            n_steps = job.config.epochs * job.n_batches
            self.task = self.progress.add_task("", total=n_steps, completed=state.step)
        self._start_epoch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self.loggers:
            logger.finalize("success")

    def step(self, loss: Tensor) -> None:
        """Record an optimizer step; every 50th time also its loss."""
        if self.progress is not None:
            self.progress.update(self.task, completed=self.state.step)
        n_new = self.job.config.optimizer.accumulate
        if self.loggers and self.state.step % LOG_EVERY_STEPS < n_new:
            self.loggers[0].log_metrics({"step_loss": float(loss.detach())}, self.state.step)
        if self.observers.on_step is not None:
            self._observe(self.observers.on_step, loss)

    def _observe(self, on_step: Observer, loss: Tensor) -> None:
        now_s = time.perf_counter()
        if now_s - self._observed_s >= OBSERVE_EVERY_S:
            self._observed_s = now_s
            metrics = {
                "epoch": self.state.epoch + 1.0,
                "step_in_epoch": float(self.state.step_in_epoch),
                "steps_per_epoch": float(self.job.n_batches),
                "step_loss": float(loss.detach()),
                "rows_per_s": self.pace()["rows_per_s"],
            }
            on_step(self.state.step, metrics)

    def pace(self) -> dict[str, float]:
        """Return seconds since the epoch began, validation too, and training rows per second."""
        seconds = time.perf_counter() - self._started_s
        n_rows = (self.state.step - self._started_step) * self.job.config.data.batch_size
        return {"seconds": seconds, "rows_per_s": n_rows / max(seconds, 1e-9)}

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Record a finished epoch."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), self.state.step)
            logger.save()
        self._start_epoch()
        if self.observers.on_metrics is not None:
            self.observers.on_metrics(self.state.step, metrics)

    def _start_epoch(self) -> None:
        self._started_s, self._started_step = time.perf_counter(), self.state.step
        self._observed_s = self._started_s
        if self.progress is not None:
            epochs = self.job.config.epochs
            text = f"epoch {min(self.state.epoch + 1, epochs)}/{epochs}"
            if self.state.history:
                text += f" loss {_shown_loss(self.state.history[-1]):.4g}"
            self.progress.update(self.task, description=text)


def _shown_loss(metrics: Mapping[str, float]) -> float:
    return metrics.get("val_loss", metrics["train_loss"])


def _open_loggers(job: Job, state: RunState) -> list[Logger]:
    logs = job.config.out / LOGS
    # Fabric's CSV logger warns about, and removes, a file that is there; ours is written anew.
    (logs / "csv" / "metrics.csv").unlink(missing_ok=True)
    table = CSVLogger(logs, name="csv", version="")
    for metrics in state.history:
        table.log_metrics(dict(metrics), int(metrics["step"]))
    board = TensorBoardLogger(logs, name="tensorboard", version="", purge_step=state.step + 1)
    return [board, table]
