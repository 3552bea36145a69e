"""What a study leaves on disk, and which numbers of an evaluation its tables show."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Of the metrics of an evaluation: those that tables show, where there are such.
SHOWN = ("rmse", "mae", "skill", "accuracy", "balanced_accuracy", "auroc", "average_precision")
# The first that there is stands for the whole; whether more of it is better.
MAIN = {"accuracy": True, "auroc": True, "rmse": False}
# What the naive baseline has; ranks have none of their own, and chance ranks half of all right.
_NAIVE = {"accuracy": "naive_accuracy", "rmse": "naive_rmse"}


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        kind: One of `config.STUDIES`.
        folder: Where `study.csv`, `study.json` and what `files` names lie.
        status: `finished`, or `interrupted`: run it again to go on.
        rows: Of the table: a run each.
        summary: Plain numbers and texts about all of it together.
        files: Further files, below `folder`.
        digest: Of configs and train data of all runs.
    """

    kind: str
    folder: Path
    status: str
    rows: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]
    files: tuple[str, ...]
    digest: str

    def as_dict(self) -> dict[str, Any]:
        """Return what `study.json` holds."""
        return asdict(self) | {"folder": str(self.folder)}

    def write(self) -> StudyResult:
        """Write `study.csv` and `study.json`, and return the result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / "study.csv", csv_text(self.rows))
        replace_text(self.folder / "study.json", json_text(self.as_dict()))
        return self


def replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    building = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    building.write_text(text)
    building.replace(path)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of all columns that occur; what a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def json_text(document: Mapping[str, Any]) -> str:
    """Return JSON in which what is not finite is null."""
    return json.dumps(_finite(document), indent=2, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def shown_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that a table has columns for."""
    return {name: metrics[name] for name in SHOWN if isinstance(metrics.get(name), int | float)}


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Return the name of the metric that stands for the whole evaluation."""
    return next(name for name in MAIN if name in metrics)


def naive_value(metrics: Mapping[str, Any], name: str) -> float:
    """Return what the naive baseline has of a main metric."""
    value = metrics.get(_NAIVE[name]) if name in _NAIVE else 0.5
    return float("nan") if value is None else float(value)


def mean_and_sd(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean and standard deviation (n - 1) of each metric that all rows have.

    The sd of one row is None.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in SHOWN:
        values = [row.get(name) for row in rows]
        if values and all(isinstance(value, int | float) for value in values):
            numbers = np.asarray(values, np.float64)
            sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
            found[name] = {"mean": float(numbers.mean()), "sd": sd}
    return found
