"""What a command says to Dagster when Dagster started it (Pipes), and nothing otherwise.

Dagster sets the environment variable `DAGSTER_PIPES_CONTEXT`; without it `dagster_pipes` is not
even imported. Of a run with several processes only the first one speaks.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

    from training import Evaluation, TrainResult
    from training.record import Observer
    from training.studytables import StudyResult

# Launchers tell a process its rank by these, and Fabric tells its children by LOCAL_RANK; global
# rank 0 is where none of them is another number.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


def is_first_process() -> bool:
    """Return whether this is global rank 0; known before the processes have met."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


@contextmanager
def open_reporter(n_epochs: int = 0) -> Iterator[Reporter]:
    """Open the way to Dagster; where Dagster did not start this process, one that says nothing.

    What the training room logs goes to the run's log too: where a run went on, or why it started
    over. An exception on the way out is told to Dagster and goes on.
    """
    if "DAGSTER_PIPES_CONTEXT" not in os.environ or not is_first_process():
        yield Reporter(None, n_epochs)
        return
    import dagster_pipes

    room = logging.getLogger("training")
    with dagster_pipes.open_dagster_pipes() as pipes:
        handler, level = _PipesHandler(pipes), room.level
        room.addHandler(handler)
        room.setLevel(logging.INFO)
        try:
            yield Reporter(pipes, n_epochs)
        finally:
            room.removeHandler(handler)
            room.setLevel(level)


class _PipesHandler(logging.Handler):
    """Passes records on to the log of the Dagster run."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self.pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self.pipes.log.log(record.levelno, record.getMessage())


class Reporter:
    """Tells Dagster how a command goes and what it came to.

    Args:
        pipes: The open context; None says nothing.
        n_epochs: Of the whole training.

    Attributes:
        on_metrics: For `train`: a line per epoch, or None.
        on_step: For `train`: a line now and then within an epoch, or None.
    """

    def __init__(self, pipes: PipesContext | None, n_epochs: int) -> None:
        self.pipes = pipes
        self.on_metrics = self._logging(functools.partial(epoch_line, n_epochs))
        self.on_step = self._logging(functools.partial(step_line, n_epochs))

    def _logging(self, line: Callable[[Mapping[str, float]], str]) -> Observer | None:
        pipes = self.pipes
        return None if pipes is None else lambda _, metrics: pipes.log.info(line(metrics))

    def report_training(self, result: TrainResult) -> None:
        """Report a trained model as the asset's materialization."""
        self._report(training_metadata(result), result.digest)

    def report_evaluation(self, evaluation: Evaluation) -> None:
        """Report an evaluation as the asset's materialization."""
        self._report(evaluation_metadata(evaluation), evaluation.digest)

    def report_study(self, result: StudyResult) -> None:
        """Report the table of a study as the asset's materialization."""
        self._report(study_metadata(result), result.digest)

    def say(self, line: str) -> None:
        """Write a line to the log of the Dagster run."""
        if self.pipes is not None:
            self.pipes.log.info(line)

    def _report(self, metadata: Mapping[str, Any], data_version: str) -> None:
        if self.pipes is None:
            return
        # Keys without a value are left out: Dagster would show null as a value of its own.
        known = {key: value for key, value in metadata.items() if value is not None}
        self.pipes.report_asset_materialization(metadata=known, data_version=data_version)


def epoch_line(n_epochs: int, metrics: Mapping[str, float]) -> str:
    """Return `epoch 3/20: train_loss 0.0312, val_loss 0.0298, lr 0.0021, 12,345 rows/s`."""
    names = [name for name in ("train_loss", "val_loss", "lr") if name in metrics]
    parts = [f"{name} {metrics[name]:.4g}" for name in names]
    parts.append(f"{metrics['rows_per_s']:,.0f} rows/s")
    return f"epoch {metrics['epoch']:.0f}/{n_epochs}: {', '.join(parts)}"


def step_line(n_epochs: int, metrics: Mapping[str, float]) -> str:
    """Return `epoch 3/20, step 120/950: step_loss 0.0312, 12,345 rows/s`."""
    return (
        f"epoch {metrics['epoch']:.0f}/{n_epochs}, step {metrics['step_in_epoch']:,.0f}/"
        f"{metrics['steps_per_epoch']:,.0f}: step_loss {metrics['step_loss']:.4g}, "
        f"{metrics['rows_per_s']:,.0f} rows/s"
    )


def training_metadata(result: TrainResult) -> dict[str, Any]:
    """Return what a training is described by; None where there is no such number."""
    rate = result.rows_per_s()
    return {
        "status": result.status,
        "best_epoch": result.best_epoch,
        "best_loss": result.best_loss,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "rows_per_s": None if rate is None else round(rate, 1),
        "device": result.device,
        "run_folder": str(result.out),
        "store_version": result.store_version,
    }


def evaluation_metadata(evaluation: Evaluation) -> dict[str, Any]:
    """Return what an evaluation is described by, and each number of its metrics."""
    return {
        "split": evaluation.split,
        "at": evaluation.at,
        "n_trials": evaluation.n_trials,
        "baseline": evaluation.baseline,
        "best_epoch": evaluation.epoch,
        "store_version": evaluation.store_version,
        **flatten_numbers(evaluation.as_dict()["metrics"]),
    }


def study_metadata(result: StudyResult) -> dict[str, Any]:
    """Return what a study is described by: its table as Markdown, and the numbers of it all."""
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in result.rows:
        cells = [_cell(row.get(name)) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return {
        "study": result.kind,
        "status": result.status,
        "runs": {"raw_value": "\n".join(lines), "type": "md"},
        "run_folder": str(result.folder),
        **{k: v for k, v in flatten_numbers(result.summary).items() if math.isfinite(v)},
    }


def _cell(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def flatten_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested metrics by dotted names; lists, texts and None are left out.

    >>> flatten_numbers({"n": 3, "by_column": {"q": {"rmse": 0.5}}, "classes": ["a"]})
    {'n': 3, 'by_column.q.rmse': 0.5}
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat
