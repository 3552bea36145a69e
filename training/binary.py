"""How well probabilities tell ones from zeros: exact, by ranks, over every scored step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.predict import Float64, Predictions
from training.score import auroc

Bool = npt.NDArray[np.bool_]


class BinaryScores:
    """Keeps what the model said of each scored step: 9 bytes for each, as ranks need them all.

    Args:
        columns: Names of the targets.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.scores: list[list[Float64]] = [[] for _ in columns]
        self.truths: list[list[Bool]] = [[] for _ in columns]

    def add(self, part: Predictions) -> None:
        """Add predictions; elements without a truth do not count."""
        for k in range(len(self.columns)):
            there = np.isfinite(part.truth[:, k])
            self.scores[k].append(part.predicted[there, k])
            self.truths[k].append(part.truth[there, k] == 1)

    def extend(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return a summary of errors with the binary metrics beside them, also by column."""
        scores = [np.concatenate([np.empty(0), *parts]) for parts in self.scores]
        truths = [np.concatenate([np.empty(0, np.bool_), *parts]) for parts in self.truths]
        whole = binary_summary(np.concatenate(scores), np.concatenate(truths))
        by_column = {
            name: summary["by_column"][name] | binary_summary(scores[k], truths[k])
            for k, name in enumerate(self.columns)
        }
        return summary | whole | {"by_column": by_column}


def binary_summary(scores: Float64, positive: Bool) -> dict[str, float]:
    """Return AUROC, average precision, log loss and share of ones; NaN where undefined.

    The average precision of chance is the share of ones, its AUROC is .5.
    """
    return {
        "auroc": auroc(scores, positive),
        "average_precision": average_precision(scores, positive),
        "log_loss": log_loss(scores, positive),
        "positive_share": float(positive.mean()) if len(positive) else float("nan"),
    }


def average_precision(scores: Float64, positive: Bool) -> float:
    """Return the mean over the ones of the precision at the score of each.

    A threshold at a score takes all elements that have it or more, so the order of ties does not
    matter; nothing is interpolated (Davis & Goadrich 2006). NaN without a one.
    """
    if not positive.any():
        return float("nan")
    _, place = np.unique(-scores, return_inverse=True)  # 0 is the highest score
    n_all, n_pos = np.bincount(place), np.bincount(place, weights=positive)
    precision = n_pos.cumsum() / n_all.cumsum()
    return float((precision * n_pos).sum() / n_pos.sum())


def log_loss(scores: Float64, positive: Bool) -> float:
    """Return the mean of -log of what was given to the truth, NaN without elements.

    Probabilities are kept a float64 epsilon away from 0 and 1, where rounding may have put them.
    """
    if not len(scores):
        return float("nan")
    tiny = np.finfo(np.float64).eps
    given = np.where(positive, scores, 1 - scores).clip(tiny, 1 - tiny)
    return float(-np.log(given).mean())
