"""How well probabilities tell ones from zeros: exact, by ranks, over every scored step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.metrics import (
    Bool,
    Float64,
    Int64,
    auroc,
    auroc_by_trial,
    average_precision,
    log_loss,
)
from training.predict import Predictions


class BinaryScores:
    """Keeps what the model said of each scored step: 13 bytes for each, as ranks need them all.

    Args:
        columns: Names of the targets.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        n = len(self.columns)
        self.scores: list[list[Float64]] = [[np.empty(0)] for _ in range(n)]
        self.truths: list[list[Bool]] = [[np.empty(0, np.bool_)] for _ in range(n)]
        self.trials: list[list[Any]] = [[np.empty(0, np.int32)] for _ in range(n)]

    def add(self, part: Predictions) -> None:
        """Add predictions; elements without a truth do not count."""
        for k in range(len(self.columns)):
            there = np.isfinite(part.truth[:, k])
            self.scores[k].append(part.predicted[there, k])
            self.truths[k].append(part.truth[there, k] == 1)
            self.trials[k].append(part.trial[there].astype(np.int32))

    def extend(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return a summary of errors with the binary metrics beside them, also by column.

        `macro` gets the mean over trials of the AUROC within each, where both ones and zeros are.
        """
        kept = [
            tuple(np.concatenate(parts) for parts in each)
            for each in zip(self.scores, self.truths, self.trials, strict=True)
        ]
        by_column = [_rank_metrics(*each) for each in kept]
        if len(kept) == 1:  # sorting all steps is what takes time here
            whole = by_column[0]
        else:
            whole = _rank_metrics(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))
        merged = {
            name: _merge(summary["by_column"][name], each)
            for name, each in zip(self.columns, by_column, strict=True)
        }
        return _merge(summary, whole) | {"by_column": merged}


def _rank_metrics(scores: Float64, positive: Bool, trial: Int64) -> dict[str, Any]:
    _, each = auroc_by_trial(scores, positive, trial)
    mean = float(each.mean()) if len(each) else float("nan")
    return binary_summary(scores, positive) | {"macro": {"auroc": mean, "n_auroc": len(each)}}


def _merge(summary: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return both, and of `macro` both."""
    return summary | more | {"macro": summary["macro"] | more["macro"]}


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
