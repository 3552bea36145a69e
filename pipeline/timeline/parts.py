"""Numbers made from the time axis: parts of the date, and time since a value was seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.files import RefusedError
from pipeline.timeline.groups import last_present
from pipeline.timeline.zones import to_local
from pipeline.trials import Bool, Float64, Int64

_DAY = 86_400
_YEARS = (-62_135_596_800, 253_402_300_799)
"""Seconds of the years 1 to 9999, a day less at either end for the zones."""
_Days = npt.NDArray[np.datetime64]


def calendar_part(time: Float64, part: str, form: str, zone: str | None) -> Float64:
    """Return a part of the date, or where in its cycle it is.

    Args:
        time: `[rows]` seconds since 1970-01-01 UTC. They are read to the microsecond, because a
            sum of steps may fall just short of the full hour.
        part: `minute` 0-59, `hour` 0-23, `weekday` 0 (Monday) to 6, `day` (of the month) from 1,
            `month` from 1, or `yearday` from 1.
        form: `number`: that integer. `sin`, `cos`: of 2 pi x, x being the share of the cycle that
            has passed, from 0 at its beginning: of the hour, the day, the week, the month, the
            year (for `month` in twelve equal parts, for `yearday` by days). It grows
            steadily within the cycle, so the curve has no steps.
        zone: IANA time zone of the wall clock; None: UTC.

    Returns:
        `[rows]` float64.

    Raises:
        RefusedError: `time_beyond_calendar` outside the years 1 to 9999.
    """
    beyond = ~((time >= _YEARS[0] + _DAY) & (time <= _YEARS[1] - _DAY))
    if beyond.any():
        row = int(beyond.argmax())
        raise RefusedError(
            "time_beyond_calendar",
            f"row {row + 1}: {time[row]:g} s since 1970 is outside the years 1 to 9999. Set "
            "source.time.unit if times are in another unit.",
        )
    whole, micro = np.divmod(np.rint(time * 1e6).astype(np.int64), 1_000_000)
    days, second = np.divmod(to_local(whole, zone), _DAY)
    number, share = _part(part, days, second, second + micro / 1e6)
    if form == "number":
        return number.astype(np.float64)
    return np.sin(2 * np.pi * share) if form == "sin" else np.cos(2 * np.pi * share)


def _part(part: str, days: Int64, second: Int64, exact: Float64) -> tuple[Int64, Float64]:
    """Return the part as an integer, and the share of its cycle that has passed.

    Args:
        part: Its name.
        days: `[rows]` days since 1970-01-01.
        second: `[rows]` whole seconds of the day.
        exact: The same with their fractions.
    """
    if part == "minute":
        return second // 60 % 60, exact % 3600 / 3600
    if part == "hour":
        return second // 3600, exact / _DAY
    if part == "weekday":
        weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
        return weekday, (weekday + exact / _DAY) / 7
    dates = days.astype("M8[D]")
    if part == "yearday":
        day, share = _within(dates, "Y", exact)
        return day + 1, share
    day, share = _within(dates, "M", exact)
    if part == "day":
        return day + 1, share
    assert part == "month", part
    month = dates.astype("M8[M]").astype(np.int64) % 12
    return month + 1, (month + share) / 12


def _within(dates: _Days, unit: str, exact: Float64) -> tuple[Int64, Float64]:
    """Return the days since the month or year began, and the share of it that has passed."""
    cycles = dates.astype(f"M8[{unit}]")
    first = cycles.astype("M8[D]").astype(np.int64)
    length = (cycles + 1).astype("M8[D]").astype(np.int64) - first
    day = dates.astype(np.int64) - first
    return day, (day + exact / _DAY) / length


def since_observed(observed: Bool, time: Float64 | None, starts: Int64) -> Float64:
    """Return the time since the source last held a value of each channel.

    0 where it holds one; before the first value counted from the segment's first row, as in GRU-D
    (Che et al. 2018, "Recurrent Neural Networks for Multivariate Time Series with Missing
    Values"). Their interval at a row that holds a value reaches back to the value before; ours
    is 0.

    Args:
        observed: `[rows, channels]`.
        time: `[rows]`, strictly increasing; None: rows are counted.
        starts: First row of each segment; counting begins anew there.

    Returns:
        `[rows, channels]` float64.
    """
    rows = np.arange(len(observed), dtype=np.int64)
    begin = np.zeros(len(observed), np.int64)
    begin[starts[starts < len(observed)]] = starts[starts < len(observed)]
    begin = np.maximum.accumulate(begin)
    last = np.maximum(last_present(observed), begin[:, None])
    clock = rows.astype(np.float64) if time is None else time
    return clock[:, None] - clock[last]
