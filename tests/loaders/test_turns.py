"""Whose turn it is: conservation, even spread, random access."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.turns import share_steps, steps_before, turn
from shards import InvalidSpecError

QUOTAS = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


@given(QUOTAS)
def test_steps_go_in_the_order_in_which_they_are_due(quotas):
    due = [(Fraction(2 * k + 1, 2 * q), i, k) for i, q in enumerate(quotas) for k in range(q)]
    got = [turn(position, quotas) for position in range(sum(quotas))]
    assert got == [(i, k) for _, i, k in sorted(due)]


@given(QUOTAS, st.integers(1, 10**12))
def test_no_stream_is_ever_a_step_early_or_late(quotas, times):
    quotas = [q * times for q in quotas]
    total = sum(quotas)
    for position in {0, 1, total // 3, total // 2, total - 1, total}:
        taken = steps_before(position, quotas)
        assert sum(taken) == position
        for k, q in zip(taken, quotas, strict=True):
            assert abs(k - Fraction(position * q, total)) <= len(quotas)
            assert 0 <= k <= q


def test_equal_quotas_are_round_robin():
    assert [turn(p, [3, 3, 3]) for p in range(9)] == [(i, k) for k in range(3) for i in range(3)]


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 10**6)), min_size=1, max_size=5),
    st.sampled_from(["first", "cycle"]),
)
def test_shares_end_with_the_first_or_the_last(pairs, stop):
    shares, steps = [p[0] for p in pairs], [p[1] for p in pairs]
    quotas = share_steps(shares, steps, stop=stop)
    passes = [q / n for q, n in zip(quotas, steps, strict=True)]
    assert min(quotas) >= 1
    if stop == "first":
        assert max(passes) == 1 or min(steps) == 1 or max(passes) <= 1
    else:
        assert min(passes) >= 1
    unit = max(quotas) / shares[quotas.index(max(quotas))]
    for quota, share in zip(quotas, shares, strict=True):
        assert abs(quota - share * unit) <= 1 + share / shares[quotas.index(max(quotas))]


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("inf")], [1, "2"]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InvalidSpecError, match="a positive number for each of 2 streams"):
        share_steps(shares, [3, 4], stop="first")
