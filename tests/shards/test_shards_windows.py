"""Windows: every one lies inside its trial, with its targets, exactly where SPEC section 6 says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import InvalidSpecError, WindowSpec
from shards.windows import count_windows, window_rows

specs = st.builds(
    WindowSpec,
    length=st.integers(1, 40),
    stride=st.integers(1, 50),
    horizon=st.integers(1, 10),
    steps=st.integers(0, 8),
    short=st.sampled_from(["pad", "drop"]),
)
lengths = st.integers(0, 200)


def ahead_by_the_text(spec):
    return spec.horizon - 1 + spec.steps if spec.steps else 0


def windows_by_the_text(n, spec):
    """SPEC section 6 read aloud: a list of (start, valid rows)."""
    need = spec.length + ahead_by_the_text(spec)
    if n >= need:
        return [(s, spec.length) for s in range(0, n, spec.stride) if s + need <= n]
    if spec.short == "pad" and n > ahead_by_the_text(spec):
        return [(0, n - ahead_by_the_text(spec))]
    return []


def windows_of(n, spec):
    count = int(count_windows(np.array([n]), spec)[0])
    start, valid = window_rows(np.full(count, n), np.arange(count), spec)
    return list(zip(start.tolist(), np.broadcast_to(valid, start.shape).tolist(), strict=True))


@given(lengths, specs)
def test_windows_are_those_of_the_text(n, spec):
    assert windows_of(n, spec) == windows_by_the_text(n, spec)


@given(lengths, specs)
def test_every_input_and_target_row_lies_inside_the_trial(n, spec):
    for start, valid in windows_of(n, spec):
        assert 0 <= start < start + valid <= n
        assert 1 <= valid <= spec.length
        if spec.steps:
            first = start + valid + spec.horizon - 1
            assert start + valid <= first < first + spec.steps <= n


@given(lengths, specs)
def test_neighbouring_windows_are_one_stride_apart_and_no_further_one_fits(n, spec):
    starts = [start for start, _ in windows_of(n, spec)]
    assert starts == [spec.stride * i for i in range(len(starts))]
    if n >= spec.length + spec.ahead:
        assert starts[-1] + spec.stride + spec.length + spec.ahead > n


@given(lengths, specs)
def test_only_the_single_window_of_a_short_trial_is_padded(n, spec):
    found = windows_of(n, spec)
    if any(valid < spec.length for _, valid in found):
        assert len(found) == 1
        assert spec.short == "pad"
        assert n < spec.length + spec.ahead


@given(st.integers(1, 200), st.integers(1, 40))
def test_stride_one_without_targets_leaves_no_row_unseen(n, length):
    found = windows_of(n, WindowSpec(length=length, stride=1))
    assert {row for start, valid in found for row in range(start, start + valid)} == set(range(n))


@given(st.lists(lengths, max_size=20), specs)
def test_counting_many_trials_is_counting_each(many, spec):
    got = count_windows(np.array(many, np.int64), spec)
    assert got.dtype == np.int64
    assert got.tolist() == [len(windows_by_the_text(n, spec)) for n in many]


@given(lengths, specs)
def test_dropping_short_trials_changes_nothing_for_long_ones(n, spec):
    pad = WindowSpec(**{**spec.as_dict(), "short": "pad"})
    drop = WindowSpec(**{**spec.as_dict(), "short": "drop"})
    if n >= spec.length + spec.ahead:
        assert windows_of(n, pad) == windows_of(n, drop)
    else:
        assert windows_of(n, drop) == []


@given(specs)
def test_an_empty_trial_has_no_window(spec):
    assert windows_of(0, spec) == []


def test_hand_counted_trials():
    spec = WindowSpec(length=4, stride=3, horizon=2, steps=2)  # ahead 3, so 7 rows for the first
    got = count_windows(np.array([0, 3, 4, 6, 7, 9, 10, 13]), spec)
    assert got.tolist() == [0, 0, 1, 1, 1, 1, 2, 3]
    start, valid = window_rows(np.array([4, 6, 10]), np.array([0, 0, 1]), spec)
    assert start.tolist() == [0, 0, 3]
    assert valid.tolist() == [1, 3, 4]


def test_counts_are_exact_where_32_bits_would_overflow():
    n = 2**40 + 5
    assert count_windows(np.array([n]), WindowSpec(length=6)).tolist() == [2**40]
    start, valid = window_rows(np.array([n]), np.array([2**40 - 1]), WindowSpec(length=6))
    assert (start.tolist(), valid.tolist()) == ([2**40 - 1], [6])


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 0), ("length", -3), ("stride", 0), ("horizon", 0), ("steps", -1), ("short", "cut")],
)
def test_a_parameter_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidSpecError, match=f"windows.{field}"):
        WindowSpec(**{"length": 4, field: value})
