"""Metrics that rank: how well probabilities tell ones from zeros, over all steps and by trial.

Areas under curves are torchmetrics', of every distinct score (`thresholds=None`): ties count half
and nothing is binned. They are right to 1e-7, as it divides in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def auroc(scores: Float64, positive: Bool) -> float:
    """Return the chance that a one scores higher than a zero, ties half (Hanley & McNeil 1982).

    Args:
        scores: Probabilities `[N]`, from 0 to 1.
        positive: `[N]`.

    Returns:
        NaN unless both occur; torchmetrics itself would say 0.
    """
    if positive.all() or not positive.any():
        return float("nan")
    return float(binary_auroc(*_tensors(scores, positive), validate_args=False))


def average_precision(scores: Float64, positive: Bool) -> float:
    """Return the mean over the ones of the precision at the score of each; NaN without a one.

    A threshold at a score takes all elements that have it or more, so the order of ties does not
    matter; nothing is interpolated (Davis & Goadrich 2006).
    """
    if not positive.any():
        return float("nan")
    return float(binary_average_precision(*_tensors(scores, positive), validate_args=False))


def _tensors(scores: Float64, positive: Bool) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(scores), torch.from_numpy(positive.astype(np.int64))


def log_loss(scores: Float64, positive: Bool) -> float:
    """Return the mean of -log of what was given to the truth, NaN without elements.

    Probabilities are kept a float64 epsilon away from 0 and 1, where rounding may have put them.
    torchmetrics has no such metric.
    """
    if not len(scores):
        return float("nan")
    tiny = np.finfo(np.float64).eps
    given = np.where(positive, scores, 1 - scores).clip(tiny, 1 - tiny)
    return float(-np.log(given).mean())


def auroc_by_trial(scores: Float64, positive: Bool, trial: Int64) -> tuple[Int64, Float64]:
    """Return the trials that have both ones and zeros, and the AUROC within each.

    By mean ranks in one sort: torchmetrics would have to be called for each trial.
    """
    order = np.lexsort((scores, trial))
    scores, positive, trial = scores[order], positive[order], trial[order]
    fresh = np.ones(len(trial), np.bool_)  # the first of its trial; of its ties
    fresh[1:] = trial[1:] != trial[:-1]
    names, n = trial[fresh], np.diff(np.append(np.flatnonzero(fresh), len(trial)))
    place = np.arange(len(trial)) - np.flatnonzero(fresh).repeat(n)
    tied = fresh.copy()
    tied[1:] |= scores[1:] != scores[:-1]
    n_tied = np.diff(np.append(np.flatnonzero(tied), len(trial)))
    rank = (place[tied] + (n_tied + 1) / 2).repeat(n_tied)  # from 1, the mean of ties
    group = np.arange(len(n)).repeat(n)
    n_pos = np.bincount(group, positive, len(n))
    above = np.bincount(group, rank * positive, len(n)) - n_pos * (n_pos + 1) / 2
    both = (n_pos > 0) & (n_pos < n)
    return names[both], above[both] / (n_pos * (n - n_pos))[both]
