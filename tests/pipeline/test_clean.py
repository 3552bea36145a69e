"""Cleaning, against loops that fill one channel at a time and against polars."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.clean import check_time, clean_values
from pipeline.sections import CleanSpec
from pipeline.trials import RefusedError

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

specs = st.builds(
    CleanSpec,
    missing=st.sampled_from(["interpolate", "ffill", "constant", "drop", "none"]),
    limit=limits,
    then=st.sampled_from(["mask", "constant", "drop", "refuse"]),
    value=st.sampled_from([0.0, 3.25]),
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


@given(tables, specs, st.data())
def test_a_channel_is_filled_without_the_others(
    values: Values, spec: CleanSpec, data: st.DataObject
):
    assume(spec.missing != "drop" and spec.then in ("mask", "constant"))
    channel = data.draw(st.integers(0, values.shape[1] - 1))
    together, alone = clean_values(values, spec), clean_values(values[:, [channel]], spec)
    np.testing.assert_array_equal(together.values[:, [channel]], alone.values)


@given(tables, specs, st.integers(1, 3))
def test_rows_before_the_first_value_stay_missing(values: Values, spec: CleanSpec, n_rows: int):
    assume(spec.then == "mask" and spec.missing in ("interpolate", "ffill"))
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


# --- time -------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=8))
def test_time_is_accepted_if_and_only_if_it_grows_strictly(time: list[float]):
    grows = all(a < b for a, b in itertools.pairwise(time))
    if grows:
        check_time(np.array(time), "t")
        return
    with pytest.raises(RefusedError) as caught:
        check_time(np.array(time), "t")
    assert (caught.value.code, caught.value.column) == ("time_not_increasing", "t")


@pytest.mark.parametrize(
    ("time", "code", "row"),
    [
        ([0, 1, NAN, 3], "time_missing", "row 3"),
        ([NAN], "time_missing", "row 1"),
        ([0, math.inf], "time_missing", "row 2"),
        ([0, 1, 1, 2], "time_not_increasing", "row 3"),
        ([0, 2, 1], "time_not_increasing", "from 2 to 1 at row 3"),
    ],
)
def test_a_bad_time_names_its_row(time: list[float], code: str, row: str):
    with pytest.raises(RefusedError, match=row) as caught:
        check_time(np.array(time, np.float64), "t")
    assert caught.value.code == code
