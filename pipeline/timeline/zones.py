"""Wall clocks and UTC, in whole seconds."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.trials import Int64
from shards.errors import InvalidSpecError


def is_utc(zone: str | None) -> bool:
    """Return whether the zone's wall clock is UTC without a look into any table."""
    return zone in (None, "UTC")


def check_zone(zone: str | None) -> None:
    """Refuse a zone that polars does not know, although this machine's own tables may.

    Raises:
        InvalidSpecError: If so.
    """
    if is_utc(zone):
        return
    try:
        pl.Series([0]).cast(pl.Datetime("us")).dt.replace_time_zone(zone, non_existent="null")
    except pl.exceptions.PolarsError as error:
        raise InvalidSpecError(
            f"got zone {zone!r}; wanted an IANA time zone such as Europe/Berlin."
        ) from error


def to_utc(local: Int64, zone: str) -> tuple[Int64, Int64]:
    """Return what a wall clock's seconds are in UTC.

    Args:
        local: `[n]` seconds since 1970-01-01 00:00 on the wall.
        zone: IANA time zone.

    Returns:
        UTC seconds `[n]`; and the places of moments that the wall clock never showed, or showed
        twice, because of daylight saving. Their seconds mean nothing.
    """
    naive = pl.from_epoch(pl.Series(local), time_unit="s")
    aware = naive.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    wrong = np.flatnonzero(aware.is_null().to_numpy())
    return aware.dt.epoch("s").fill_null(0).to_numpy().astype(np.int64), wrong


def to_local(seconds: Int64, zone: str | None) -> Int64:
    """Return what the wall clock shows, as seconds since 1970-01-01 00:00 on the wall."""
    if is_utc(zone):
        return seconds
    aware = pl.from_epoch(pl.Series(seconds), time_unit="s").dt.replace_time_zone("UTC")
    naive = aware.dt.convert_time_zone(str(zone)).dt.replace_time_zone(None)
    return naive.dt.epoch("s").to_numpy().astype(np.int64)


def was_shown(local: int, zone: str) -> bool:
    """Return whether the wall clock showed this moment at all."""
    naive = pl.from_epoch(pl.Series([local]), time_unit="s")
    shown = naive.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return shown.null_count() == 0
