"""Errors against truth and against a naive baseline, summed trial by trial: O(trials) memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.predict import Float64, Int64, Predictions


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
        }

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


def class_summary(part: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Return accuracies of model and baseline over trials with a label.

    Balanced accuracy is the mean recall over the classes that occur; `auroc` (two classes) is the
    chance that a trial of the second class scores higher than one of the first (Hanley & McNeil
    1982), ties counting half.
    """
    there = np.isfinite(part.truth[:, 0])
    truth, predicted, naive = (
        x[there, 0].astype(np.int64) for x in (part.truth, part.predicted, part.naive)
    )
    confusion = confusion_matrix(truth, predicted, len(classes))
    summary: dict[str, Any] = {
        "n": len(truth),
        "accuracy": float(np.mean(truth == predicted)) if len(truth) else float("nan"),
        "balanced_accuracy": balanced_accuracy(confusion),
        "naive_accuracy": float(np.mean(truth == naive)) if len(truth) else float("nan"),
        "naive_balanced_accuracy": balanced_accuracy(confusion_matrix(truth, naive, len(classes))),
        "classes": list(classes),
        "confusion": confusion.tolist(),
    }
    if len(classes) == 2 and part.scores is not None:
        summary["auroc"] = auroc(part.scores[there, 1], truth == 1)
    return summary


def confusion_matrix(truth: Int64, predicted: Int64, n_classes: int) -> Int64:
    """Return int64 `[truth, predicted]` counts."""
    flat = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def balanced_accuracy(confusion: Int64) -> float:
    """Return the mean recall over the classes that occur, NaN if none does."""
    per_class = confusion.sum(axis=1)
    seen = per_class > 0
    return float(np.mean(confusion.diagonal()[seen] / per_class[seen])) if seen.any() else np.nan


def auroc(scores: Float64, positive: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve by ranks, NaN unless both classes occur."""
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not (n_pos and n_neg):
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count - 1) / 2  # mean rank of ties, from 1
    above = ranks[place][positive].sum() - n_pos * (n_pos + 1) / 2
    return float(above / (n_pos * n_neg))
