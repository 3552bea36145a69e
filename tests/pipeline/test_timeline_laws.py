"""What holds for every time axis, against loops that take one row at a time."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.files import RefusedError
from pipeline.sections import ResampleSpec, TimeSpec
from pipeline.timeline import arrange_rows, calendar_part, parse_time, since_observed
from shards.clock import regular_step

Values = npt.NDArray[np.float64]
NAN = math.nan

cells = st.one_of(st.just(NAN), st.floats(-1e6, 1e6, allow_subnormal=False))
moments = st.one_of(
    st.integers(-40, 40).map(float),
    st.integers(-400, 400).map(lambda k: k * 0.1),
    st.floats(-50, 50),
    st.integers(0, 90).map(lambda k: 1.7e9 + k * 0.25),
)
everies = st.sampled_from([0.1, 0.25, 1.0, 3.0, 7.5])


def resampled(every: float, method: str) -> ResampleSpec:
    return ResampleSpec.model_validate({"every": every, "method": method})


@st.composite
def trials(draw: st.DrawFn) -> tuple[Values, Values]:
    near = draw(st.booleans())
    low, high = (0, 60) if near else (-400, 400)
    times = st.lists(
        st.integers(low, high).map(lambda k: k * 0.1) if near else moments, min_size=1, max_size=14
    )
    time = np.array(draw(times))
    assume(np.ptp(time) < 1e5)
    shape = (len(time), draw(st.integers(0, 3)))
    return time, draw(hnp.arrays(np.float64, shape, elements=cells))


@st.composite
def specs(draw: st.DrawFn, method: str | None = None) -> TimeSpec:
    methods = st.sampled_from(["mean", "last", "interpolate"])
    resample = resampled(draw(everies), method or draw(methods))
    return TimeSpec.model_validate(
        {
            "column": "t",
            "unsorted": "sort",
            "duplicates": draw(st.sampled_from(["first", "last", "mean"])),
            "max_gap": draw(st.one_of(st.none(), st.sampled_from([0.1, 0.5, 1.0, 4.0]))),
            "resample": resample if method else draw(st.sampled_from([None, resample])),
        }
    )


def arranged_or_none(time: Values, numbers: Values, spec: TimeSpec):
    try:
        return arrange_rows(time, numbers, spec)
    except RefusedError as error:
        interpolates = spec.resample is not None and spec.resample.method == "interpolate"
        if error.code == "resample_no_rows" and interpolates:
            return None
        raise


# --- all methods ------------------------------------------------------------------------------


@given(trials(), specs())
def test_rows_are_conserved_and_time_grows(trial: tuple[Values, Values], spec: TimeSpec):
    time, numbers = trial
    before = time.copy(), numbers.copy()
    out = arranged_or_none(time, numbers, spec)
    np.testing.assert_array_equal(time, before[0])
    np.testing.assert_array_equal(numbers, before[1])
    if out is None:
        return
    n_rows = len(out.time)
    assert len(time) == n_rows + out.n_merged - out.n_inserted
    assert min(out.n_merged, out.n_inserted) >= 0
    assert (np.diff(out.time) > 0).all()
    assert out.numbers.shape == (n_rows, numbers.shape[1])
    assert out.text_rows.shape == (n_rows,)
    assert out.n_inserted == (out.text_rows < 0).sum()
    assert out.text_rows.max(initial=-1) < len(time)
    assert out.starts[0] == 0
    assert (np.diff(out.starts) > 0).all()
    assert out.starts[-1] < n_rows
    for array, kind in ((out.time, "f8"), (out.text_rows, "i8"), (out.starts, "i8")):
        assert array.dtype == np.dtype(kind)


@given(trials(), specs(), st.randoms())
def test_sorting_is_a_permutation_and_stable(trial, spec: TimeSpec, random):
    time, numbers = trial
    time = np.unique(time)
    numbers = numbers[: len(time)]
    order = list(range(len(time)))
    random.shuffle(order)
    given_sorted = arranged_or_none(time, numbers, spec)
    shuffled = arranged_or_none(time[order], numbers[order], spec)
    assert (given_sorted is None) == (shuffled is None)
    if given_sorted is None or shuffled is None:
        return
    np.testing.assert_array_equal(shuffled.time, given_sorted.time)
    np.testing.assert_array_equal(shuffled.numbers, given_sorted.numbers)
    np.testing.assert_array_equal(shuffled.starts, given_sorted.starts)
    back = np.where(shuffled.text_rows < 0, -1, np.array(order)[shuffled.text_rows])
    np.testing.assert_array_equal(back, given_sorted.text_rows)


@given(trials(), st.sampled_from(["first", "last", "mean"]))
def test_duplicates_against_a_loop(trial: tuple[Values, Values], duplicates: str):
    time, numbers = trial
    spec = TimeSpec.model_validate({"column": "t", "unsorted": "sort", "duplicates": duplicates})
    out = arrange_rows(time, numbers, spec)
    for row, moment in enumerate(sorted(set(time.tolist()))):
        same = [i for i, t in enumerate(time.tolist()) if t == moment]
        assert out.time[row] == moment
        assert out.text_rows[row] == (same[-1] if duplicates == "last" else same[0])
        if duplicates == "mean":
            np.testing.assert_allclose(out.numbers[row], slow_mean(numbers[same]), rtol=1e-12)
        else:
            np.testing.assert_array_equal(out.numbers[row], numbers[out.text_rows[row]])


@given(st.lists(moments, min_size=1, max_size=8))
def test_without_options_time_is_accepted_if_and_only_if_it_grows_strictly(time: list[float]):
    spec = TimeSpec(column="t")
    numbers = np.arange(2.0 * len(time)).reshape(-1, 2)
    pairs = list(itertools.pairwise(time))
    if all(a < b for a, b in pairs):
        out = arrange_rows(np.array(time), numbers, spec)
        np.testing.assert_array_equal(out.numbers, numbers)
        np.testing.assert_array_equal(out.text_rows, range(len(time)))
        assert (out.starts.tolist(), out.n_merged, out.n_inserted) == ([0], 0, 0)
        return
    with pytest.raises(RefusedError) as caught:
        arrange_rows(np.array(time), numbers, spec)
    backwards = any(a > b for a, b in pairs)
    assert caught.value.code == ("time_not_increasing" if backwards else "time_duplicate")
    assert caught.value.column == "t"


@given(st.lists(st.integers(0, 60), min_size=1, max_size=15, unique=True), st.integers(1, 9))
def test_segments_break_exactly_at_longer_gaps_whatever_the_unit(ticks: list[int], gap: int):
    ticks.sort()
    wanted = [0, *(i for i in range(1, len(ticks)) if ticks[i] - ticks[i - 1] > gap)]
    for scale, level in ((1.0, 0.0), (0.1, 0.0), (0.001, 1.7e9), (1 / 3, -5.0)):
        spec = TimeSpec.model_validate({"column": "t", "max_gap": gap * scale})
        time = level + np.array(ticks) * scale
        out = arrange_rows(time, np.empty((len(ticks), 0)), spec)
        assert out.starts.tolist() == wanted


# --- resampling -------------------------------------------------------------------------------


def slow_bin(moment: float, every: float) -> int:
    """Exact arithmetic on the decimal numbers a user wrote."""
    return math.floor(Fraction(repr(round(float(moment), 9))) / Fraction(repr(every)))


def slow_mean(rows: Values) -> list[float]:
    out = []
    for channel in rows.T.tolist():
        present = [v for v in channel if not math.isnan(v)]
        out.append(math.fsum(present) / len(present) if present else NAN)
    return out


def slow_last(rows: Values) -> list[float]:
    return [next((v for v in c[::-1] if not math.isnan(v)), NAN) for c in rows.T.tolist()]


@given(trials(), st.sampled_from(["mean", "last"]), everies, st.sampled_from([None, 0.1, 2.0, 9.0]))
def test_bins_against_a_loop(
    trial: tuple[Values, Values], method: str, every: float, max_gap: float | None
):
    time, numbers = np.unique(np.round(trial[0], 3)), trial[1]
    numbers = numbers[: len(time)]
    spec = TimeSpec.model_validate(
        {"column": "t", "max_gap": max_gap, "resample": resampled(every, method)}
    )
    out = arrange_rows(time, numbers, spec)
    rows_of: dict[int, list[int]] = {}
    for row, moment in enumerate(time.tolist()):
        rows_of.setdefault(slow_bin(moment, every), []).append(row)
    # The reference walks bins in order: rows in a bin, or an empty bin inside a segment.
    bins: list[int] = []
    starts: list[int] = []
    current = -1
    for k, rows in rows_of.items():
        before, current = current, segment_of(time, rows[0], max_gap)
        if before == current:
            bins += range(bins[-1] + 1, k)
        else:
            starts.append(len(bins))
        bins.append(k)
    np.testing.assert_allclose(out.time, np.array(bins) * every, rtol=1e-12, atol=1e-12)
    assert out.starts.tolist() == starts
    slow = slow_mean if method == "mean" else slow_last
    for place, k in enumerate(bins):
        rows = rows_of.get(k, [])
        wanted = slow(numbers[rows]) if rows else [NAN] * numbers.shape[1]
        np.testing.assert_allclose(out.numbers[place], wanted, rtol=1e-9, atol=1e-9)
        assert out.text_rows[place] == (rows[-1] if rows else -1)


def segment_of(time: Values, row: int, max_gap: float | None) -> int:
    if max_gap is None:
        return 0
    return sum(b - a > max_gap + 1e-6 for a, b in itertools.pairwise(time[: row + 1].tolist()))


@given(trials(), everies, st.sampled_from([None, 0.5, 2.0]))
def test_interpolation_against_a_loop(
    trial: tuple[Values, Values], every: float, max_gap: float | None
):
    time, numbers = np.unique(np.round(trial[0], 3)), trial[1]
    numbers = numbers[: len(time)]
    spec = TimeSpec.model_validate(
        {"column": "t", "max_gap": max_gap, "resample": resampled(every, "interpolate")}
    )
    out = arranged_or_none(time, numbers, spec)
    grid: list[float] = []
    wanted: list[list[float]] = []
    starts: list[int] = []
    whole = arrange_rows(time, numbers, spec.model_copy(update={"resample": None}))
    for a, b in itertools.pairwise([*whole.starts.tolist(), len(time)]):
        first = -slow_bin(-time[a], every)
        last = slow_bin(time[b - 1], every)
        if first <= last:
            starts.append(len(grid))
        for k in range(first, last + 1):
            moment = float(Fraction(repr(every)) * k)
            grid.append(k * every)
            wanted.append([slow_at(time[a:b], c[a:b], moment) for c in numbers.T])
    if out is None:
        assert not grid
        return
    np.testing.assert_allclose(out.time, grid, rtol=1e-12, atol=1e-12)
    assert out.starts.tolist() == starts
    wanted_values = np.array(wanted).reshape(len(grid), numbers.shape[1])
    # At 1.7e9 a moment is known to 2e-7, and lines are as steep as 2e9.
    np.testing.assert_allclose(out.numbers, wanted_values, rtol=1e-9, atol=1e-3)


def slow_at(time: Values, values: Values, moment: float) -> float:
    known = [
        (round(t, 9), v) for t, v in zip(time.tolist(), values.tolist(), strict=True) if v == v
    ]
    slack = 1e-6
    before = [(t, v) for t, v in known if t <= moment + slack]
    after = [(t, v) for t, v in known if t >= moment - slack]
    if not before or not after:
        return NAN
    (t0, v0), (t1, v1) = before[-1], after[0]
    return v0 if t1 <= t0 else v0 + (v1 - v0) * (moment - t0) / (t1 - t0)


@given(
    st.lists(st.integers(-500, 500), min_size=2, max_size=20, unique=True),
    st.floats(-100, 100, allow_subnormal=False),
    st.floats(-1e6, 1e6, allow_subnormal=False),
    everies,
    st.sampled_from([0.0, 1.7e9]),
)
def test_interpolation_of_a_line_is_exact(
    ticks: list[int], slope: float, level: float, every: float, origin: float
):
    time = origin + np.sort(ticks) * 0.1
    line = (level + slope * (time - origin))[:, None]
    spec = TimeSpec(column="t", resample=resampled(every, "interpolate"))
    out = arranged_or_none(time, line, spec)
    assume(out is not None)
    scale = abs(level) + abs(slope) * 100
    np.testing.assert_allclose(
        out.numbers[:, 0],
        level + slope * (out.time - origin),
        rtol=1e-9,
        atol=1e-9 * scale + abs(slope) * 1e-6 + 1e-300,
    )
    assert not np.isnan(out.numbers).any()


@given(
    st.integers(-(10**6), 10**6),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.02, 0.001, 1 / 3, 7.0]),
    st.sampled_from(["mean", "last", "interpolate"]),
)
@example(3, 1, 0.1, "mean")
@example(1, 3, 0.1, "interpolate")
def test_rows_that_lie_on_the_grid_stay_as_they_are(k: int, n_rows: int, every: float, method: str):
    ticks = np.arange(k, k + n_rows)
    for time in (ticks * every, ticks / (1 / every), np.round(ticks * every, 12)):
        numbers = np.random.default_rng(n_rows).normal(size=(n_rows, 2))
        out = arrange_rows(time, numbers, TimeSpec(column="t", resample=resampled(every, method)))
        np.testing.assert_array_equal(out.numbers, numbers)
        np.testing.assert_array_equal(out.text_rows, range(n_rows))
        assert (out.n_merged, out.n_inserted) == (0, 0)


@given(trials(), everies, st.sampled_from(["mean", "last"]), st.sampled_from([0.1, 1.0, 4.0]))
def test_a_gap_decides_on_rows_but_never_on_a_value(
    trial: tuple[Values, Values], every: float, method: str, max_gap: float
):
    time, numbers = np.unique(trial[0]), trial[1]
    numbers = numbers[: len(time)]
    spec = TimeSpec(column="t", resample=resampled(every, method))
    whole = arrange_rows(time, numbers, spec)
    cut = TimeSpec.model_validate(spec.model_dump(exclude_none=True) | {"max_gap": max_gap})
    parts = arrange_rows(time, numbers, cut)
    kept = np.isin(whole.time, parts.time)
    np.testing.assert_array_equal(whole.numbers[kept], parts.numbers)
    np.testing.assert_array_equal(whole.text_rows[kept], parts.text_rows)
    assert (whole.text_rows[~kept] == -1).all()


@given(trials(), specs("mean"))
def test_resampled_segments_have_the_clock_they_were_asked_for(
    trial: tuple[Values, Values], spec: TimeSpec
):
    assert spec.resample is not None
    every = spec.resample.every.amount
    out = arrange_rows(np.abs(trial[0]), trial[1], spec)
    edges = np.append(out.starts, len(out.time))
    slack = 2 * np.spacing(np.abs(out.time).max())
    wanted = np.where(np.diff(edges) > 1, every, 0.0)
    np.testing.assert_allclose(regular_step(out.time, edges), wanted, rtol=1e-12, atol=slack)


# --- parts ------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(1, 15), st.integers(0, 3))),
    st.data(),
    st.booleans(),
)
def test_since_observed_against_a_loop(observed, data: st.DataObject, timed: bool):
    n_rows = len(observed)
    breaks = data.draw(st.sets(st.integers(1, max(1, n_rows - 1))))
    starts = np.array(sorted({0, *(b for b in breaks if b < n_rows)}))
    steps = data.draw(st.lists(st.floats(0.01, 50), min_size=n_rows, max_size=n_rows))
    time = np.cumsum(steps) if timed else None
    clock = np.arange(n_rows, dtype=float) if time is None else time
    wanted = np.zeros(observed.shape)
    for channel in range(observed.shape[1]):
        for row in range(n_rows):
            if row in starts:
                since = clock[row]
            if observed[row, channel]:
                since = clock[row]
            wanted[row, channel] = clock[row] - since
    np.testing.assert_array_equal(since_observed(observed, time, starts), wanted)


@given(
    st.lists(st.datetimes(datetime(1950, 1, 1), datetime(2037, 12, 31)), min_size=1, max_size=6),
    st.sampled_from([None, "UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"]),
)
def test_calendar_parts_are_those_of_python(dates: list[datetime], zone: str | None):
    dates = [date.replace(tzinfo=UTC) for date in dates]
    time = np.array([date.timestamp() for date in dates])
    local = [date.astimezone(ZoneInfo(zone or "UTC")) for date in dates]
    wanted = {
        "minute": [d.minute for d in local],
        "hour": [d.hour for d in local],
        "weekday": [d.weekday() for d in local],
        "day": [d.day for d in local],
        "month": [d.month for d in local],
        "yearday": [d.timetuple().tm_yday for d in local],
    }
    for part, numbers in wanted.items():
        np.testing.assert_array_equal(calendar_part(time, part, "number", zone), numbers)
        sin, cos = (calendar_part(time, part, form, zone) for form in ("sin", "cos"))
        np.testing.assert_allclose(sin**2 + cos**2, 1)


# --- texts ------------------------------------------------------------------------------------

offsets = st.one_of(st.none(), st.integers(-14 * 60, 14 * 60))


@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), offsets),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["T", " "]),
    st.sampled_from(["auto", "seconds", "minutes", "milliseconds"]),
)
def test_iso_dates_are_those_of_python(rows, separator: str, timespec: str):
    texts, wanted = [], []
    for date, minutes in rows:
        zone = None if minutes is None else timezone(timedelta(minutes=minutes))
        text = date.replace(tzinfo=zone).isoformat(separator, timespec)
        back = datetime.fromisoformat(text)
        since = back.replace(tzinfo=back.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        texts.append(text)
        wanted.append(since / timedelta(seconds=1))
    got = parse_time(pl.Series(texts), TimeSpec(column="t", format="iso"))
    np.testing.assert_allclose(got, wanted, rtol=3e-16, atol=0)


@given(
    st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2037, 12, 30)), min_size=1, max_size=8),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.booleans(),
)
def test_dates_in_a_zone_come_back_or_are_refused(
    dates: list[datetime], zone: str, by_pattern: bool
):
    def is_clear(date: datetime) -> bool:
        folds = [date.replace(tzinfo=ZoneInfo(zone), fold=fold).utcoffset() for fold in (0, 1)]
        return folds[0] == folds[1]

    pattern = "%Y/%m/%d %H:%M:%S.%f" if by_pattern else "iso"
    texts = [
        date.strftime("%Y/%m/%d %H:%M:%S.%f") if by_pattern else date.isoformat() for date in dates
    ]
    spec = TimeSpec(column="t", format=pattern, zone=zone)
    unclear = [row for row, date in enumerate(dates) if not is_clear(date)]
    if unclear:
        with pytest.raises(RefusedError, match=rf"row {unclear[0] + 1}: .*daylight") as caught:
            parse_time(pl.Series(texts), spec)
        assert caught.value.code == "time_unreadable"
        return
    wanted = [date.replace(tzinfo=ZoneInfo(zone)).timestamp() for date in dates]
    np.testing.assert_allclose(parse_time(pl.Series(texts), spec), wanted, rtol=3e-16, atol=1e-6)


@given(st.lists(st.text("0123456789-:T. Z+", max_size=12), min_size=1, max_size=6), st.data())
def test_no_text_is_read_that_a_strict_reader_refuses(texts: list[str], data: st.DataObject):
    """Cut and garbled dates never become another moment; the first bad row is named."""
    good = "2024-03-01T10:30:05.25+01:00"
    cut = data.draw(st.integers(1, len(good)))
    texts = [good, *texts, good[:cut]]
    valid = {good, *(good[:n] for n in (10, 16, 19, 21, 22, 25, 28))}
    stripped = [text.strip(" \t") for text in texts]
    assume(all(text in valid or not text or not strict(text) for text in stripped))
    bad = [row for row, text in enumerate(stripped) if text not in valid]
    missing = [row for row, text in enumerate(stripped) if not text]
    spec = TimeSpec(column="t", format="iso")
    if not bad:
        parse_time(pl.Series(texts), spec)
        return
    row = (missing or bad)[0]
    with pytest.raises(RefusedError, match=rf"row {row + 1}\b") as caught:
        parse_time(pl.Series(texts), spec)
    assert caught.value.code == ("time_missing" if missing else "time_unreadable")


def strict(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59)), max_size=9)
)
def test_clocks_are_seconds(rows: list[tuple[int, int, int]]):
    texts = [f"{h}:{m:02d}:{s:02d}" if s else f"{h:02d}:{m:02d}" for h, m, s in rows]
    got = parse_time(
        pl.Series(texts, dtype=pl.String),
        TimeSpec.model_validate({"column": "t", "format": "clock"}),
    )
    assert got.tolist() == [h * 3600 + m * 60 + s for h, m, s in rows]
