"""The time axis of one trial: read it, put rows in order, segments, resampling, calendar.

Pure functions of arrays. Times are float64: seconds since 1970-01-01 UTC for dates, seconds for
clocks and for numbers with a unit, else the column's own numbers.
"""

from __future__ import annotations

from pipeline.timeline.arrange import Arranged, arrange_rows
from pipeline.timeline.parse import check_format, parse_time
from pipeline.timeline.parts import calendar_part, since_observed

__all__ = [
    "VERSION",
    "Arranged",
    "arrange_rows",
    "calendar_part",
    "check_format",
    "parse_time",
    "since_observed",
]
