"""How good quantiles are: the loss that each was trained with, and how much lies below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.predict import Float64, Predictions


class QuantileSums:
    """Sums of the pinball loss and of truths at or below each quantile: O(trials) memory.

    torchmetrics has neither by trial.

    Args:
        columns: Names of the targets.
        levels: The quantiles, rising.
        n_trials: Trials of the version.
    """

    def __init__(self, columns: Sequence[str], levels: Sequence[float], n_trials: int) -> None:
        self.columns, self.levels = tuple(columns), np.asarray(levels)
        shape = (n_trials, len(self.columns))
        self.count: Float64 = np.zeros(shape)
        self.pinball: Float64 = np.zeros((*shape, len(levels)))
        self.below: Float64 = np.zeros((*shape, len(levels)))

    def add(self, part: Predictions) -> None:
        """Add predictions; elements without a truth do not count."""
        assert part.quantiles is not None
        there = np.isfinite(part.truth)
        error = np.where(there[..., None], part.truth[..., None] - part.quantiles, 0.0)
        loss = np.maximum(self.levels * error, (self.levels - 1) * error)
        np.add.at(self.count, part.trial, there)
        np.add.at(self.pinball, part.trial, loss)
        np.add.at(self.below, part.trial, (error <= 0) & there[..., None])

    def extend(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return a summary of errors with the metrics of quantiles beside them, also by column.

        `pinball` is the mean over quantiles of that loss (Koenker & Bassett 1978), in the units of
        the target, of each quantile in `quantiles`; `coverage` there is the share of truths at or
        below it, and of an interval of `intervals` the share between its two quantiles.
        """
        columns = [slice(k, k + 1) for k in range(len(self.columns))]
        by_column = {
            name: _merge(summary["by_column"][name], self._part(part))
            for name, part in zip(self.columns, columns, strict=True)
        }
        return _merge(summary, self._part(slice(None))) | {"by_column": by_column}

    def _part(self, columns: slice) -> dict[str, Any]:
        count = self.count[:, columns].sum(axis=1)
        loss, below = (x[:, columns].sum(axis=1) for x in (self.pinball, self.below))
        n, seen = count.sum(), count > 0
        mean, share = ((x.sum(axis=0) / n if n else x.sum(axis=0) * np.nan) for x in (loss, below))
        by_trial = loss[seen].mean(axis=1) / count[seen]
        names = [quantile_name(level) for level in self.levels]
        return {
            "pinball": float(mean.mean()),
            "quantiles": {
                name: {"pinball": float(mean[q]), "coverage": float(share[q])}
                for q, name in enumerate(names)
            },
            "intervals": {
                f"{names[low]}_{names[high]}": {
                    "wanted": float(self.levels[high] - self.levels[low]),
                    "coverage": float(share[high] - share[low]),
                }
                for low, high in central_pairs(self.levels.tolist())
            },
            "macro": {"pinball": float(by_trial.mean()) if len(by_trial) else float("nan")},
        }


def central_pairs(levels: Sequence[float]) -> list[tuple[int, int]]:
    """Return the places of each two quantiles that lie as far from .5, the widest first."""
    last = len(levels) - 1
    return [
        (low, last - low)
        for low in range(len(levels) // 2)
        if np.isclose(levels[low] + levels[last - low], 1)
    ]


def quantile_name(level: float) -> str:
    """Return `q10` for the quantile .1, `q2.5` for .025."""
    return f"q{100 * level:g}"


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both, and of `macro` both."""
    return one | other | {"macro": one["macro"] | other["macro"]}
