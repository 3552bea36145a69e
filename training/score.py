"""Errors against truth and against a naive baseline, summed trial by trial: O(trials) memory.

The sums are our own: torchmetrics keeps one float32 sum for all, and these are one for each trial,
so that the same pass tells the mean over elements (micro) and over trials (macro).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shards import Store
from training.binary import BinaryScores
from training.metrics_classes import ClassScores
from training.metrics_quantiles import QuantileSums
from training.predict import Float64, Int64, Predictions
from training.target import Objective
from training.targetchecks import BINARY


class ErrorSums:
    """Squared and absolute errors of model and baseline, per trial and column.

    Args:
        n_trials: Trials of the version.
        columns: Names of the targets.
    """

    def __init__(self, n_trials: int, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.count: Float64 = np.zeros((n_trials, len(columns)))
        shape = (2, *self.count.shape)  # model, baseline
        self.squares: Float64 = np.zeros(shape)
        self.sizes: Float64 = np.zeros(shape)

    def add(self, part: Predictions) -> None:
        """Add predictions; elements without a truth do not count."""
        there = np.isfinite(part.truth)
        np.add.at(self.count, part.trial, there)
        for which, guess in enumerate((part.predicted, part.naive)):
            error = np.where(there, guess - part.truth, 0.0)
            np.add.at(self.squares[which], part.trial, error**2)
            np.add.at(self.sizes[which], part.trial, np.abs(error))

    def summary(self) -> dict[str, Any]:
        """Return RMSE and MAE of model and baseline, over all elements and by column.

        `skill` is 1 - MSE / MSE of the baseline: 1 is perfect, 0 no better than the baseline.
        `macro` are the means over trials of the errors within each, so that a long trial counts no
        more than a short one.
        """
        columns = [slice(k, k + 1) for k in range(len(self.columns))]
        by_column = {
            name: self._part(part) for name, part in zip(self.columns, columns, strict=True)
        }
        return self._part(slice(None)) | {"by_column": by_column}

    def _part(self, columns: slice) -> dict[str, Any]:
        n = self.count[:, columns].sum()
        mse = self.squares[:, :, columns].sum(axis=(1, 2)) / n if n else np.full(2, np.nan)
        mae = self.sizes[:, :, columns].sum(axis=(1, 2)) / n if n else np.full(2, np.nan)
        return {
            "n": int(n),
            "rmse": float(np.sqrt(mse[0])),
            "mae": float(mae[0]),
            "naive_rmse": float(np.sqrt(mse[1])),
            "naive_mae": float(mae[1]),
            "skill": float(1 - mse[0] / mse[1]) if mse[1] > 0 else float("nan"),
            "macro": self._macro(columns),
        }

    def _macro(self, columns: slice) -> dict[str, Any]:
        count = self.count[:, columns].sum(axis=1)
        seen = count > 0
        rmse, mae = (
            sums[:, seen, columns].sum(axis=2) / count[seen] for sums in (self.squares, self.sizes)
        )
        each = {"rmse": np.sqrt(rmse[0]), "mae": mae[0], "naive_rmse": np.sqrt(rmse[1]),
                "naive_mae": mae[1]}  # fmt: skip
        means = {name: float(x.mean()) if len(x) else float("nan") for name, x in each.items()}
        return {"n_trials": int(seen.sum()), **means}

    def by_trial(self) -> tuple[Int64, Int64, Float64, Float64]:
        """Return trial numbers with their element count, RMSE and baseline RMSE."""
        n = self.count.sum(axis=1)
        trial = np.flatnonzero(n)
        rmse = np.sqrt(self.squares.sum(axis=2)[:, trial] / n[trial])
        return trial, n[trial].astype(np.int64), rmse[0], rmse[1]


def class_errors(part: Predictions) -> Predictions:
    """Return predictions whose error is 1 - the probability of the true class (baseline: 0, 1)."""
    there = np.isfinite(part.truth)
    truth = np.where(there, part.truth, 0).astype(np.int64)
    assert part.scores is not None
    return dataclasses.replace(
        part,
        truth=np.where(there, 0.0, np.nan),
        predicted=1 - np.take_along_axis(part.scores, truth, axis=1),
        naive=(part.naive != truth).astype(np.float64),
    )


def score_parts(
    parts: Iterable[Predictions], store: Store, objective: Objective
) -> tuple[ErrorSums, dict[str, Any]]:
    """Return the errors by trial, and the metrics of the whole split."""
    n_trials, columns = len(store.index), objective.columns
    names = class_names(store, objective)
    sums = ErrorSums(n_trials, columns)
    per_step = objective.kind == "step_class"
    classes = ClassScores(names, n_trials, per_step=per_step) if names else None
    more: list[BinaryScores | QuantileSums] = []
    if objective.loss == BINARY:
        more.append(BinaryScores(columns))
    if objective.quantiles:
        more.append(QuantileSums(columns, objective.quantiles, n_trials))
    for part in parts:
        sums.add(class_errors(part) if classes else part)
        if classes:
            classes.add(part)
        for each in more:
            each.add(part)
    metrics = classes.summary() if classes else sums.summary()
    for each in more:
        metrics = each.extend(metrics)
    return sums, metrics


def class_names(store: Store, objective: Objective) -> tuple[str, ...]:
    """Return the name of each class, of a target per step its code; empty where values are told."""
    codes = tuple(str(code) for code in range(objective.n_classes))
    return (store.manifest.target.classes or codes) if objective.n_classes else ()
