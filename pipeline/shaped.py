"""Trials after cleaning and before statistics: one, and a batch of them in one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.trials import Bool, Float64, Int64, Table

COUNTS = ("n_dropped", "n_merged", "n_inserted", "n_outliers")
"""What became of rows and values: dropped for missing values, merged into others by duplicates or
resampling, made by resampling; values clipped or taken as missing."""


@dataclass(frozen=True)
class ShapedTrial:
    """A trial after cleaning, before statistics.

    Attributes:
        table: What it came from.
        attributes: All that is known of it.
        label: The per-trial target as text, or None.
        values: `[rows, channels]` float64, NaN where still missing.
        observed: Same shape: the source held the value.
        targets: `[rows, target columns]` float64.
        codes: `[rows, categorical columns]` uint16.
        categories: Per categorical column, what the codes from 1 on stand for.
        starts: First row of each segment, int64; the first is 0.
        counts: By the names of `COUNTS`; 0 where there is none.
        span: First and last time before cleaning; NaN without a time column.
        time: `[rows]` float64, when each row was; None without a time column.
    """

    table: Table
    attributes: Mapping[str, str]
    label: str | None
    values: Float64
    observed: Bool
    targets: Float64
    codes: npt.NDArray[np.uint16]
    categories: Sequence[Sequence[str]]
    starts: Int64
    counts: Mapping[str, int]
    span: tuple[float, float]
    time: Float64 | None


@dataclass(frozen=True)
class ShapedBatch:
    """Trials after cleaning, one after another; the fields are those of `ShapedTrial`.

    Attributes:
        trial_edges: `[trials + 1]`, rows where trials begin.
        edges: `[segments + 1]`, rows where segments begin.
        counts: By name, int64 `[trials]`.
        spans: float64 `[trials, 2]`.
    """

    tables: Sequence[Table]
    attributes: Sequence[Mapping[str, str]]
    labels: Sequence[str | None]
    values: Float64
    observed: Bool
    targets: Float64
    codes: npt.NDArray[np.uint16]
    categories: Sequence[Sequence[Sequence[str]]]
    trial_edges: Int64
    edges: Int64
    counts: Mapping[str, Int64]
    spans: Float64
    time: Float64 | None

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self.tables)


def join_trials(trials: Sequence[ShapedTrial]) -> ShapedBatch:
    """Return one trial at least as a batch."""
    sizes = np.array([len(trial.values) for trial in trials], np.int64)
    trial_edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    times = [trial.time for trial in trials if trial.time is not None]
    starts = [trial.starts + edge for trial, edge in zip(trials, trial_edges, strict=False)]
    return ShapedBatch(
        tables=[trial.table for trial in trials],
        attributes=[trial.attributes for trial in trials],
        labels=[trial.label for trial in trials],
        values=_joined([trial.values for trial in trials]),
        observed=_joined([trial.observed for trial in trials]),
        targets=_joined([trial.targets for trial in trials]),
        codes=_joined([trial.codes for trial in trials]),
        categories=[trial.categories for trial in trials],
        trial_edges=trial_edges,
        edges=np.concatenate([*starts, trial_edges[-1:]]).astype(np.int64),
        counts={
            name: np.array([trial.counts.get(name, 0) for trial in trials], np.int64)
            for name in COUNTS
        },
        spans=np.array([trial.span for trial in trials], np.float64),
        time=_joined(times) if times else None,
    )


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
