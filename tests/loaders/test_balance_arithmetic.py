"""Quotas and weights as arithmetic: no files."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from loaders.balance import draw_quotas, even_classes, even_trials, share_alike
from loaders.choices import Balance
from loaders.order import largest_remainder

grouped = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=40
).filter(lambda pairs: any(n for n, _ in pairs))
drawn = st.lists(
    st.tuples(
        st.just(0) | st.floats(2**-10, 2**20, width=32), st.integers(0, 2**31), st.integers(0, 4)
    ),
    min_size=1, max_size=40,
)  # fmt: skip


def ints(values):
    return np.array(values, np.int64)


def columns(rows, *dtypes):
    rows = zip(*rows, strict=True)
    return [np.array(column, dtype) for column, dtype in zip(rows, dtypes, strict=True)]


@given(pairs=grouped)
def test_groups_get_alike_and_windows_in_a_group_too(pairs):
    n_windows, groups = columns(pairs, np.int64, np.int64)
    total = int(n_windows.sum())
    quotas = share_alike(n_windows, groups, total)
    assert quotas.sum() == total
    assert not quotas[n_windows == 0].any()
    assert (quotas >= 0).all()
    draws_of = [quotas[groups == g].sum() for g in set(groups[n_windows > 0])]
    assert max(draws_of) - min(draws_of) <= 1
    for group in set(groups[n_windows > 0]):
        mine = groups == group
        for n, quota in zip(n_windows[mine], quotas[mine], strict=True):
            exact = Fraction(int(n) * int(quotas[mine].sum()), int(n_windows[mine].sum()))
            assert abs(quota - exact) < 1


@given(pairs=grouped, total=st.integers(0, 10**12))
def test_within_a_group_it_is_the_largest_remainder(pairs, total):
    n_windows, groups = columns(pairs, np.int64, np.int64)
    quotas = share_alike(n_windows, groups, total)
    for group in set(groups[n_windows > 0]):
        mine = groups == group
        want = largest_remainder(n_windows[mine], int(quotas[mine].sum()))
        assert quotas[mine].tolist() == want.tolist()


@given(sizes=st.lists(st.integers(0, 2**31), min_size=1, max_size=30).filter(any))
@example(sizes=[2**31, 2**31 - 1, 1])
def test_one_group_alone_draws_each_window_once(sizes):
    n_windows = ints(sizes)
    quotas = share_alike(n_windows, ints([0] * len(sizes)), int(n_windows.sum()))
    assert quotas.tolist() == sizes


def test_more_windows_than_float32_can_count_are_shared_out_exactly():
    """Where sampling from float32 probabilities, or by their running sum, is biased."""
    n_windows = np.full(300_000, 1_000, np.int64)
    n_windows[::3] = 1
    n_windows[7] = 2**31
    groups = np.arange(300_000) % 7
    total = int(n_windows.sum())
    assert total > 2**24
    quotas = share_alike(n_windows, groups, total)
    assert quotas.sum() == total
    draws_of = np.bincount(groups, quotas)
    assert np.ptp(draws_of) <= 1
    exact = n_windows / np.bincount(groups, n_windows)[groups] * draws_of[groups]
    assert (abs(quotas - exact) < 1).all()
    root = draw_quotas(None, Balance("sqrt"), np.arange(300_000), n_windows)
    exact = np.sqrt(n_windows) * (total / math.fsum(np.sqrt(n_windows)))
    assert root.sum() == total
    assert (abs(root - exact) < 1).all()


@given(rows=drawn)
def test_each_series_counts_the_same_whatever_the_quotas(rows):
    own, quotas, _ = columns(rows, np.float32, np.int64, np.int64)
    weights = even_trials(own, quotas)
    assert weights.dtype == np.float32
    busy = (own > 0) & (quotas > 0)
    counted = weights[busy].astype(float) * quotas[busy]
    assert np.allclose(counted / own[busy], (counted / own[busy])[:1], rtol=1e-6, atol=1e-30)
    total = math.fsum(own.astype(float) * quotas)
    assert math.isclose(math.fsum(weights.astype(float) * quotas), total, rel_tol=1e-6)


@given(rows=drawn)
def test_each_class_counts_the_same_and_the_mean_weight_is_1(rows):
    _, quotas, codes = columns(rows, np.float32, np.int64, np.int64)
    weights = even_classes(np.ones(len(rows), np.float32), codes, quotas)
    assert weights.dtype == np.float32
    if not quotas.any():
        return
    counted = [math.fsum(weights[codes == c].astype(float) * quotas[codes == c]) for c in range(5)]
    some = [c for c in counted if c]
    assert max(some) <= min(some) * (1 + 1e-6)
    assert math.isclose(math.fsum(counted), float(quotas.sum()), rel_tol=1e-6)


def test_class_weights_are_those_of_scikit_learn():
    """compute_class_weight("balanced", classes=[0, 1], y=[0] * 6 + [1] * 2): 2 / 3 and 2."""
    weights = even_classes(np.ones(3, np.float32), ints([0, 1, 0]), ints([1, 2, 5]))
    assert weights.tolist() == np.array([2 / 3, 2, 2 / 3], np.float32).tolist()


def test_own_weights_stay_a_factor_of_even_ones():
    own = np.array([1, 3, 0, 2], np.float32)
    weights = even_trials(own, ints([4, 2, 5, 0]))
    assert (weights[:3] * [4, 2, 5] / weights[0] / 4).tolist() == [1, 3, 0]
    assert weights[3] == 0
    alike = even_classes(np.ones(4, np.float32), ints([0, 0, 1, 2]), ints([4, 2, 5, 0]))
    mine = even_classes(own, ints([0, 0, 1, 2]), ints([4, 2, 5, 0]))
    assert mine.tolist() == (own * alike).tolist()
    nothing = np.zeros(2, np.float32)
    assert not even_trials(nothing, ints([1, 2])).any()
