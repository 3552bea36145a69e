"""A column of times into float64."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

import numpy as np
import polars as pl

from pipeline.files import RefusedError, quote
from pipeline.sections import TimeSpec
from pipeline.sections.base import SECONDS
from pipeline.timeline.shapes import Fields, read_shapes
from pipeline.timeline.zones import check_zone, is_utc, to_utc, was_shown
from pipeline.trials import Bool, Float64, Int64
from shards.errors import InvalidSpecError

_ISO = re.compile(
    rb"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    rb"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,18}))?)?"
    rb" ?(?P<offset>Z|[+-](?P<east>\d\d)(?::?(?P<past>\d\d))?)?)?"
)
_CLOCK = re.compile(
    rb"(?P<hour>\d{1,9}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,18}))?)?"
)
_DIRECTIVE = re.compile(r"%(?:%|[-_0]?(?:\.?[369]?f|:{0,3}z|#z|.))")
_WANTED = {
    "number": "a number such as 12.5",
    "iso": "an ISO 8601 date such as 2024-03-01T10:30:00",
    "clock": "HH:MM or HH:MM:SS, such as 47:37",
}
_MOMENT_US = 1_709_289_005_250_000
"""2024-03-01T10:30:05.250Z, for examples."""


def parse_time(values: Float64 | pl.Series, spec: TimeSpec) -> Float64:
    """Return the times of a column.

    Args:
        values: `[rows]`: numbers, texts or dates. Numbers of a column that is to be read as text
            are read as they would be written (`20240301` with `%Y%m%d`).
        spec: How they are written.

    Returns:
        `[rows]` float64, finite, not yet in order. Dates are seconds since 1970-01-01 UTC, which
        float64 holds to a quarter of a microsecond.

    Raises:
        RefusedError: `time_missing` or `time_unreadable`, naming the first such row.
        InvalidSpecError: If the format or the zone cannot be used; see `check_format`.
    """
    if spec.format == "number":
        return _numbers(values, spec)
    series = _as_series(values)
    if spec.is_date and series.dtype in (pl.Date, pl.Datetime):
        _check_missing(series.is_null().to_numpy(), spec)
        return _from_datetimes(series, spec)
    series = series.cast(pl.String).str.strip_chars(" \t")
    lengths = series.str.len_bytes()
    if series.null_count() or lengths.min() == 0:
        _check_missing(lengths.fill_null(0).to_numpy() == 0, spec)
    if spec.format == "clock":
        whole, fraction, _ = _read(series, _CLOCK, _clock_seconds, spec)
        return whole + fraction
    if spec.format == "iso":
        whole, fraction, naive = _read(series, _ISO, _iso_seconds, spec)
        return _in_utc(whole, naive, spec) + fraction
    return _by_pattern(series, spec)


def check_format(spec: TimeSpec) -> None:
    """Refuse a pattern or a zone that cannot be used, before any file is read.

    Raises:
        InvalidSpecError: Naming it, and what to write instead.
    """
    check_zone(spec.zone)
    if spec.is_date and spec.format != "iso":
        _complete(spec.format)


# --- numbers ----------------------------------------------------------------------------------


def _numbers(values: Float64 | pl.Series, spec: TimeSpec) -> Float64:
    if isinstance(values, pl.Series):
        numbers = values.cast(pl.Float64, strict=False)
        unreadable = (numbers.is_null() & values.is_not_null()).to_numpy()
        if unreadable.any():
            _refuse_unreadable(int(unreadable.argmax()), values, spec)
        values = numbers.to_numpy()
    time = np.asarray(values, np.float64)
    if spec.unit is not None:
        seconds = SECONDS[spec.unit]
        with np.errstate(over="ignore"):
            # 1e-3 is no float64, 1000 is: a quotient is rounded once.
            time = time * seconds if seconds >= 1 else time / round(1 / seconds)
    _check_missing(~np.isfinite(time), spec)
    return time


def _as_series(values: Float64 | pl.Series) -> pl.Series:
    """Return numbers as they would be written, whole ones without a point; NaN as null."""
    if isinstance(values, pl.Series) and not values.dtype.is_float():
        return values
    numbers = pl.Series(values).cast(pl.Float64).fill_nan(None)
    whole = numbers.cast(pl.Int64, strict=False)
    is_whole = pl.when(whole.cast(pl.Float64) == numbers)
    texts = is_whole.then(whole.cast(pl.String)).otherwise(numbers.cast(pl.String))
    return pl.select(texts).to_series()


# --- texts ------------------------------------------------------------------------------------


def _read(
    texts: pl.Series,
    pattern: re.Pattern[bytes],
    seconds_of: Callable[[Fields], tuple[Int64, Bool]],
    spec: TimeSpec,
) -> tuple[Int64, Float64, Bool]:
    """Return whole seconds, their fractions, and which rows name no offset."""
    whole = np.zeros(len(texts), np.int64)
    fraction = np.zeros(len(texts))
    naive: Bool = np.ones(len(texts), np.bool_)
    worst = len(texts)
    for rows, fields in read_shapes(texts, pattern):
        if fields is None:  # shapes come by their first row: no earlier row can follow
            worst = min(worst, int(rows[0]))
            break
        whole[rows], bad = seconds_of(fields)
        if fields.text("fraction"):
            fraction[rows] = fields.fraction("fraction")
        naive[rows] = "offset" not in pattern.groupindex or not fields.text("offset")
        if bad.any():
            worst = min(worst, int(rows[bad.argmax()]))
    if worst < len(texts):
        _refuse_unreadable(worst, texts, spec)
    return whole, fraction, naive


def _clock_seconds(fields: Fields) -> tuple[Int64, Bool]:
    minute, second = fields.number("minute"), fields.number("second")
    return fields.number("hour") * 3600 + minute * 60 + second, (minute > 59) | (second > 59)


def _iso_seconds(fields: Fields) -> tuple[Int64, Bool]:
    month, day, hour = fields.number("month"), fields.number("day"), fields.number("hour")
    months = (fields.number("year") - 1970) * 12 + month - 1
    first = months.astype("M8[M]").astype("M8[D]").astype(np.int64)
    next_first = (months + 1).astype("M8[M]").astype("M8[D]").astype(np.int64)
    bad = (month < 1) | (month > 12) | (day < 1) | (day > next_first - first) | (hour > 23)
    clock, unclear = _clock_seconds(fields)
    east, past = fields.number("east"), fields.number("past")
    sign = -1 if (fields.text("offset") or b"").startswith(b"-") else 1
    seconds = (first + day - 1) * 86400 + clock - sign * (east * 3600 + past * 60)
    return seconds, bad | unclear | (east > 23) | (past > 59)


def _by_pattern(texts: pl.Series, spec: TimeSpec) -> Float64:
    pattern, rest = _complete(spec.format)
    whole = texts + rest if rest else texts
    parsed = whole.str.to_datetime(pattern, time_unit="us", strict=False)
    unread = parsed.is_null().to_numpy()
    if unread.any():
        _refuse_unreadable(int(unread.argmax()), texts, spec)
    return _from_datetimes(parsed, spec)


@lru_cache
def _complete(pattern: str) -> tuple[str, str]:
    """Return the pattern as polars takes it, and what to append to each text.

    Raises:
        InvalidSpecError: If it cannot be used.
    """
    ours = pattern.replace(".%f", "%.f")  # Python's fraction; polars would read nanoseconds
    directives = _DIRECTIVE.findall(ours)
    letters = {directive[-1] for directive in directives}
    # Polars reads no hour without minutes.
    whole_hours = not letters.isdisjoint("HIkl") and letters.isdisjoint("MTRrXc+")
    rest, directive = (" 00", " %M") if whole_hours else ("", "")
    problem = _problem(directives, letters)
    if problem is None:
        try:
            written = _example(ours) + rest
            read = pl.Series([written]).str.to_datetime(ours + directive, strict=False)
            if read.null_count():
                problem = f"it does not read its own {quote(written)}"
        except pl.exceptions.PolarsError as error:
            problem = str(error).split("\n", 1)[0].rstrip(".")
    if problem is not None:
        raise InvalidSpecError(f"source.time.format: got {pattern!r}: {problem}.")
    return ours + directive, rest


def _problem(directives: Sequence[str], letters: Collection[str]) -> str | None:
    """Return what polars would read otherwise than a user means it."""
    if "%f" in directives:
        return "write .%f, or %3f, %6f or %9f for a fraction of that many digits"
    if "%Z" in directives:
        return "names of zones are not read: write the name as it stands, and set 'zone'"
    if "%s" in directives:
        return "for seconds since 1970 there is 'format: number' with 'unit: s'"
    if set(letters).isdisjoint("YyGDFxcv+"):
        return "it names no year; for times since the trial's beginning there is 'clock'"
    return None


def _example(pattern: str) -> str:
    moment = pl.Series([_MOMENT_US]).cast(pl.Datetime("us", "UTC"))
    return str(moment.dt.strftime(pattern)[0])


# --- dates ------------------------------------------------------------------------------------


def _from_datetimes(series: pl.Series, spec: TimeSpec) -> Float64:
    zone = getattr(series.dtype, "time_zone", None)  # whatever it is, the integers are UTC
    micros = series.cast(pl.Datetime("us", zone)).to_physical().to_numpy()
    whole, rest = np.divmod(micros, 1_000_000)
    return _in_utc(whole, np.full(len(series), zone is None), spec) + rest / 1e6


def _in_utc(whole: Int64, naive: Bool, spec: TimeSpec) -> Int64:
    """Return UTC seconds of moments that are naive in the spec's zone, or UTC already."""
    zone = spec.zone
    if zone is None or is_utc(zone) or not naive.any():
        return whole
    rows = np.flatnonzero(naive)
    seconds, wrong = to_utc(whole[rows], zone)
    if wrong.size:
        row = int(rows[wrong[0]])
        how = "is ambiguous" if was_shown(int(whole[row]), zone) else "does not exist"
        raise RefusedError(
            "time_unreadable",
            f"column {spec.column!r}, row {row + 1}: {np.datetime64(int(whole[row]), 's')} {how} "
            f"in {zone} because of daylight saving. Write dates with UTC offsets, or in UTC.",
            column=spec.column,
        )
    utc = whole.copy()
    utc[rows] = seconds
    return utc


# --- refusals ---------------------------------------------------------------------------------


def _check_missing(missing: Bool, spec: TimeSpec) -> None:
    if missing.any():
        raise RefusedError(
            "time_missing",
            f"row {int(missing.argmax()) + 1} has no time in column {spec.column!r}.",
            column=spec.column,
        )


def _refuse_unreadable(row: int, values: pl.Series, spec: TimeSpec) -> None:
    wanted = _WANTED.get(spec.format)
    if wanted is None:
        example = _example(spec.format.replace(".%f", "%.f"))
        wanted = f"a date by {spec.format!r}, such as {example}"
    raise RefusedError(
        "time_unreadable",
        f"column {spec.column!r}, row {row + 1}: got {quote(str(values[row]))}; wanted {wanted}.",
        column=spec.column,
    )
