"""`split.method: time`: which interval between boundaries holds a group of trials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.errors import InvalidSpecError

if TYPE_CHECKING:
    from pipeline.sections import SplitSpec

TRAIN, PURGED = "train", "purged"
Spans = npt.NDArray[np.float64]


def by_interval(groups: Sequence[str], spec: SplitSpec, spans: Spans | None) -> dict[str, str]:
    """Return the interval that holds a group's whole span, or `purged`.

    The span of a group goes from the first of its times to the last, so that a group whose trials
    lie in different intervals is purged like a trial that a boundary cuts. What ends less than
    `purge` before a boundary is purged too, because what it predicts may lie behind it (Lopez de
    Prado 2018, Advances in Financial Machine Learning, chapter 7). An interval holds its begin.
    """
    begins = _begins(spec)
    if spans is None:
        raise InvalidSpecError(
            "split.method: time needs source.time, the column that says when a row was recorded. "
            "Add it, or choose another method."
        )
    blank = np.flatnonzero(~np.isfinite(spans).all(axis=1))
    if blank.size:
        raise InvalidSpecError(
            f"split.method: {groups[blank[0]]!r} runs from {spans[blank[0], 0]} to "
            f"{spans[blank[0], 1]}; wanted two times. Mend source.time, or choose another method."
        )
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    rows = [places[group] for group in groups]
    first, last = np.full(len(places), np.inf), np.full(len(places), -np.inf)
    np.minimum.at(first, rows, spans[:, 0])
    np.maximum.at(last, rows, spans[:, 1])
    interval = np.searchsorted(begins, first, side="right")
    end = np.append(begins, np.inf)[interval]
    purged = (last >= end) | (last > end - (spec.purge.amount if spec.purge else 0.0))
    names = np.array([TRAIN, *spec.boundaries, PURGED])
    chosen = names[np.where(purged, len(names) - 1, interval)].tolist()
    return dict(zip(places, chosen, strict=True))


def _begins(spec: SplitSpec) -> npt.NDArray[np.float64]:
    begins = np.array([_moment(name, value) for name, value in spec.boundaries.items()])
    if not np.isfinite(begins).all() or not (np.diff(begins) > 0).all():
        written = ", ".join(f"{name}: {value}" for name, value in spec.boundaries.items())
        raise InvalidSpecError(
            f"split.boundaries: got {written}; wanted each later than the one before. Put them in "
            "the order of time."
        )
    return begins


def _moment(name: str, value: str | float) -> float:
    """Return seconds since 1970 for a date, UTC unless it says otherwise; numbers as they are."""
    if name in (TRAIN, PURGED):
        raise InvalidSpecError(
            f"split.boundaries: got {name!r}; wanted another name: 'train' is what lies before the "
            "first boundary, and 'purged' what no split may hold."
        )
    if not isinstance(value, str):
        return float(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise InvalidSpecError(
            f"split.boundaries.{name}: got {value!r}; wanted an ISO date such as 2024-07-01 or "
            "2024-07-01T12:00, or a number in units of the time column."
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
