"""The matrix of a sequence of data sets: what each stage knows of each of them.

Lopez-Paz & Ranzato (NeurIPS 2017) read it so: below the diagonal is what was forgotten, above it
what was known of a data set before it came.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.studytables import MAIN, csv_text, json_text, main_metric, naive_value, replace_text

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """Scores of the best weights of T stages on D data sets.

    Attributes:
        stages: T names, in order.
        learned: The data set of each stage.
        data_sets: D names, in the order in which they come first.
        metric: What is scored: accuracy, auroc or rmse.
        values: float64 `[T, D]`, physical units where there are such.
        naive: float64 `[D]`, of the naive baseline on each data set; of ranks .5.
    """

    stages: tuple[str, ...]
    learned: tuple[str, ...]
    data_sets: tuple[str, ...]
    metric: str
    values: Float64
    naive: Float64

    @classmethod
    def of(
        cls,
        stages: Sequence[str],
        learned: Sequence[str],
        metrics: Sequence[Mapping[str, Mapping[str, Any]]],
    ) -> Self:
        """Make the matrix of the metrics of each stage by data set."""
        names = tuple(metrics[0])
        metric = main_metric(metrics[0][names[0]])
        rows = [[_number(row[name].get(metric)) for name in names] for row in metrics]
        naive = [naive_value(metrics[0][name], metric) for name in names]
        return cls(tuple(stages), tuple(learned), names, metric, np.array(rows), np.array(naive))

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if MAIN[self.metric] else -1.0

    def summary(self) -> dict[str, Any]:
        """Return what the matrix comes to, in units of the metric; more is better in all but one.

        `backward_transfer`: after the last stage against right after a data set was learned, mean
        over all but the last learned. `forward_transfer`: of a data set just before it is learned,
        against the naive baseline, mean over all but the first; the paper compares with random
        weights, which say about as much. `forgetting` (Chaudhry et al., ECCV 2018): the best score
        that a data set ever had before the last stage against the one at the end; less is better.
        Each is None with a single data set.
        """
        good = self.sign * self.values
        first = [self.learned.index(name) for name in self.data_sets]
        last = [len(self.learned) - 1 - self.learned[::-1].index(name) for name in self.data_sets]
        end = len(self.stages) - 1
        back = [good[end, d] - good[t, d] for d, t in enumerate(last) if t < end]
        ahead = [good[t - 1, d] - self.sign * self.naive[d] for d, t in enumerate(first) if t > 0]
        lost = [good[:end, d].max() - good[end, d] for d, t in enumerate(last) if t < end]
        return {
            "metric": self.metric,
            "mean_at_the_end": float(self.values[end].mean()),
            "backward_transfer": _mean(back),
            "forward_transfer": _mean(ahead),
            "forgetting": _mean(lost),
        }

    def skill(self) -> Float64:
        """Return float64 `[T, D]`: 1 is perfect, 0 no better than the naive baseline, or worse."""
        perfect = 1.0 if MAIN[self.metric] else 0.0
        way = np.abs(perfect - self.naive)
        gain = self.sign * (self.values - self.naive)
        skill = np.divide(gain, way, out=np.zeros_like(gain), where=way > 0)
        return np.nan_to_num(skill).clip(0, 1)

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write `forgetting.csv`, `.json` and `.png`; return their names."""
        table = [
            {"stage": stage, "learned": name, **dict(zip(self.data_sets, row, strict=True))}
            for stage, name, row in zip(
                self.stages, self.learned, self.values.tolist(), strict=True
            )
        ]
        document = {
            "metric": self.metric, "more_is_better": MAIN[self.metric], "stages": self.stages,
            "learned": self.learned, "data_sets": self.data_sets, "values": self.values.tolist(),
            "naive": self.naive.tolist(), "summary": self.summary(),
        }  # fmt: skip
        replace_text(folder / "forgetting.csv", csv_text(table))
        replace_text(folder / "forgetting.json", json_text(document))
        self.draw(folder / "forgetting.png")
        return ("forgetting.csv", "forgetting.json", "forgetting.png")

    def draw(self, path: Path) -> None:
        """Draw the matrix; its colour is the skill, which compares data sets of any scale."""
        n_stages, n_sets = self.values.shape
        figure = Figure(figsize=(2.6 + 1.1 * n_sets, 1.6 + 0.55 * n_stages), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(
            xlabel="scored on", ylabel="after stage",
            title=f"{_TITLES[self.metric]} on every data set\ndark: far better than the "
            "baseline; bold: just learned",
        )  # fmt: skip
        axes.title.set_fontsize(9)
        shade = self.skill()
        axes.imshow(shade, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
        axes.set_xticks(range(n_sets), self.data_sets, rotation=30 if n_sets > 4 else 0)
        axes.set_yticks(range(n_stages), self.stages)
        for (row, column), value in np.ndenumerate(self.values):
            own = self.learned[row] == self.data_sets[column]
            axes.text(
                column, row, f"{value:.4g}", ha="center", va="center", fontsize=9,
                color="white" if shade[row, column] > 0.6 else "black",
                fontweight="bold" if own else "normal",
            )  # fmt: skip
        building = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        figure.savefig(building, dpi=120, format="png")
        building.replace(path)


_TITLES = {"rmse": "RMSE", "accuracy": "Accuracy", "auroc": "AUROC"}


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
