"""Cleaning, against loops that fill one channel at a time and against polars."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.clean import Cleaned, clean_segments, clean_values, clip_outliers
from pipeline.files import RefusedError
from pipeline.sections import CleanSpec, OutlierSpec

Values = npt.NDArray[np.float64]
NAN = math.nan

cells = st.one_of(st.just(NAN), st.floats(-1e9, 1e9, allow_subnormal=False))
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=cells)
limits = st.one_of(st.none(), st.integers(1, 6))


def column(*values: float) -> Values:
    return np.array(values)[:, None]


def close(got: Values, wanted: Values) -> None:
    """Interpolated values may differ in the last digits of their neighbours."""
    level = max(1.0, float(np.nanmax(np.abs(wanted), initial=0.0)))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * level)


# --- references: loops over one channel -------------------------------------------------------


def slow_interpolate(values: list[float], limit: int | None) -> list[float]:
    out = list(values)
    known = [i for i, v in enumerate(values) if not math.isnan(v)]
    for a, b in itertools.pairwise(known):
        if limit is None or b - a - 1 <= limit:
            for i in range(a + 1, b):
                out[i] = values[a] + (values[b] - values[a]) * (i - a) / (b - a)
    return out


def slow_forward(values: list[float], limit: int | None) -> list[float]:
    out, last, age = [], NAN, 0
    for value in values:
        last, age = (value, 0) if not math.isnan(value) else (last, age + 1)
        out.append(last if limit is None or age <= limit else NAN)
    return out


def by_channel(values: Values, fill, limit: int | None) -> Values:
    return np.array([fill(c.tolist(), limit) for c in values.T]).T


# --- filling ----------------------------------------------------------------------------------


@given(tables, limits)
def test_interpolation_fills_inner_gaps_up_to_the_limit_and_no_edges(
    values: Values, limit: int | None
):
    cleaned = clean_values(values, CleanSpec(missing="interpolate", limit=limit))
    wanted = by_channel(values, slow_interpolate, limit)
    np.testing.assert_array_equal(np.isnan(cleaned.values), np.isnan(wanted))
    close(cleaned.values, wanted)
    seen = ~np.isnan(values)
    before_first = ~np.logical_or.accumulate(seen, axis=0)
    behind_last = ~np.logical_or.accumulate(seen[::-1], axis=0)[::-1]
    assert np.isnan(cleaned.values[before_first | behind_last]).all()


@given(tables)
def test_interpolation_without_a_limit_is_that_of_polars(values: Values):
    cleaned = clean_values(values, CleanSpec(missing="interpolate"))
    frame = pl.DataFrame(values).select(pl.all().fill_nan(None).interpolate().fill_null(NAN))
    np.testing.assert_array_equal(np.isnan(cleaned.values), np.isnan(frame.to_numpy()))
    close(cleaned.values, frame.to_numpy())


@given(tables)
def test_interpolated_values_lie_between_their_neighbours(values: Values):
    out = clean_values(values, CleanSpec(missing="interpolate")).values
    for channel, filled in zip(values.T, out.T, strict=True):
        known = np.flatnonzero(~np.isnan(channel))
        for a, b in itertools.pairwise(known):
            low, high = sorted((channel[a], channel[b]))
            slack = 1e-12 * max(abs(low), abs(high))
            assert (filled[a:b] >= low - slack).all()
            assert (filled[a:b] <= high + slack).all()


@given(tables, limits)
def test_forward_fill_carries_each_value_over_at_most_limit_rows(values: Values, limit: int | None):
    cleaned = clean_values(values, CleanSpec(missing="ffill", limit=limit))
    np.testing.assert_array_equal(cleaned.values, by_channel(values, slow_forward, limit))
    frame = pl.DataFrame(values).select(pl.all().fill_nan(None).forward_fill(limit).fill_null(NAN))
    np.testing.assert_array_equal(cleaned.values, frame.to_numpy())


@given(tables, st.integers(1, 4), st.data())
def test_forward_fill_never_looks_ahead(values: Values, limit: int, data: st.DataObject):
    cut = data.draw(st.integers(1, len(values)))
    spec = CleanSpec(missing="ffill", limit=limit)
    whole, head = clean_values(values, spec), clean_values(values[:cut], spec)
    np.testing.assert_array_equal(whole.values[:cut], head.values)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"missing": "interpolate"}, [NAN, 1, 2, 3, 4, 5, 6, 7, NAN]),
        ({"missing": "interpolate", "limit": 2}, [NAN, 1, 2, 3, NAN, NAN, NAN, 7, NAN]),
        ({"missing": "interpolate", "limit": 3}, [NAN, 1, 2, 3, 4, 5, 6, 7, NAN]),
        ({"missing": "ffill", "limit": 2}, [NAN, 1, 1, 3, 3, 3, NAN, 7, 7]),
        ({"missing": "ffill"}, [NAN, 1, 1, 3, 3, 3, 3, 7, 7]),
        ({"missing": "constant", "value": -1}, [-1, 1, -1, 3, -1, -1, -1, 7, -1]),
        ({"missing": "none"}, [NAN, 1, NAN, 3, NAN, NAN, NAN, 7, NAN]),
        ({"missing": "drop"}, [1, 3, 7]),
        ({"missing": "interpolate", "then": "drop"}, [1, 2, 3, 4, 5, 6, 7]),
        ({"missing": "ffill", "limit": 1, "then": "drop"}, [1, 1, 3, 3, 7, 7]),
        (
            {"missing": "ffill", "limit": 1, "then": "constant", "value": 9},
            [9, 1, 1, 3, 3, 9, 9, 7, 7],
        ),
    ],
)
def test_one_channel_by_hand(spec: dict[str, object], wanted: list[float]):
    values = column(NAN, 1, NAN, 3, NAN, NAN, NAN, 7, NAN)
    cleaned = clean_values(values, CleanSpec.model_validate(spec))
    np.testing.assert_array_equal(cleaned.values, column(*wanted))


@given(tables, st.sampled_from([0.0, -7.5]))
def test_a_constant_fills_everything(values: Values, constant: float):
    for spec in ({"missing": "constant"}, {"then": "constant"}):
        cleaned = clean_values(values, CleanSpec.model_validate(spec | {"value": constant}))
        np.testing.assert_array_equal(cleaned.values, np.where(np.isnan(values), constant, values))


# --- what holds for every specification -------------------------------------------------------


def specs_of(missing: list[str], then: list[str]) -> st.SearchStrategy[CleanSpec]:
    return st.builds(
        CleanSpec,
        missing=st.sampled_from(missing),
        limit=limits,
        then=st.sampled_from(then),
        value=st.sampled_from([0.0, 3.25]),
    )


specs = specs_of(
    ["interpolate", "ffill", "constant", "drop", "none"], ["mask", "constant", "drop", "refuse"]
)


@given(tables, specs)
def test_present_values_never_change_and_observed_says_which_they_are(
    values: Values, spec: CleanSpec
):
    before = values.copy()
    try:
        cleaned = clean_values(values, spec)
    except RefusedError:
        assert np.isnan(values).any()
        assert spec.then in ("refuse", "drop") or spec.missing == "drop"
        return
    np.testing.assert_array_equal(values, before)
    assert cleaned.keep.shape == (len(values),)
    assert len(cleaned.values) == len(cleaned.observed) == cleaned.keep.sum() > 0
    np.testing.assert_array_equal(cleaned.observed, ~np.isnan(values[cleaned.keep]))
    present = cleaned.observed
    np.testing.assert_array_equal(cleaned.values[present], values[cleaned.keep][present])
    if spec.then != "mask":
        assert not np.isnan(cleaned.values).any()
    if spec.missing != "drop" and spec.then != "drop":
        assert cleaned.keep.all()


@given(
    tables,
    specs_of(["interpolate", "ffill", "constant", "none"], ["mask", "constant"]),
    st.data(),
)
def test_a_channel_is_filled_without_the_others(
    values: Values, spec: CleanSpec, data: st.DataObject
):
    channel = data.draw(st.integers(0, values.shape[1] - 1))
    together, alone = clean_values(values, spec), clean_values(values[:, [channel]], spec)
    np.testing.assert_array_equal(together.values[:, [channel]], alone.values)


@given(tables, specs_of(["interpolate", "ffill"], ["mask"]), st.integers(1, 3))
def test_rows_before_the_first_value_stay_missing(values: Values, spec: CleanSpec, n_rows: int):
    gap = np.full((n_rows, values.shape[1]), NAN)
    cleaned = clean_values(np.concatenate([gap, values]), spec)
    assert np.isnan(cleaned.values[:n_rows]).all()


# --- dropping and refusing --------------------------------------------------------------------


@given(tables)
def test_drop_keeps_the_complete_rows(values: Values):
    complete = ~np.isnan(values).any(axis=1)
    if not complete.any():
        with pytest.raises(RefusedError) as caught:
            clean_values(values, CleanSpec(missing="drop"))
        assert caught.value.code == "no_rows_left"
        return
    for spec in (CleanSpec(missing="drop"), CleanSpec(then="drop")):
        cleaned = clean_values(values, spec)
        np.testing.assert_array_equal(cleaned.keep, complete)
        np.testing.assert_array_equal(cleaned.values, values[complete])


def test_refuse_names_the_first_cell_that_is_left():
    values = np.array([[1.0, 2.0], [NAN, 3.0], [4.0, NAN], [5.0, NAN]])
    with pytest.raises(RefusedError, match="row 3, channel 2") as caught:
        clean_values(values, CleanSpec(missing="interpolate", then="refuse"))
    assert caught.value.code == "still_missing"
    with pytest.raises(RefusedError, match="row 2, channel 1"):
        clean_values(values, CleanSpec(then="refuse"))
    filled = clean_values(values[:2], CleanSpec(missing="ffill", then="refuse")).values
    np.testing.assert_array_equal(filled, [[1, 2], [1, 3]])


@pytest.mark.parametrize(
    ("missing", "allowed", "refused"),
    [(0, 0.0, False), (1, 0.0, True), (5, 0.5, False), (6, 0.5, True), (10, 1.0, False)],
)
def test_a_trial_that_misses_more_than_allowed_is_refused(
    missing: int, allowed: float, refused: bool
):
    values = np.arange(10.0).reshape(5, 2)
    values.flat[:missing] = NAN
    spec = CleanSpec(missing="constant", drop_trial_if_missing=allowed)
    if not refused:
        assert clean_values(values, spec).observed.sum() == 10 - missing
        return
    with pytest.raises(RefusedError, match=rf"{missing / 10:.1%}.*drop_trial_if_missing") as caught:
        clean_values(values, spec)
    assert caught.value.code == "too_many_missing"


@pytest.mark.parametrize(
    ("then", "observed", "stored"),
    [
        ("mask", None, True),
        ("constant", None, False),
        ("drop", None, False),
        ("mask", False, False),
        ("refuse", True, True),
    ],
)
def test_observed_is_stored_when_values_may_be_masked_or_by_wish(
    then: str, observed: bool | None, stored: bool
):
    spec = CleanSpec.model_validate({"then": then, "observed": observed})
    assert spec.stores_observed() is stored


# --- segments ---------------------------------------------------------------------------------


@st.composite
def segmented(draw: st.DrawFn) -> tuple[Values, npt.NDArray[np.int64]]:
    values = draw(tables)
    breaks = draw(st.sets(st.integers(1, 11)))
    return values, np.array([0, *sorted(b for b in breaks if b < len(values))])


@given(segmented(), specs)
def test_segments_are_cleaned_as_if_each_were_alone(trial, spec: CleanSpec):
    values, starts = trial
    alone = [clean_or_none(part, spec) for part in np.split(values, starts[1:])]
    together = clean_or_none(values, spec, starts)
    left = [part for part in alone if part is not None]
    if spec.then == "refuse" and spec.missing != "drop":
        assert (together is None) == (len(left) < len(alone))
    else:  # a segment may only lose all its rows, and then it is gone
        assert (together is None) == (not left)
    if together is None:
        return
    for name in ("values", "observed"):
        parts = np.concatenate([getattr(part, name) for part in left])
        np.testing.assert_array_equal(getattr(together, name), parts)
    n_rows = [len(part.values) for part in left]
    assert together.starts.tolist() == [0, *np.cumsum(n_rows)[:-1]]
    assert together.starts.dtype == np.int64
    kept = [
        np.zeros(size, np.bool_) if part is None else part.keep
        for part, size in zip(alone, np.diff([*starts, len(values)]), strict=True)
    ]
    np.testing.assert_array_equal(together.keep, np.concatenate(kept))


def clean_or_none(values: Values, spec: CleanSpec, starts=None) -> Cleaned | None:
    try:
        if starts is None:
            return clean_values(values, spec)
        return clean_segments(values, starts, spec)
    except RefusedError:
        return None


@pytest.mark.parametrize(
    ("missing", "wanted"),
    [
        ("interpolate", [1, 2, 3, NAN, NAN, 5, NAN, NAN]),
        ("ffill", [1, 1, 3, 3, NAN, 5, 5, NAN]),
    ],
)
def test_no_value_crosses_a_gap(missing: str, wanted: list[float]):
    values = column(1, NAN, 3, NAN, NAN, 5, NAN, NAN)
    spec = CleanSpec.model_validate({"missing": missing})
    cleaned = clean_segments(values, np.array([0, 4, 7]), spec)
    np.testing.assert_array_equal(cleaned.values, column(*wanted))
    assert cleaned.starts.tolist() == [0, 4, 7]


def test_the_share_of_missing_values_is_that_of_the_trial():
    values = column(1, 2, 3, NAN)
    spec = CleanSpec(drop_trial_if_missing=0.25)
    assert clean_segments(values, np.array([0, 3]), spec).starts.tolist() == [0, 3]
    with pytest.raises(RefusedError, match=r"50\.0%"):
        clean_segments(column(NAN, 2, 3, NAN), np.array([0, 3]), spec)


def test_a_segment_without_rows_is_gone():
    values = column(NAN, NAN, 3, NAN, 5, NAN)
    cleaned = clean_segments(values, np.array([0, 2, 5]), CleanSpec(missing="drop"))
    assert (cleaned.values.tolist(), cleaned.starts.tolist()) == ([[3], [5]], [0])
    with pytest.raises(RefusedError) as caught:
        clean_segments(column(NAN, NAN), np.array([0, 1]), CleanSpec(then="drop"))
    assert caught.value.code == "no_rows_left"
    with pytest.raises(RefusedError) as caught:
        clean_values(np.empty((0, 2)), CleanSpec())
    assert caught.value.code == "no_rows_left"


def test_what_misses_nothing_is_not_copied():
    values = np.arange(6.0).reshape(3, 2)
    for spec in (CleanSpec(), CleanSpec(missing="ffill"), CleanSpec(missing="drop", then="drop")):
        cleaned = clean_values(values, spec)
        assert cleaned.values is values
        assert cleaned.observed.all()
        assert cleaned.keep.all()


# --- outliers ---------------------------------------------------------------------------------

thens = st.sampled_from(["clip", "missing"])


def slow_median(values: list[float]) -> float:
    return statistics.median(values) if values else NAN


@given(
    tables,
    st.lists(st.tuples(st.floats(-1e3, 0), st.floats(0, 1e3)), min_size=4, max_size=4),
    st.one_of(st.none(), st.sampled_from([0.5, 1.0, 3.0])),
    thens,
)
def test_outliers_against_a_loop(values: Values, bounds, deviations: float | None, then: str):
    names = [f"c{i}" for i in range(values.shape[1])]
    limits = {"c0": (None, bounds[0][1]), "c1": (bounds[1][0], None), "c3": bounds[3]}
    spec = OutlierSpec.model_validate({"bounds": limits, "deviations": deviations, "then": then})
    before = values.copy()
    out, n_changed = clip_outliers(values, names, spec)
    np.testing.assert_array_equal(values, before)
    changed = 0
    for channel, name in enumerate(names):
        low, high = limits.get(name, (None, None))
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        possible = [v for v in values[:, channel].tolist() if low <= v <= high]
        middle = slow_median(possible)
        spread = slow_median([abs(v - middle) for v in possible])
        if deviations is not None and spread > 0:
            reach = deviations * 1.4826 * spread
            low, high = max(low, middle - reach), min(high, middle + reach)
        wanted = []
        for value in values[:, channel].tolist():
            beyond = value < low or value > high
            changed += beyond
            allowed = NAN if then == "missing" else max(low, min(high, value))
            wanted.append(allowed if beyond else value)
        np.testing.assert_allclose(out[:, channel], wanted, rtol=1e-9, atol=1e-9)
    assert n_changed == changed
    if not changed:
        assert out is values


@given(tables, thens)
def test_outliers_leave_missing_values_missing_and_bounds_hold(values: Values, then: str):
    names = [str(i) for i in range(values.shape[1])]
    spec = OutlierSpec.model_validate({"bounds": dict.fromkeys(names, (-1, 1)), "then": then})
    out, n_changed = clip_outliers(values, names, spec)
    beyond = np.abs(values) > 1
    assert n_changed == beyond.sum()
    np.testing.assert_array_equal(np.isnan(out), np.isnan(values) | (beyond & (then == "missing")))
    assert (np.abs(out[~np.isnan(out)]) <= 1).all()
    again, n_again = clip_outliers(out, names, spec)
    assert n_again == 0
    assert again is out


def test_a_channel_that_mostly_stands_still_has_no_outliers_by_deviation():
    spec = OutlierSpec(deviations=1)
    values = column(5, 5, 5, 9)
    assert clip_outliers(values, ["a"], spec) == (values, 0)
    nothing = np.full((3, 1), NAN)
    assert clip_outliers(nothing, ["a"], spec) == (nothing, 0)
    empty = np.empty((0, 1))
    assert clip_outliers(empty, ["a"], spec) == (empty, 0)


def test_impossible_values_have_no_say_in_the_median():
    values = column(9999, 9999, 9999, 9998, 1, 2, 3)
    spec = OutlierSpec(bounds={"a": (None, 100)}, deviations=3, then="missing")
    out, n_changed = clip_outliers(values, ["a"], spec)
    np.testing.assert_array_equal(out, column(NAN, NAN, NAN, NAN, 1, 2, 3))
    assert n_changed == 4
