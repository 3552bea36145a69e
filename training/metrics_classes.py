"""Metrics of classes, of trials or of steps: a confusion matrix grows, and tells the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score

from training.metrics import Float64, Int64, auroc
from training.predict import Predictions


class ClassScores:
    """Counts hits by class and by trial; of two classes also keeps the scores, for their ranks.

    Args:
        classes: Names.
        n_trials: Trials of the version.
        per_step: Whether steps are classified.
    """

    def __init__(self, classes: Sequence[str], n_trials: int, *, per_step: bool) -> None:
        self.classes, self.per_step = tuple(classes), per_step
        n = len(self.classes)
        self._confusion = MulticlassConfusionMatrix(n, validate_args=False)
        self._naive = MulticlassConfusionMatrix(n, validate_args=False)
        # A class counts if it occurs in truth or prediction, as scikit-learn has it.
        self._f1 = MulticlassF1Score(n, average="macro", validate_args=False)
        self._by_trial: Int64 = np.zeros((3, n_trials), np.int64)  # steps, hits, naive hits
        self._scores: list[Float64] = []
        self._truths: list[Int64] = []

    def add(self, part: Predictions) -> None:
        """Add predictions; elements without a truth do not count."""
        there = np.isfinite(part.truth[:, 0])
        if not there.any():
            return
        truth, said, naive = (
            x[there, 0].astype(np.int64) for x in (part.truth, part.predicted, part.naive)
        )
        target, guess, other = (torch.from_numpy(x) for x in (truth, said, naive))
        self._confusion.update(guess, target)
        self._naive.update(other, target)
        self._f1.update(guess, target)
        trial = part.trial[there]
        for sums, hits in zip(self._by_trial, (1, truth == said, truth == naive), strict=True):
            np.add.at(sums, trial, hits)
        if len(self.classes) == 2 and part.scores is not None:
            self._scores.append(part.scores[there, 1])
            self._truths.append(truth)

    def summary(self) -> dict[str, Any]:
        """Return accuracies of model and baseline over all elements that have a truth.

        Balanced accuracy is the mean recall over the classes that occur. `macro`, of steps: the
        mean over trials of the accuracy in each. `auroc`: of the second class of two.
        """
        n, hits, naive_hits = self._by_trial.sum(axis=1).tolist()
        if not n:  # torchmetrics warns of a metric that has seen nothing
            nothing = float("nan")
            confusion = naive = np.zeros((len(self.classes),) * 2, np.int64)
        else:
            nothing = 0.0
            confusion, naive = (each.compute().numpy() for each in (self._confusion, self._naive))
        summary: dict[str, Any] = {
            "n": n,
            "accuracy": hits / n if n else nothing,
            "balanced_accuracy": balanced_accuracy(confusion),
            "macro_f1": float(self._f1.compute()) if n else nothing,
            "naive_accuracy": naive_hits / n if n else nothing,
            "naive_balanced_accuracy": balanced_accuracy(naive),
            "classes": list(self.classes),
            "confusion": confusion.tolist(),
        }
        if self.per_step:
            summary["macro"] = self._macro()
        if len(self.classes) == 2:
            scores = np.concatenate([np.empty(0), *self._scores])
            truths = np.concatenate([np.empty(0, np.int64), *self._truths])
            summary["auroc"] = auroc(scores, truths == 1)
        return summary

    def _macro(self) -> dict[str, float]:
        n, *hits = self._by_trial[:, self._by_trial[0] > 0]
        means = [float((part / n).mean()) if len(n) else float("nan") for part in hits]
        return {"n_trials": len(n), "accuracy": means[0], "naive_accuracy": means[1]}


def balanced_accuracy(confusion: Int64) -> float:
    """Return the mean recall over the classes that occur, NaN if none does.

    torchmetrics' macro recall also counts, with 0, a class that is only predicted.
    """
    per_class = confusion.sum(axis=1)
    seen = per_class > 0
    return float(np.mean(confusion.diagonal()[seen] / per_class[seen])) if seen.any() else np.nan
