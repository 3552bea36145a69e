"""Pictures of a run. Figures are drawn without pyplot: no global state, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

# Trials in the picture of predictions: enough to see a habit, few enough to see a curve.
N_SAMPLES = 4
TRUTH, MODEL, NAIVE = "#c9c9c9", "#1f6fb4", "#c8782a"


def _figure(width: float = 7.0, height: float = 4.0) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class PlainLog(LogFormatter):
    """Ticks of a logarithmic axis as 0.2 and not as 2e-01, where the base class labels any."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def learning_curve(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw train and validation loss over the epochs."""
    figure = _figure()
    axes = figure.add_subplot(
        xlabel="epoch", ylabel="loss (standardised)", yscale="log", title="Learning curve"
    )
    epochs = [row["epoch"] for row in history]
    for name, label, color in (("train_loss", "train", NAIVE), ("val_loss", "validation", MODEL)):
        losses = [row.get(name, np.nan) for row in history]
        if np.isfinite(losses).any():
            axes.plot(epochs, losses, marker="o", markersize=3, color=color, label=label)
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(PlainLog(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.legend()
    figure.savefig(path, dpi=120)


def error_by_trial(trials: pa.Table, path: Path) -> None:
    """Draw each trial's RMSE beside the baseline's, from the best trial to the worst.

    Args:
        trials: Columns `rmse` and `naive_rmse`.
        path: PNG.
    """
    rmse, naive = (trials[name].to_numpy() for name in ("rmse", "naive_rmse"))
    order = np.argsort(rmse)
    figure = _figure()
    axes = figure.add_subplot(
        xlabel="trials, from the best to the worst",
        ylabel="RMSE over all targets",
        title="Error by trial",
    )
    axes.plot(naive[order], ".", markersize=4, color=NAIVE, label="baseline")
    axes.plot(rmse[order], ".", markersize=4, color=MODEL, label="model")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def confusion(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the confusion matrix with its counts."""
    counts, names = np.asarray(metrics["confusion"]), metrics["classes"]
    figure = _figure(5, 4.5)
    ticks = range(len(names))
    axes = figure.add_subplot(xlabel="predicted", ylabel="truth", title="Trials by class")
    axes.set_xticks(ticks, names, rotation=30, ha="right")
    axes.set_yticks(ticks, names)
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count), ha="center", va="center", color=NAIVE)
    figure.savefig(path, dpi=120)


def samples(parquet: Path, trials: pa.Table, columns: Sequence[str], path: Path) -> None:
    """Draw predictions against truth: curves of some trials, or a point per trial.

    Args:
        parquet: `predictions.parquet`.
        trials: Columns `trial`, `n` and `rmse`.
        columns: Names of the targets; the first one is drawn.
        path: PNG.
    """
    if trials.num_rows and max(trials["n"].to_pylist()) > len(columns):
        _curves(parquet, trials, columns[0], path)
    else:
        _points(pq.read_table(parquet), columns[0], path)


def _curves(parquet: Path, trials: pa.Table, column: str, path: Path) -> None:
    """Take trials evenly from the best to the worst, so that the picture does not flatter."""
    order = np.argsort(trials["rmse"].to_numpy())
    places = order[np.unique(np.linspace(0, len(order) - 1, N_SAMPLES).astype(int))]
    names = trials["trial"].take(pa.array(places)).to_pylist()
    figure = _figure(7, 1.5 * len(names))
    for number, name in enumerate(names, start=1):
        rows = pq.read_table(parquet, filters=[("trial", "==", name)]).sort_by("row")
        nearest = rows["ahead"].to_numpy()
        rows = rows.filter(pa.array(nearest == nearest.min()))
        axes = figure.add_subplot(len(names), 1, number, ylabel=column)
        axes.set_title(name, fontsize=8, loc="left")
        # A wide truth below, so that a prediction that hits it does not hide it.
        for kind, color, width in (
            ("truth", TRUTH, 4),
            ("naive", NAIVE, 1),
            ("predicted", MODEL, 1),
        ):
            axes.plot(
                rows["row"].to_numpy(), rows[f"{kind}_{column}"].to_numpy(),
                color=color, linewidth=width, label=kind if number == 1 else None,
                marker="." if kind != "truth" and len(rows) < 60 else "",
            )  # fmt: skip
    axes.set_xlabel("row")
    figure.legend(fontsize=7, ncols=3, loc="outside upper right")
    figure.savefig(path, dpi=120)


def _points(table: pa.Table, column: str, path: Path) -> None:
    truth, predicted = (table[f"{kind}_{column}"].to_numpy() for kind in ("truth", "predicted"))
    figure = _figure(5, 4.5)
    axes = figure.add_subplot(
        xlabel=f"truth: {column}", ylabel="predicted", title="One prediction per trial"
    )
    axes.plot(truth, predicted, ".", color=MODEL)
    ends = [np.nanmin(truth), np.nanmax(truth)] if np.isfinite(truth).any() else [0, 1]
    axes.plot(ends, ends, color=TRUTH, linewidth=2, zorder=0)
    figure.savefig(path, dpi=120)
