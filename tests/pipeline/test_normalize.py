"""Statistics of trials and of splits, against numpy over all rows at once and exact sums."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.normalize import (
    MOMENTS,
    Affine,
    affine_from_moments,
    affine_from_values,
    coarse_channels,
    identity_affine,
    measure_moments,
    merge_moments,
    trial_affine,
)

Values = npt.NDArray[np.float64]
NAN = math.nan

cells = st.one_of(st.just(NAN), st.floats(-1e6, 1e6).map(lambda value: round(value, 6)))
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 25), st.integers(1, 3)), elements=cells)


def own_affine(method: str, values: Values) -> Affine:
    return trial_affine([(method, "trial")] * values.shape[1], values)


def stack(trials: list[Values]) -> dict[str, Values]:
    rows = [measure_moments(trial) for trial in trials]
    return {name: np.stack([row[name] for row in rows]) for name in MOMENTS}


def cut(values: Values, places: list[int]) -> list[Values]:
    edges = [0, *sorted({p % len(values) for p in places} - {0}), len(values)]
    return [values[a:b] for a, b in itertools.pairwise(edges)]


def exact(values: Values) -> tuple[float, float]:
    """Return mean and population sd of one column by rational arithmetic."""
    present = [Fraction(v) for v in values.tolist() if not math.isnan(v)]
    mean = sum(present, Fraction(0)) / len(present)
    variance = sum(((v - mean) ** 2 for v in present), Fraction(0)) / len(present)
    return float(mean), math.sqrt(variance)


def close_to_exact(merged: dict[str, Values], values: Values, rtol: float = 1e-9) -> None:
    for channel, column in enumerate(values.T):
        if np.isnan(column).all():
            continue
        mean, sd = exact(column)
        level = float(np.nanmax(np.abs(column)))
        # A mean is as good as the spacing of its level; so is a spread, and relative to itself.
        assert abs(merged["mean"][channel] - mean) <= 8 * np.spacing(level), (mean, sd)
        assert abs(merged["sd"][channel] - sd) <= rtol * sd + 8 * np.spacing(level), (mean, sd)


# --- moments of one trial ---------------------------------------------------------------------


@given(tables)
def test_moments_describe_the_present_values(values: Values):
    moments = measure_moments(values)
    assert set(moments) == set(MOMENTS)
    present = ~np.isnan(values)
    np.testing.assert_array_equal(moments["count"], present.sum(axis=0))
    for channel, column in enumerate(values.T):
        seen = column[~np.isnan(column)]
        if not seen.size:
            assert moments["shift"][channel] == moments["sum"][channel] == 0
            assert np.isnan([moments["min"][channel], moments["max"][channel]]).all()
            continue
        assert moments["min"][channel] == seen.min()
        assert moments["max"][channel] == seen.max()
        shift = Fraction(float(moments["shift"][channel]))
        deviations = [Fraction(v) - shift for v in seen.tolist()]
        scale = max(1e-300, max(abs(float(d)) for d in deviations)) * len(seen)
        assert abs(float(sum(deviations)) - moments["sum"][channel]) <= 1e-15 * len(seen) * scale
        squares = float(sum(d * d for d in deviations))
        assert moments["sum_sq"][channel] == pytest.approx(squares, rel=1e-12, abs=1e-300)


def test_the_values_are_left_alone():
    values = np.array([[1.0, NAN], [2.0, 3.0]])
    before = values.copy()
    measure_moments(values)
    affine_from_values(values)
    np.testing.assert_array_equal(values, before)


# --- merging ----------------------------------------------------------------------------------


@given(tables, st.lists(st.integers(0, 24), max_size=6))
@example(np.array([[NAN], [1.0], [NAN], [3.0]]), [1, 2, 3])
@example(np.array([[1e6], [1e-6]]), [1])
def test_any_partition_has_the_statistics_of_all_rows(values: Values, places: list[int]):
    merged = merge_moments(stack(cut(values, places)))
    empty = np.isnan(values).all(axis=0)
    np.testing.assert_array_equal(merged["count"], (~np.isnan(values)).sum(axis=0))
    for name in ("mean", "sd"):
        assert (merged[name][empty] == 0).all()
    np.testing.assert_array_equal(np.isnan(merged["min"]), empty)
    np.testing.assert_array_equal(np.isnan(merged["max"]), empty)
    if empty.all():
        return
    rest = values[:, ~empty]
    level = np.nanmax(np.abs(rest), axis=0)
    np.testing.assert_array_equal(merged["min"][~empty], np.nanmin(rest, axis=0))
    np.testing.assert_array_equal(merged["max"][~empty], np.nanmax(rest, axis=0))
    slack = 1e-13 * level
    assert (np.abs(merged["mean"][~empty] - np.nanmean(rest, axis=0)) <= slack).all()
    assert (np.abs(merged["sd"][~empty] - np.nanstd(rest, axis=0)) <= slack).all()


@given(tables, st.lists(st.integers(0, 24), max_size=6))
def test_batching_changes_no_bit(values: Values, places: list[int]):
    """The same trials in id order, each alone in memory or a slice of a larger batch."""
    alone = [trial.copy() for trial in cut(values, places)]
    slices = cut(np.concatenate([values, values[::-1]])[: len(values)], places)
    again = merge_moments(stack(slices))
    for name, column in merge_moments(stack(alone)).items():
        assert column.tobytes() == again[name].tobytes(), name


@given(tables, st.lists(st.integers(0, 24), max_size=6))
def test_trials_without_values_change_nothing(values: Values, places: list[int]):
    trials = cut(values, places)
    nothing = np.full((3, values.shape[1]), NAN)
    wanted, got = merge_moments(stack(trials)), merge_moments(stack([nothing, *trials, nothing]))
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-14, atol=0)


# --- catastrophic levels ----------------------------------------------------------------------

RNG = np.random.default_rng(5)
LEVELS = {
    "1e9 with a spread of 1e-3": 1e9 + RNG.normal(0, 1e-3, 600),
    "4.5e6 with a spread of 1": 4.5e6 + RNG.normal(0, 1, 600),
    "1.7e9, seconds of a clock": 1.7e9 + np.arange(600) * 0.02,
    "-1e12 with a spread of 1": -1e12 + RNG.normal(0, 1, 600),
    "a 1e9 glitch first": np.concatenate([[1e9], RNG.normal(0, 1, 599)]),
    "a 1e9 glitch last": np.concatenate([RNG.normal(0, 1, 599), [1e9]]),
    "trials on levels 1e9 apart": np.repeat([0.0, 1e9, -1e9], 200) + RNG.normal(0, 1e-3, 600),
    "1e-9": RNG.normal(0, 1e-9, 600),
}


@pytest.mark.parametrize("places", [[], [1], [200, 400], list(range(0, 600, 7))], ids=len)
@pytest.mark.parametrize("level", LEVELS)
def test_levels_that_ruin_sums_of_squares(level: str, places: list[int]):
    values = LEVELS[level][:, None]
    close_to_exact(merge_moments(stack(cut(values, places))), values)


def test_a_glitch_in_the_first_row_does_not_spoil_a_long_trial():
    """Deviations from the first value would be 1e9 in each of the rows, and cancel badly."""
    calm = RNG.normal(0, 1, 200_000)
    for place in (0, 100_000, 200_000):
        values = np.insert(calm, place, 1e9)
        mean = math.fsum(values) / len(values)
        sd = math.sqrt(math.fsum((values - mean) ** 2) / len(values))
        merged = merge_moments(stack([values[:, None]]))
        assert merged["mean"][0] == pytest.approx(mean, rel=1e-13)
        assert merged["sd"][0] == pytest.approx(sd, rel=1e-12)


@given(tables, st.floats(-10, 10))
def test_moments_about_any_shift_merge_to_the_same(values: Values, move: float):
    """A reader of the cold index may hold moments that were not taken about the mean."""
    moments = stack([values, values[::2]])
    shift = np.where(moments["count"] > 0, moments["shift"] + move, 0.0)
    back = moments["shift"] - shift
    moved = {
        **moments,
        "shift": shift,
        "sum": moments["sum"] + moments["count"] * back,
        "sum_sq": moments["sum_sq"] + 2 * back * moments["sum"] + moments["count"] * back**2,
    }
    wanted, got = merge_moments(moments), merge_moments(moved)
    level = 1 + np.nan_to_num(np.abs(wanted["max"]) + np.abs(wanted["min"]))
    assert (np.abs(got["mean"] - wanted["mean"]) <= 1e-13 * level).all()
    assert (np.abs(got["sd"] ** 2 - wanted["sd"] ** 2) <= 1e-12 * (level**2 + 100)).all()


def test_naive_sums_would_fail_here():
    """The data above are hard: E[x^2] - E[x]^2 is worthless on them."""
    values = LEVELS["1e9 with a spread of 1e-3"]
    naive = math.sqrt(max(0.0, float((values**2).mean() - values.mean() ** 2)))
    assert abs(naive / exact(values)[1] - 1) > 0.5


# --- the affines ------------------------------------------------------------------------------


@given(tables)
def test_zscore_has_mean_zero_and_spread_one(values: Values):
    affine = own_affine("zscore", values)
    normalized = (values - affine.offset) / affine.scale
    for channel, column in enumerate(normalized.T):
        seen = column[~np.isnan(column)]
        sd = exact(values[:, channel])[1] if seen.size else 0.0
        if sd > 1e-6 * float(np.nanmax(np.abs(values[:, channel]), initial=0)):
            assert abs(seen.mean()) < 1e-8
            assert abs(seen.std() - 1) < 1e-8


@given(tables)
def test_minmax_is_minimum_and_range(values: Values):
    affine = own_affine("minmax", values)
    for channel, column in enumerate(values.T):
        seen = column[~np.isnan(column)]
        offset = seen.min() if seen.size else 0.0
        width = seen.max() - seen.min() if seen.size else 0.0
        assert affine.offset[channel] == offset
        assert affine.scale[channel] == (width or 1.0)


@given(tables)
def test_robust_is_median_and_interquartile_range(values: Values):
    affine = own_affine("robust", values)
    for channel, column in enumerate(values.T):
        seen = column[~np.isnan(column)]
        low, median, high = np.quantile(seen, [0.25, 0.5, 0.75]) if seen.size else (0, 0, 0)
        assert affine.offset[channel] == median
        assert affine.scale[channel] == (high - low or 1.0)


@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
@pytest.mark.parametrize("level", [0.1, 1e9 + 0.3, -7.0, 1e-30, 0.0])
def test_a_constant_channel_has_scale_one_and_becomes_zero(method: str, level: float):
    values = np.full((97, 2), level)
    values[::3, 1] = NAN
    affine = own_affine(method, values)
    np.testing.assert_array_equal(affine.scale, [1, 1])
    rows = affine.apply(values)
    assert rows.dtype == np.float32
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(np.isnan(rows), np.isnan(values))
    merged = merge_moments(stack([values[:40], values[40:]]))
    if method != "robust":
        np.testing.assert_array_equal(affine_from_moments(method, merged).scale, [1, 1])


@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
def test_an_all_missing_channel_has_offset_zero_scale_one_and_stays_missing(method: str):
    values = np.array([[NAN, 1.0], [NAN, 3.0]])
    affine = own_affine(method, values)
    assert (affine.offset[0], affine.scale[0]) == (0, 1)
    rows = affine.apply(values)
    assert np.isnan(rows[:, 0]).all()
    assert not np.isnan(rows[:, 1]).any()
    nothing = own_affine(method, values[:, :1])
    assert (nothing.offset.tolist(), nothing.scale.tolist()) == ([0], [1])


@given(tables, st.sampled_from(["zscore", "minmax", "robust"]))
def test_values_go_back_to_physical_units(values: Values, method: str):
    affine = own_affine(method, values)
    rows = affine.apply(values).astype(np.float64)
    back = rows * affine.scale + affine.offset
    # float32 of the normalized value carries 2**-24 of it; the way back adds float64 noise.
    size = np.abs(values - affine.offset) + np.abs(affine.offset) * 2**-28 + affine.scale * 2**-100
    error = np.abs(back - values)
    assert (np.isnan(values) | (error <= 2**-23 * size)).all()


@given(tables, st.sampled_from(["zscore", "minmax", "robust"]))
def test_values_are_rounded_once(values: Values, method: str):
    affine = own_affine(method, values)
    rows = affine.apply(values)
    for (i, j), value in np.ndenumerate(values):
        wanted = np.float32((float(value) - float(affine.offset[j])) / float(affine.scale[j]))
        assert rows[i, j].tobytes() == wanted.tobytes() or (np.isnan(wanted) and np.isnan(value))


def test_the_identity_changes_nothing_but_the_type():
    values = np.array([[1.5, NAN], [0.1, -2.0]])
    np.testing.assert_array_equal(identity_affine(2).apply(values), values.astype(np.float32))
    assert isinstance(identity_affine(3), Affine)


# --- digits that float32 loses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "spread", "coarse"),
    [
        (0.0, 1.0, False),
        (1e3, 1.0, False),
        (1e6, 1.0, True),
        (1.7e9, 10.0, True),
        (5.0, 0.0, False),
    ],
)
def test_a_level_that_eats_the_spread_is_reported(level: float, spread: float, coarse: bool):
    values = level + spread * np.array([[-1.0], [1.0], [-1.0], [1.0]])
    ratio = coarse_channels(merge_moments(stack([values])))
    assert bool(ratio[0] > 0) is coarse
    if coarse:
        assert ratio[0] == pytest.approx(float(np.spacing(np.float32(level))) / spread)
    nothing = np.full((2, 1), NAN)
    assert coarse_channels(merge_moments(stack([nothing]))).tolist() == [0]


FLOAT32_MAX = float(np.finfo(np.float32).max)  # the pipeline refuses what is beyond


EXTREMES = {
    "extremes": [1.0, FLOAT32_MAX, -FLOAT32_MAX],
    "one out": [FLOAT32_MAX] * 9 + [-FLOAT32_MAX],
    "decay": [1.0, 1e-50, 1e-60, 1e-65, 1e-70, 1e-80, 0.0],
    "impulse": [FLOAT32_MAX, 1e-20, 1e-25, 0.0, 0.0, 1e-20, 2e-20],
    "denormal": [5e-324, 0.0, 5e-324, 0.0],
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("method", "column"),
    list(itertools.product(["zscore", "minmax", "robust"], EXTREMES)),
)
def test_any_trial_that_float32_holds_is_normalized_to_finite_values(method: str, column: str):
    values = np.array(EXTREMES[column])[:, None]
    affine = own_affine(method, values)
    assert np.isfinite(affine.apply(values)).all()
