"""Times as files write them, and rows that come out of order."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from pipeline.files import RefusedError
from pipeline.sections import TimeSpec
from pipeline.timeline import arrange_rows, calendar_part, check_format, parse_time, since_observed
from shards.errors import InvalidSpecError

Values = npt.NDArray[np.float64]
NAN = math.nan


def time_spec(**fields: Any) -> TimeSpec:
    return TimeSpec.model_validate({"column": "t", **fields})


def utc(*parts: int, micro: int = 0) -> float:
    return datetime(*parts, microsecond=micro, tzinfo=UTC).timestamp()  # type: ignore[misc]


def column(*values: float) -> Values:
    return np.array(values, np.float64)[:, None]


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "given", "seconds"),
    [
        (None, 1.5, 1.5),
        ("ns", 1_500_000_000, 1.5),
        ("us", 3, 3e-6),
        ("ms", 300, 0.3),
        ("s", -2, -2),
        ("min", 2.5, 150),
        ("h", 47.5, 171_000),
        ("d", 2, 172_800),
    ],
)
def test_numbers_are_seconds_once_the_unit_is_known(unit: str, given: float, seconds: float):
    spec = time_spec(unit=unit)
    assert parse_time(np.array([given]), spec).tolist() == [seconds]
    assert parse_time(pl.Series([str(given)]), spec).tolist() == [seconds]


@pytest.mark.parametrize(
    ("time", "unit", "row"),
    [
        ([0, 1, NAN, 3], None, "row 3"),
        ([NAN], "s", "row 1"),
        ([0, math.inf], None, "row 2"),
        ([0, 1, 1e308], "d", "row 3"),
    ],
)
def test_a_number_that_is_missing_names_its_row(time: list[float], unit: str | None, row: str):
    with pytest.raises(RefusedError, match=f"{row} has no time in column 't'") as caught:
        parse_time(np.array(time), time_spec(unit=unit))
    assert (caught.value.code, caught.value.column) == ("time_missing", "t")


def test_a_text_among_numbers_names_its_row():
    with pytest.raises(RefusedError, match=r"row 2: got 'x'; wanted a number") as caught:
        parse_time(pl.Series(["1", "x", None]), time_spec())
    assert caught.value.code == "time_unreadable"


def test_no_rows_have_no_times():
    for form in ("number", "iso", "clock", "%Y-%m-%d"):
        assert parse_time(np.empty(0), time_spec(format=form)).shape == (0,)
        assert parse_time(pl.Series([], dtype=pl.String), time_spec(format=form)).shape == (0,)
    out = arrange_rows(np.empty(0), np.empty((0, 2)), time_spec(resample={"every": 1}, max_gap=1))
    assert (len(out.time), out.starts.tolist(), out.n_merged, out.n_inserted) == (0, [0], 0, 0)


# --- ISO 8601 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2024-03-01", utc(2024, 3, 1)),
        ("2024-02-29 23:59:59", utc(2024, 2, 29, 23, 59, 59)),
        ("2024-03-01T10:00", utc(2024, 3, 1, 10)),
        ("2024-03-01T10:00:00.5", utc(2024, 3, 1, 10, micro=500_000)),
        ("2024-03-01T10:00:00,25", utc(2024, 3, 1, 10, micro=250_000)),
        ("2024-03-01T10:00:00.123456789Z", utc(2024, 3, 1, 10, micro=123_457)),
        ("2024-03-01T10:00:00Z", utc(2024, 3, 1, 10)),
        ("2024-03-01 10:00:00+02:00", utc(2024, 3, 1, 8)),
        ("2024-03-01 10:00:00 -0530", utc(2024, 3, 1, 15, 30)),
        ("2024-03-01T01:00+02", utc(2024, 2, 29, 23)),
        (" 2024-03-01\t", utc(2024, 3, 1)),
        ("1969-12-31T23:59:59.75", -0.25),
        ("0001-01-01", -62_135_596_800),
        ("9999-12-31T23:59:59", 253_402_300_799),
    ],
)
def test_iso_dates(text: str, wanted: float):
    got = parse_time(pl.Series([text]), time_spec(format="iso"))
    assert got[0] == pytest.approx(wanted, rel=0, abs=5e-7)


def test_iso_dates_of_many_shapes_lie_side_by_side():
    texts = ["2024-03-01", "2024-03-01T10:00Z", "2024-03-02", "2024-03-01T10:00+01:00"]
    got = parse_time(pl.Series(texts), time_spec(format="iso", zone="Europe/Berlin"))
    wanted = [utc(2024, 2, 29, 23), utc(2024, 3, 1, 10), utc(2024, 3, 1, 23), utc(2024, 3, 1, 9)]
    assert got.tolist() == wanted


@pytest.mark.parametrize(
    "text",
    [
        "2024-3-1",
        "2024-02-30",
        "2023-02-29",
        "2024-00-01",
        "2024-13-01",
        "2024-04-00",
        "2024-03-01T24:00",
        "2024-03-01T10",
        "2024-03-01T10:60",
        "2024-03-01T10:00:60",
        "2024-03-01T10:00:0",
        "2024-03-01T10:00:00.",
        "2024-03-01T10:00:00+2",
        "2024-03-01T10:00:00+24:00",
        "2024-03-01T10:00:00+01:60",
        "2024-03-01Z",
        "2024-03-01T",
        "20240301",
        "2024/03/01",
        "01.03.2024",
        "2024-03-01T10:00:00Zx",
        "x",
        "٢٠٢٤-03-01",
        "2024-03-01" + "0" * 10_000,
        "2024-03-01\x00",
    ],
)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_what_is_no_iso_date_names_its_row(text: str, before: int):
    texts = ["2024-03-01T10:00:00"] * before + [text, "2024-03-01", "y"]
    with pytest.raises(
        RefusedError, match=rf"'t', row {before + 1}: got .*; wanted an ISO"
    ) as caught:
        parse_time(pl.Series(texts), time_spec(format="iso"))
    assert (caught.value.code, caught.value.column) == ("time_unreadable", "t")
    assert len(str(caught.value)) < 150


def test_the_first_bad_row_is_named_whatever_its_shape():
    # Row 2 is a date that no calendar has; row 3 has a shape of its own.
    texts = ["2024-03-01", "2024-02-31", "yesterday", "2024-03-01T99:00"]
    with pytest.raises(RefusedError, match="row 2"):
        parse_time(pl.Series(texts), time_spec(format="iso"))
    with pytest.raises(RefusedError, match="row 2"):
        parse_time(pl.Series([texts[0], texts[2], texts[1]]), time_spec(format="iso"))


@pytest.mark.parametrize("form", ["iso", "clock", "%Y"])
@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_text_that_is_missing_names_its_row(form: str, missing: str | None):
    with pytest.raises(RefusedError, match="row 2 has no time in column 't'") as caught:
        parse_time(pl.Series(["x", missing]), time_spec(format=form))
    assert caught.value.code == "time_missing"


# --- zones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "text", "how"),
    [
        ("Europe/Berlin", "2024-03-31T02:30:00", "does not exist"),
        ("Europe/Berlin", "2024-10-27T02:30:00", "is ambiguous"),
        ("America/New_York", "2024-11-03T01:00:00", "is ambiguous"),
        ("Australia/Lord_Howe", "2024-10-06T02:15:00", "does not exist"),
    ],
)
@pytest.mark.parametrize("form", ["iso", "%Y-%m-%dT%H:%M:%S"])
def test_what_daylight_saving_blurs_is_refused(zone: str, text: str, how: str, form: str):
    spec = time_spec(format=form, zone=zone)
    texts = pl.Series(["2024-06-01T00:00:00", text])
    with pytest.raises(RefusedError, match=rf"row 2: {text} {how} in {zone}.*UTC") as caught:
        parse_time(texts, spec)
    assert (caught.value.code, caught.value.column) == ("time_unreadable", "t")
    parse_time(texts, time_spec(format=form))
    if form == "iso":
        parse_time(texts + "+02:00", spec)


def test_hours_around_a_change_of_clocks():
    texts = pl.Series(["2024-03-31 01:59:59", "2024-03-31 03:00:00", "2024-10-27 03:00:00"])
    got = parse_time(texts, time_spec(format="iso", zone="Europe/Berlin"))
    first = utc(2024, 3, 31, 0, 59, 59)
    assert got.tolist() == [first, first + 1, utc(2024, 10, 27, 2)]


# --- clocks and patterns ----------------------------------------------------------------------


def test_clocks():
    texts = pl.Series(["00:00", "0:07", "47:37", "47:37:05", "100:00:00.25", "1:02:03,5"])
    wanted = [0, 7 * 60, 171_420, 171_425, 360_000.25, 3723.5]
    assert parse_time(texts, time_spec(format="clock")).tolist() == wanted


@pytest.mark.parametrize(
    "text", ["47:60", "1:2", "12", "-1:00", "1:00:60", "1:00:", ":30", "1:00Z"]
)
def test_what_is_no_clock_names_its_row(text: str):
    with pytest.raises(RefusedError, match=r"row 2: got .*; wanted HH:MM or HH:MM:SS") as caught:
        parse_time(pl.Series(["1:00", text]), time_spec(format="clock"))
    assert caught.value.code == "time_unreadable"


@pytest.mark.parametrize(
    ("pattern", "text", "wanted"),
    [
        ("%d.%m.%Y %H:%M", "01.03.2024 10:30", utc(2024, 3, 1, 10, 30)),
        ("%d.%m.%Y", "01.03.2024", utc(2024, 3, 1)),
        ("%d/%m/%Y %H.%M.%S", "10/03/2004 18.00.00", utc(2004, 3, 10, 18)),
        ("%Y%m%d%H", "2024030110", utc(2024, 3, 1, 10)),
        ("%Y-%m-%d %H", "2024-03-01 10", utc(2024, 3, 1, 10)),
        ("%Y-%m", "2024-03", utc(2024, 3, 1)),
        ("%Y", "2024", utc(2024, 1, 1)),
        ("%Y %j", "2024 061", utc(2024, 3, 1)),
        ("%m/%d/%y %I:%M %p", "03/01/24 01:30 PM", utc(2024, 3, 1, 13, 30)),
        ("%d %b %Y %H:%M:%S", "01 Mar 2024 10:00:01", utc(2024, 3, 1, 10, 0, 1)),
        ("%Y-%m-%d %H:%M:%S.%f", "2024-03-01 10:00:00.5", utc(2024, 3, 1, 10, micro=500_000)),
        ("%Y-%m-%d %H:%M:%S%.f", "2024-03-01 10:00:00.5", utc(2024, 3, 1, 10, micro=500_000)),
        ("%Y%m%d%H%M%S%3f", "20240301100000250", utc(2024, 3, 1, 10, micro=250_000)),
        ("%Y-%m-%d %H:%M %z", "2024-03-01 10:00 +0200", utc(2024, 3, 1, 8)),
        ("%Y-%m-%d %H:%M UTC", "2024-03-01 10:00 UTC", utc(2024, 3, 1, 10)),
        ("%Y-%m-%d %H %M", "2024-03-01 10 05", utc(2024, 3, 1, 10, 5)),
        ("%F %T", "1969-12-31 23:59:59", -1.0),
    ],
)
def test_patterns(pattern: str, text: str, wanted: float):
    spec = time_spec(format=pattern)
    check_format(spec)
    assert parse_time(pl.Series([text, text]), spec).tolist() == [wanted, wanted]
    bad = f"x{text}"
    with pytest.raises(
        RefusedError, match=r"row 2: got .*; wanted a date by '.*', such as"
    ) as caught:
        parse_time(pl.Series([text, bad]), spec)
    assert caught.value.code == "time_unreadable"


def test_a_pattern_reads_numbers_as_they_are_written():
    got = parse_time(np.array([20240301.0, 20240302.0]), time_spec(format="%Y%m%d"))
    assert got.tolist() == [utc(2024, 3, 1), utc(2024, 3, 2)]
    with pytest.raises(RefusedError, match="row 2 has no time"):
        parse_time(np.array([20240301.0, NAN]), time_spec(format="%Y%m%d"))
    with pytest.raises(RefusedError, match=r"row 2: got '0.5'"):
        parse_time(np.array([20240301.0, 0.5]), time_spec(format="%Y%m%d"))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("%H:%M", "names no year"),
        ("%d.%m.", "names no year"),
        ("%Y-%m-%d %H:%M:%S,%f", "%3f, %6f or %9f"),
        ("%Y-%m-%d %H:%M %Z", "zones are not read"),
        ("%s", "unit: s"),
        ("%Y-%m-%d %Q", "format"),
        ("%Y-%m-%d %I:%M", "meridiem"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_before_any_file_is_read(pattern: str, why: str):
    with pytest.raises(InvalidSpecError, match=why):
        check_format(time_spec(format=pattern))


def test_columns_of_dates_need_no_reading():
    moments = [datetime(2024, 7, 1, 10, 0, 0, 250_000), datetime(1969, 12, 31, 23, 0)]
    for unit in ("ms", "us", "ns"):
        naive = pl.Series(moments).cast(pl.Datetime(unit))  # type: ignore[arg-type]
        for form in ("iso", "%Y"):
            wanted = [utc(2024, 7, 1, 10, micro=250_000), -3600.0]
            assert parse_time(naive, time_spec(format=form)).tolist() == wanted
        aware = naive.dt.replace_time_zone("Europe/Berlin")
        wanted = [utc(2024, 7, 1, 8, micro=250_000), -7200.0]
        for series in (naive, aware):
            spec = time_spec(format="iso", zone="Europe/Berlin")
            assert parse_time(series, spec).tolist() == wanted
    days = pl.Series([date(2024, 3, 1), None])
    assert parse_time(days[:1], time_spec(format="iso")).tolist() == [utc(2024, 3, 1)]
    with pytest.raises(RefusedError, match="row 2 has no time"):
        parse_time(days, time_spec(format="iso"))


# --- the order of rows ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "time", "code", "message"),
    [
        ({}, [0, 1, 1, 2], "time_duplicate", r"1 at row 2 and at row 3.*source.time.duplicates"),
        ({}, [0, 2, 1], "time_not_increasing", r"from 2 to 1 at row 3; .*unsorted: sort"),
        ({}, [5, 5, 4], "time_not_increasing", r"from 5 to 4 at row 3"),
        ({"unsorted": "sort"}, [3, 1, 2, 1], "time_duplicate", r"1 at row 2 and at row 4"),
        (
            {"format": "iso"},
            [1.7e9, 1.7e9 - 0.5],
            "time_not_increasing",
            r"from 2023-11-14T22:13:20Z to 2023-11-14T22:13:19.500000Z at row 2",
        ),
        ({"format": "clock"}, [171_420, 65], "time_not_increasing", "from 47:37:00 to 00:01:05"),
        ({"unit": "ms"}, [1.5, 0.25], "time_not_increasing", "from 1.5 s to 0.25 s"),
        ({}, [1.7e9 + 1, 1.7e9], "time_not_increasing", "from 1700000001 to 1700000000"),
    ],
)
def test_rows_out_of_order_are_named(
    fields: dict[str, Any], time: list[float], code: str, message: str
):
    with pytest.raises(RefusedError, match=message) as caught:
        arrange_rows(np.array(time, np.float64), column(*time), time_spec(**fields))
    assert (caught.value.code, caught.value.column) == (code, "t")


def test_duplicates_keep_or_merge_rows():
    time = np.array([2.0, 1, 2, 1, 0, 2])
    numbers = np.array([[1, NAN], [2, NAN], [3, 30], [NAN, NAN], [5, 50], [7, 70]])
    wanted = {
        "first": ([[5, 50], [2, NAN], [1, NAN]], [4, 1, 0]),
        "last": ([[5, 50], [NAN, NAN], [7, 70]], [4, 3, 5]),
        "mean": ([[5, 50], [2, NAN], [11 / 3, 50]], [4, 1, 0]),
    }
    for duplicates, (values, rows) in wanted.items():
        out = arrange_rows(time, numbers, time_spec(unsorted="sort", duplicates=duplicates))
        assert out.time.tolist() == [0, 1, 2]
        np.testing.assert_allclose(out.numbers, values, rtol=1e-15)
        assert out.text_rows.tolist() == rows
        assert (out.n_merged, out.n_inserted) == (3, 0)


def test_a_mean_costs_no_digits_of_the_spread():
    values = 1.7e9 + np.arange(1000) * 1e-3
    exact = 1.7e9 + 499.5e-3
    for spec in (time_spec(resample={"every": 1000}), time_spec(duplicates="mean")):
        time = np.arange(1000.0) if spec.resample else np.zeros(1000)
        out = arrange_rows(time, values[:, None], spec)
        assert out.numbers[0, 0] == pytest.approx(exact, rel=0, abs=3e-7)


# --- resampling -------------------------------------------------------------------------------


def test_resampling_by_hand():
    time = np.array([0.2, 0.9, 1.0, 4.5])
    numbers = np.array([[1, NAN], [3, 30], [5, NAN], [9, 90]])
    out = {
        method: arrange_rows(time, numbers, time_spec(resample={"every": 1, "method": method}))
        for method in ("mean", "last", "interpolate")
    }
    for method in ("mean", "last"):
        assert out[method].time.tolist() == [0, 1, 2, 3, 4]
        assert out[method].text_rows.tolist() == [1, 2, -1, -1, 3]
        assert (out[method].n_merged, out[method].n_inserted) == (1, 2)
    gap = [[NAN, NAN]] * 2
    np.testing.assert_allclose(out["mean"].numbers, [[2, 30], [5, NAN], *gap, [9, 90]])
    np.testing.assert_allclose(out["last"].numbers, [[3, 30], [5, NAN], *gap, [9, 90]])
    line = out["interpolate"]
    assert line.time.tolist() == [1, 2, 3, 4]
    assert line.text_rows.tolist() == [2, -1, -1, 3]
    assert (line.n_merged, line.n_inserted) == (2, 2)
    slope = (90 - 30) / (4.5 - 0.9)
    wanted = [[5 + (9 - 5) * (t - 1) / 3.5, 30 + slope * (t - 0.9)] for t in (1, 2, 3, 4)]
    np.testing.assert_allclose(line.numbers, wanted)


@pytest.mark.parametrize("method", ["mean", "last", "interpolate"])
def test_tenths_are_in_their_own_bin(method: str):
    assert 0.3 / 0.1 < 3  # why a tolerance is needed
    time = np.array([0.3, 0.6, 0.7, 1.1])
    out = arrange_rows(time, time[:, None], time_spec(resample={"every": 0.1, "method": method}))
    np.testing.assert_allclose(out.time, np.arange(3, 12) * 0.1)
    assert out.text_rows.tolist() == [0, -1, -1, 1, 2, -1, -1, -1, 3]
    assert out.numbers[[0, 3, 4, 8], 0].tolist() == time.tolist()


def test_dates_fall_on_whole_hours():
    texts = pl.Series(["2024-03-01 09:40:00.100", "2024-03-01 10:20", "2024-03-01 13:00"])
    spec = time_spec(format="iso", resample={"every": "1h"})
    out = arrange_rows(parse_time(texts, spec), column(1, 2, 3), spec)
    assert out.time.tolist() == [utc(2024, 3, 1, hour) for hour in (9, 10, 11, 12, 13)]
    np.testing.assert_array_equal(out.numbers, column(1, 2, NAN, NAN, 3))


def test_the_empty_bins_of_a_gap_are_in_no_segment():
    time = np.array([0.0, 1, 10, 11, 13])
    out = arrange_rows(time, column(*time), time_spec(max_gap=5, resample={"every": 1}))
    assert out.time.tolist() == [0, 1, 10, 11, 12, 13]
    assert out.starts.tolist() == [0, 2]
    assert (out.n_merged, out.n_inserted) == (0, 1)
    np.testing.assert_array_equal(out.numbers, column(0, 1, 10, 11, NAN, 13))


def test_a_bin_with_both_sides_of_a_gap_belongs_to_the_segment_before():
    time = np.array([0.0, 9, 15, 19, 21, 32, 38, 41])  # gaps within bin 1 and within bin 3
    spec = time_spec(max_gap=5.5, resample={"every": 10})
    out = arrange_rows(time, column(*time), spec)
    assert out.time.tolist() == [0, 10, 20, 30, 40]
    np.testing.assert_allclose(out.numbers, column(4.5, 17, 21, 35, 41))
    assert out.starts.tolist() == [0, 1, 3, 4]
    assert (out.n_merged, out.n_inserted) == (3, 0)


def test_segments_within_one_bin_are_one():
    time = np.array([1.0, 3, 5, 7])
    spec = time_spec(max_gap=1, resample={"every": 10, "method": "last"})
    out = arrange_rows(time, column(*time), spec)
    assert (out.time.tolist(), out.numbers.tolist(), out.starts.tolist()) == ([0], [[7]], [0])
    assert out.n_merged == 3


def test_interpolation_does_not_look_beyond_its_segment():
    time = np.array([0.5, 2.5, 10.5, 12.5])
    numbers = np.array([[0, NAN], [2, 1], [4, 2], [6, NAN]])
    spec = time_spec(max_gap=5, resample={"every": 1, "method": "interpolate"})
    out = arrange_rows(time, numbers, spec)
    assert out.time.tolist() == [1, 2, 11, 12]
    assert out.starts.tolist() == [0, 2]
    np.testing.assert_allclose(out.numbers[:, 0], [0.5, 1.5, 4.5, 5.5])
    assert np.isnan(out.numbers[:, 1]).all()


def test_a_segment_between_two_multiples_leaves_no_row_to_interpolate():
    spec = time_spec(max_gap=2, resample={"every": 1, "method": "interpolate"})
    time = np.array([0.0, 1, 5.2, 5.8, 9, 10])
    out = arrange_rows(time, column(*time), spec)
    assert (out.time.tolist(), out.starts.tolist()) == ([0, 1, 9, 10], [0, 2])
    assert (out.n_merged, out.n_inserted) == (2, 0)
    with pytest.raises(
        RefusedError, match=r"no multiple of source\.time\.resample\.every"
    ) as caught:
        arrange_rows(time[2:4], column(1, 2), spec)
    assert caught.value.code == "resample_no_rows"


def test_absurd_numbers_of_rows_are_refused_before_they_are_made():
    time = np.array([0.0, 1e9])
    with pytest.raises(RefusedError, match="makes 1,000,000,001 rows from 2") as caught:
        arrange_rows(time, column(1, 2), time_spec(resample={"every": 1}))
    assert caught.value.code == "too_many_rows"
    assert len(arrange_rows(time, column(1, 2), time_spec(resample={"every": 1e5})).time) == 10_001
    nanoseconds = np.array([1.7e18, 1.7e18 + 512])
    for method in ("mean", "interpolate"):
        spec = time_spec(resample={"every": 1, "method": method})
        with pytest.raises(RefusedError, match="unit") as caught:
            arrange_rows(nanoseconds, column(1, 2), spec)
        assert caught.value.code == "resample_too_fine"
    with pytest.raises(RefusedError):
        arrange_rows(np.array([-1e308, 1e308]), column(1, 2), time_spec(resample={"every": 1e-9}))


def test_many_rows_take_no_loop():
    rng = np.random.default_rng(0)
    time = np.cumsum(rng.exponential(1, 300_000)) + 1.7e9
    numbers = rng.normal(size=(len(time), 3))
    numbers[rng.random(numbers.shape) < 0.3] = NAN
    for method in ("mean", "last", "interpolate"):
        spec = time_spec(max_gap=8, resample={"every": 2, "method": method})
        out = arrange_rows(time, numbers, spec)
        assert len(out.starts) > 10
        assert len(time) == len(out.time) + out.n_merged - out.n_inserted


# --- parts ------------------------------------------------------------------------------------


def test_calendar_parts():
    time = np.array([utc(2024, 2, 29, 18, 30), utc(2023, 1, 1), utc(2024, 12, 31, 12)])
    wanted = {
        "minute": [30, 0, 0],
        "hour": [18, 0, 12],
        "weekday": [3, 6, 1],
        "day": [29, 1, 31],
        "month": [2, 1, 12],
        "yearday": [60, 1, 366],
    }
    for part, numbers in wanted.items():
        assert calendar_part(time, part, "number", None).tolist() == numbers
    assert calendar_part(time, "hour", "number", "Asia/Kathmandu").tolist() == [0, 5, 17]
    assert calendar_part(time, "day", "number", "Asia/Kathmandu").tolist() == [1, 1, 31]


@pytest.mark.parametrize(
    ("part", "begin", "half"),
    [
        ("minute", (2024, 3, 1, 7), (2024, 3, 1, 7, 30)),
        ("hour", (2024, 3, 1), (2024, 3, 1, 12)),
        ("weekday", (2024, 3, 4), (2024, 3, 7, 12)),
        ("day", (2024, 4, 1), (2024, 4, 16)),
        ("month", (2024, 1, 1), (2024, 7, 1)),
        ("yearday", (2023, 1, 1), (2023, 7, 2, 12)),
    ],
)
def test_cycles_begin_at_0_and_turn_at_half(part: str, begin: Any, half: Any):
    time = np.array([utc(*begin), utc(*half), utc(*begin) - 1e-3])
    sin, cos = (calendar_part(time, part, form, None) for form in ("sin", "cos"))
    np.testing.assert_allclose(sin, 0, atol=1e-5)
    np.testing.assert_allclose(cos, [1, -1, 1], atol=1e-5)


@pytest.mark.parametrize("part", ["minute", "hour", "weekday", "day", "month", "yearday"])
def test_cycles_have_no_steps(part: str):
    time = utc(2023, 1, 1) + np.arange(0, 400 * 86_400, 600.0)
    for form in ("sin", "cos"):
        curve = calendar_part(time, part, form, None)
        longest_step = 2 * np.pi * 600 / {"minute": 3600, "hour": 86_400}.get(part, 7 * 86_400)
        assert np.abs(np.diff(curve)).max() <= longest_step * 1.001


def test_an_hour_that_is_short_by_a_rounding_error_is_full():
    time = np.array([utc(2024, 3, 1, 10) - 2e-7, utc(2024, 3, 1) - 2e-7, -1e-12])
    assert calendar_part(time, "hour", "number", None).tolist() == [10, 0, 0]
    assert calendar_part(time, "day", "number", None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [NAN, math.inf, -1e12, 1.7e18])
def test_a_time_beyond_the_calendar_is_refused(bad: float):
    with pytest.raises(RefusedError, match=r"row 2: .*years 1 to 9999") as caught:
        calendar_part(np.array([0, bad]), "hour", "number", None)
    assert caught.value.code == "time_beyond_calendar"


def test_since_observed_by_hand():
    seen = np.array([[0, 1], [1, 0], [0, 0], [0, 0], [0, 1], [0, 0]], np.bool_)
    time = np.array([10.0, 12, 15, 20, 21, 25])
    starts = np.array([0, 3])
    wanted = [[0, 0], [0, 2], [3, 5], [0, 0], [1, 0], [5, 4]]
    assert since_observed(seen, time, starts).tolist() == wanted
    wanted = [[0, 0], [0, 1], [1, 2], [0, 0], [1, 0], [2, 1]]
    assert since_observed(seen, None, starts).tolist() == wanted
    assert since_observed(seen[:0], None, np.array([0])).shape == (0, 2)
