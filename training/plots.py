"""Pictures of a run. Figures are drawn without pyplot: no global state, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torchmetrics.functional.classification import binary_roc

from training.metrics_quantiles import quantile_name
from training.target import Objective

# Trials in the picture of predictions: enough to see a habit, few enough to see a curve.
N_SAMPLES = 4
# Points of a curve shorter than this get a marker.
SHOWN_MARKERS = 60
# More counts than these squared do not fit into their squares.
SHOWN_CLASSES = 20
N_POINTS, N_BINS = 1000, 10
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


def confusion(metrics: Mapping[str, Any], path: Path, *, what: str = "Trials") -> None:
    """Draw the confusion matrix with its counts; the shade is the share of the true class."""
    counts, names = np.asarray(metrics["confusion"]), metrics["classes"]
    figure = _figure(5, 4.5)
    ticks = range(len(names))
    axes = figure.add_subplot(xlabel="predicted", ylabel="truth", title=f"{what} by class")
    axes.set_xticks(ticks, names, rotation=30, ha="right")
    axes.set_yticks(ticks, names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(
        counts if len(names) <= SHOWN_CLASSES else counts[:0]
    ):
        color = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def calibration(parquet: Path, column: str, path: Path) -> None:
    """Draw the ROC curve, and how often a 1 follows each probability.

    Args:
        parquet: `predictions.parquet`.
        column: Name of the target, 0 or 1.
        path: PNG.
    """
    table = pq.read_table(parquet, columns=[f"truth_{column}", f"predicted_{column}"])
    truth, said = (table[name].to_numpy() for name in table.column_names)
    there = np.isfinite(truth)
    positive, said = truth[there] == 1, said[there]
    figure = _figure(8, 4)
    roc = figure.add_subplot(1, 2, 1, xlabel="false positive rate", ylabel="true positive rate",
                             title="ROC", aspect="equal")  # fmt: skip
    for axes in (roc, figure.add_subplot(1, 2, 2, aspect="equal")):
        axes.plot([0, 1], [0, 1], color=TRUTH, linewidth=1)
    axes.set(xlabel="predicted probability", ylabel="share of ones", title="Calibration",
             xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))  # fmt: skip
    if positive.any() and not positive.all():
        curve = binary_roc(torch.from_numpy(said), torch.from_numpy(positive).long())
        thin = np.linspace(0, len(curve[0]) - 1, N_POINTS).astype(int)
        roc.plot(*(part.numpy()[thin] for part in curve[:2]), color=MODEL)
    # Bins of as many steps each: most probabilities of a rare event lie near 0.
    bins = np.array_split(np.argsort(said, kind="stable"), N_BINS) if len(said) else []
    means = [(said[each].mean(), positive[each].mean()) for each in bins if len(each)]
    axes.plot(*np.array(means).reshape(-1, 2).T, color=MODEL, marker="o", markersize=4)
    figure.savefig(path, dpi=120)


def samples(parquet: Path, trials: pa.Table, objective: Objective, path: Path) -> None:
    """Draw predictions against truth: curves of some trials, or a point per trial.

    Args:
        parquet: `predictions.parquet`.
        trials: Columns `trial`, `n` and `rmse`.
        objective: Its first target is drawn; between its outer quantiles lies a band.
        path: PNG.
    """
    column, levels = objective.columns[0], objective.quantiles
    outer = (levels[0], levels[-1]) if len(levels) > 1 else ()
    band = [f"predicted_{column}_{quantile_name(level)}" for level in outer]
    if trials.num_rows and max(trials["n"].to_pylist()) > len(objective.columns):
        _curves(parquet, trials, column, band, path)
    else:
        _points(pq.read_table(parquet), column, band, path)


def _curves(parquet: Path, trials: pa.Table, column: str, band: Sequence[str], path: Path) -> None:
    """Take trials evenly from the best to the worst, so that the picture does not flatter."""
    order = np.argsort(trials["rmse"].to_numpy())
    places = order[np.unique(np.linspace(0, len(order) - 1, N_SAMPLES).astype(int))]
    names = trials["trial"].take(pa.array(places)).to_pylist()
    # Wide, so that a prediction that hits the truth does not hide it.
    lines = {f"truth_{column}": (TRUTH, 4), f"naive_{column}": (NAIVE, 1),
             f"predicted_{column}": (MODEL, 1)}  # fmt: skip
    wanted = pc.field("trial").isin(names)
    shown = ["trial", "row", "ahead", *lines, *band]
    table = pq.read_table(parquet, columns=shown, filters=wanted)
    figure = _figure(7, 1.5 * len(names))
    for number, name in enumerate(names, start=1):
        rows = table.filter(pc.equal(table["trial"], name)).sort_by("row")
        nearest = rows["ahead"].to_numpy()
        rows = rows.filter(pa.array(nearest == nearest.min()))
        axes = figure.add_subplot(len(names), 1, number, ylabel=column)
        axes.set_title(name, fontsize=8, loc="left")
        x = rows["row"].to_numpy()
        for line, (color, width) in lines.items():
            axes.plot(
                x, rows[line].to_numpy(), color=color, linewidth=width,
                label=line.removesuffix(f"_{column}") if number == 1 else None,
                marker="." if width == 1 and len(rows) < SHOWN_MARKERS else "",
            )  # fmt: skip
        if band:
            low, high = (rows[each].to_numpy() for each in band)
            label = " to ".join(each.rsplit("_", 1)[1] for each in band) if number == 1 else None
            axes.fill_between(x, low, high, color=MODEL, alpha=0.2, linewidth=0, label=label)
    axes.set_xlabel("row")
    figure.legend(fontsize=7, ncols=4, loc="outside upper right")
    figure.savefig(path, dpi=120)


def _points(table: pa.Table, column: str, band: Sequence[str], path: Path) -> None:
    truth, predicted = (table[f"{kind}_{column}"].to_numpy() for kind in ("truth", "predicted"))
    figure = _figure(5, 4.5)
    axes = figure.add_subplot(
        xlabel=f"truth: {column}", ylabel="predicted", title="One prediction per trial"
    )
    if band:
        low, high = (table[each].to_numpy() for each in band)
        axes.vlines(truth, low, high, color=MODEL, alpha=0.3, linewidth=1)
    axes.plot(truth, predicted, ".", color=MODEL)
    ends = [np.nanmin(truth), np.nanmax(truth)] if np.isfinite(truth).any() else [0, 1]
    axes.plot(ends, ends, color=TRUTH, linewidth=2, zorder=0)
    figure.savefig(path, dpi=120)
