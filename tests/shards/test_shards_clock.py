"""A regular clock is a beginning and a step, and gives every row's time back; others say so."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.clock import SLACK, Float64, regular_step, row_times

steps = st.one_of(
    st.sampled_from([0.0, 0.001, 0.02, 0.1, 1 / 3, 1.0, 7.0, 3600.0]),
    st.floats(1e-9, 1e9, allow_subnormal=False),
)
starts = st.one_of(st.sampled_from([0.0, -0.5, 1.7e9, -4.0]), st.floats(-1e12, 1e12))


@st.composite
def clocks(draw: st.DrawFn) -> list[float]:
    """Return the times of one segment: even ones, a few spacings off or not, or any."""
    n_rows = draw(st.integers(1, 40))
    start, step = draw(starts), draw(steps)
    way = draw(st.sampled_from(["even", "off", "digits", "any"]))
    if way == "any":
        return sorted(draw(st.lists(st.floats(-1e12, 1e12), min_size=n_rows, max_size=n_rows)))
    time = start + np.arange(n_rows) * step
    if way == "digits":
        time = np.round(time, draw(st.integers(0, 6)))
    if way == "off":
        off = draw(st.lists(st.integers(-7, 7), min_size=n_rows, max_size=n_rows))
        time = np.sort(time + np.array(off) * np.spacing(np.abs(time).max()))
    return [float(moment) for moment in time]


def joined(segments: list[list[float]]) -> tuple[Float64, np.ndarray]:
    edges = np.cumsum([0, *map(len, segments)])
    return np.array(list(itertools.chain(*segments))), edges


def slow_step(time: list[float]) -> float:
    """Return what the rule says, one row at a time; NaN where it finds a row out of place."""
    step = (time[-1] - time[0]) / (len(time) - 1) if len(time) > 1 else 0.0
    slack = 4 * math.ulp(max(map(abs, time)))
    places = (time[0] + k * step for k in range(len(time)))
    even = all(abs(t - place) <= slack for t, place in zip(time, places, strict=True))
    return step if even else math.nan


@given(st.lists(clocks(), min_size=1, max_size=8))
@example([[0.0, 5e-324, 1e-323], [0.0], [-1.0, 0.0, 1.0], [0.0, 0.33, 0.67, 1.0]])
def test_steps_are_those_of_the_rule_applied_row_by_row(segments: list[list[float]]):
    got = regular_step(*joined(segments))
    assert got.dtype == np.float64
    assert got.tobytes() == np.array([slow_step(time) for time in segments]).tobytes()


@given(st.lists(clocks(), min_size=1, max_size=8))
def test_a_regular_segment_gives_its_times_back_and_no_other_gives_any(
    segments: list[list[float]],
):
    for time, step in zip(segments, regular_step(*joined(segments)).tolist(), strict=True):
        back = row_times(time[0], step, len(time))
        assert (back.dtype, back.shape) == (np.dtype(np.float64), (len(time),))
        if math.isnan(step):
            assert np.isnan(back).all()
            continue
        assert back[0] == time[0]
        slack = Fraction(math.ulp(max(map(abs, time)))) * SLACK
        for got, wanted in zip(back.tolist(), time, strict=True):
            assert abs(Fraction(got) - Fraction(wanted)) <= slack


@given(
    st.integers(0, 10**6),
    st.integers(1, 5000),
    st.sampled_from([0.1, 0.02, 0.001, 1 / 3, 7.0]),
    st.sampled_from([0.0, 1.7e9]),
)
def test_even_times_of_one_sign_are_regular(first: int, n: int, every: float, level: float):
    ticks = np.arange(first, first + n)
    for time in (level + ticks * every, level + ticks / (1 / every), -level - ticks[::-1] * every):
        (step,) = regular_step(time, np.array([0, n]))
        slack = 2 * math.ulp(abs(time).max())
        assert math.isclose(step, every if n > 1 else 0.0, rel_tol=1e-12, abs_tol=slack)


def test_clocks_whose_digits_were_cut_are_irregular():
    thirds = np.round(np.arange(50) / 3, 2)
    jitter = np.arange(50) + np.random.default_rng(0).uniform(-1e-6, 1e-6, 50)
    assert np.isnan(regular_step(np.concatenate([thirds, jitter]), np.array([0, 50, 100]))).all()


@pytest.mark.parametrize("level", [1.0, 3.0, 1e9, -3.0, -1e9])
def test_four_spacings_off_are_regular_and_five_are_not(level: float):
    for n_off, regular in ((-5, False), (-4, True), (0, True), (4, True), (5, False)):
        far = 0.25 * level if level > 0 else -0.25 * level
        time = np.array([level, level + far, level + 2 * far])
        time[1] += n_off * np.spacing(np.abs(time).max())
        assert np.isnan(regular_step(time, np.array([0, 3])))[0] != regular, n_off


@pytest.mark.parametrize(
    "time", [[math.nan], [math.inf], [0.0, math.nan], [-math.inf, 0.0, 1.0], [-1.7e308, 0, 1.7e308]]
)
@pytest.mark.filterwarnings("error")
def test_times_beyond_arithmetic_are_irregular_and_disturb_no_neighbour(time: list[float]):
    got = regular_step(*joined([[0.0, 2.0, 4.0], time, [5.0]]))
    np.testing.assert_array_equal(got, [2.0, math.nan, 0.0])


def test_no_segments_have_no_steps():
    assert regular_step(np.empty(0), np.zeros(1, np.int64)).shape == (0,)
