"""Plans by group: quotas exact, each window before any again, and no trial left out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders import Balance
from loaders.balance import draw_quotas, group_quotas
from loaders.epochorder import BLOCK, EpochOrder
from loaders.groups import GroupPlan, multiply_modulo
from loaders.order import EpochPlan
from shards import InvalidSpecError

seeds = st.integers(0, 2**63 - 1)
WIDE = 2**33 + 9
PINNED = [
    [[0, 2, 2, 4, 3, 4, 2, 4, 2], [1, 1, 2, 1, 0, 3, 1, 2, 0]],
    [[2, 4, 2, 0, 2, 2, 4, 0, 3], [1, 2, 1, 0, 0, 2, 1, 1, 0]],
]
PINNED_DIGEST = "7eee76556333da5401290ee57ebf9de9971bfd39664d05efc04e3fac5d7c7738"


@st.composite
def plans(draw, most=9):
    """Draw a plan of some trials, in groups whose quotas may be 0 or above their windows."""
    pairs = draw(
        st.lists(st.tuples(st.integers(0, most), st.integers(0, 4)), min_size=1, max_size=25)
        .filter(lambda pairs: any(n for n, _ in pairs))
    )  # fmt: skip
    n_windows, groups = np.array(pairs, np.int64).T
    quotas, windows_of = group_quotas(n_windows, groups, int(n_windows.sum()))
    if draw(st.booleans()):
        own = draw(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any))
        quotas = np.where(windows_of > 0, own[: len(quotas)], 0)
        quotas[np.argmax(windows_of)] += 1  # at least one draw
    return GroupPlan(n_windows, groups, quotas, draw(seeds))


def epoch_of(plan, epoch):
    return plan.draws(epoch, 0, plan.n_draws)


@given(plan=plans(), first=st.integers(0, 50))
def test_each_epoch_draws_the_quota_of_each_group(plan, first):
    assert plan.n_draws == plan.quotas.sum()
    for epoch in range(first, first + 3):
        trial, window = epoch_of(plan, epoch)
        assert (window >= 0).all()
        assert (window < plan.n_windows[trial]).all()
        got = np.bincount(plan.groups[trial], minlength=len(plan.quotas))
        assert got.tolist() == plan.quotas.tolist()


@given(plan=plans(), n_epochs=st.integers(1, 8))
def test_no_window_comes_again_before_the_others_of_its_group(plan, n_epochs):
    seen = Counter()
    for epoch in range(n_epochs):
        trial, window = epoch_of(plan, epoch)
        seen.update(zip(trial.tolist(), window.tolist(), strict=True))
        for group in range(len(plan.quotas)):
            often = [
                seen[t, w]
                for t in np.flatnonzero(plan.groups == group).tolist()
                for w in range(plan.n_windows[t])
            ]
            assert not often or max(often) - min(often) <= 1


@given(plan=plans(most=4))
def test_means_are_those_of_a_whole_turn_of_all_groups(plan):
    """After as many epochs as a group has windows, each of them came equally often."""
    n_windows = plan._units.n_windows
    n_epochs = math.lcm(*(int(n) // math.gcd(int(n), int(q)) for n, q in zip(
        n_windows, plan.quotas, strict=True
    ) if q))  # fmt: skip
    if n_epochs > 100:
        return
    trials = np.concatenate([epoch_of(plan, epoch)[0] for epoch in range(n_epochs)])
    counts = np.bincount(trials, minlength=len(plan.n_windows))
    assert plan.mean_draws.dtype == np.float64
    assert np.allclose(counts / n_epochs, plan.mean_draws, rtol=1e-12)


@given(plan=plans(), epoch=st.integers(0, 1000), data=st.data())
def test_any_part_of_an_epoch_is_drawn_without_what_is_before(plan, epoch, data):
    trial, window = epoch_of(plan, epoch)
    first = data.draw(st.integers(0, plan.n_draws))
    last = data.draw(st.integers(first, plan.n_draws))
    again = GroupPlan(plan.n_windows, plan.groups, plan.quotas, plan.seed)
    got = again.draws(epoch, first, last)
    assert [x.tolist() for x in got] == [trial[first:last].tolist(), window[first:last].tolist()]
    assert plan.n_steps(7) == -(-plan.n_draws // 7)


def test_blocks_of_an_order_are_parts_of_the_plan():
    plan = GroupPlan(np.array([BLOCK, 3, BLOCK]), np.array([0, 1, 0]), np.array([BLOCK, 9]), 3)
    order = EpochOrder(plan, 2, lambda trial, window: (trial, window))
    whole = epoch_of(plan, 2)
    for first in (0, BLOCK - 5, 17, 317, 617, 917, plan.n_draws - 9):
        for got, want in zip(order.read(first, first + 9), whole, strict=True):
            assert got.tolist() == want[first : first + 9].tolist()


@given(plan=plans(), seed=seeds)
def test_each_trial_alone_is_the_plan_of_trials(plan, seed):
    """Groups are the trials of an `EpochPlan`, whose order is pinned; with one trial each alike."""
    busy = np.flatnonzero(plan.n_windows)
    n_windows, quotas = plan.n_windows[busy], 1 + np.arange(len(busy))
    groups = np.arange(len(busy))
    want = EpochPlan(n_windows, quotas, seed, "global")
    got = GroupPlan(n_windows, groups, quotas, seed)
    for epoch in (0, 5):
        for x, y in zip(epoch_of(got, epoch), epoch_of(want, epoch), strict=True):
            assert x.tolist() == y.tolist()
    assert got.mean_draws.tolist() == pytest.approx(quotas.tolist())


def test_the_order_is_pinned():
    """Every checkpoint holds (seed, epoch, step) and relies on these numbers for ever."""
    plan = GroupPlan(np.array([2, 0, 3, 1, 4]), np.array([0, 7, 1, 0, 0]), np.array([5, 4]), 7)
    assert [x.tolist() for x in epoch_of(plan, 0)] == PINNED[0]
    assert [x.tolist() for x in epoch_of(plan, 3)] == PINNED[1]
    assert plan.digest({"batch_size": 4}) == PINNED_DIGEST


def test_digests_tell_plans_apart():
    n, groups, quotas = np.array([2, 3, 4]), np.array([0, 1, 0]), np.array([5, 4])
    plans = [
        GroupPlan(n, groups, quotas, 0), GroupPlan(n, groups, quotas[::-1], 0),
        GroupPlan(n[::-1], groups, quotas, 0), GroupPlan(n, groups, np.array([6, 3]), 0),
        GroupPlan(np.array([3, 3, 3]), groups, quotas, 0),
        GroupPlan(np.array([2, 4, 3]), np.array([0, 0, 1]), quotas, 0),
        EpochPlan(np.array([6, 3]), quotas, 0, "global"),
    ]  # fmt: skip
    digests = [plan.digest({"batch_size": size}) for plan in plans for size in (4, 8)]
    assert len(set(digests)) == len(digests)
    assert plans[0].digest({}) == GroupPlan(n, groups, quotas, 9).digest({})


@given(
    n=st.integers(2, 2**46), x=st.integers(0, 2**46), y=st.integers(0, 2**46)
)  # fmt: skip
@example(n=2**46, x=2**46 - 1, y=2**46 - 1)
def test_products_are_those_of_python(n, x, y):
    x, y = x % n, y % n
    assert multiply_modulo(*np.array([[x], [y], [n]])).tolist() == [x * y % n]


@given(seed=seeds, epoch=st.integers(0, 2**16), at=st.integers(0, WIDE - 1))
def test_a_group_of_over_2_to_the_31_windows_has_places_apart_and_inside(seed, epoch, at):
    plan = GroupPlan(
        np.array([2**32, 5, 2**32 + 9]), np.array([0, 1, 0]), np.array([WIDE, 77]), seed
    )
    trial, window = plan.draws(epoch, at, min(plan.n_draws, at + 999))
    assert (window >= 0).all()
    assert (window < plan.n_windows[trial]).all()
    big = trial != 1
    assert len({*zip(trial[big].tolist(), window[big].tolist(), strict=True)}) == big.sum()


def test_turns_of_a_wide_group_are_permutations_with_starts_all_over_it(monkeypatch):
    monkeypatch.setattr("loaders.groups._NARROW", 8)
    plan = GroupPlan(np.array([400, 0, 301]), np.array([0, 0, 0]), np.array([701 * 2]), 5)
    starts = []
    for epoch in range(20):
        group, draw = np.zeros(1402, np.int64), np.arange(1402)
        place = plan._units._window(group, draw, epoch)
        for turn in place.reshape(2, -1):
            assert sorted(turn.tolist()) == list(range(701))
        starts += place[::701].tolist()
    assert min(starts) < 701 // 4
    assert max(starts) > 701 * 3 // 4


def test_a_plan_of_10_to_the_12_windows_in_few_groups():
    n_windows = np.full(1_000_000, 1_000_000, np.int64)
    n_windows[:3] = 1, 0, 1_999_999
    groups = np.arange(1_000_000) % 3 // 2
    quotas, _ = group_quotas(n_windows, groups, int(n_windows.sum()))
    plan = GroupPlan(n_windows, groups, quotas, 1)
    assert plan.n_draws == n_windows.sum()
    trial, window = plan.draws(5, plan.n_draws - 3000, plan.n_draws)
    assert (window >= 0).all()
    assert (window < n_windows[trial]).all()
    assert abs(np.mean(groups[trial]) - 0.5) < 0.05
    assert len(np.unique(trial)) > 2900


def test_more_than_2_to_the_46_windows_are_refused():
    n_windows = np.array([2**45, 2**45, 1])
    with pytest.raises(InvalidSpecError, match="balance='window'"):
        GroupPlan(n_windows, np.array([0, 1, 0]), np.array([3, 3]), 0)


@given(n_windows=st.lists(st.integers(0, 2**40), min_size=1, max_size=40).filter(any))
@example(n_windows=[2**40] * 39 + [1])
@example(n_windows=[1, 2, 1])
def test_by_square_root_and_by_trial_no_trial_is_left_out(n_windows):
    """So they need no groups: a trial's share is never below one draw."""
    n_windows = np.array(n_windows)
    for by in ("sqrt", "trial"):
        quotas = draw_quotas(None, Balance(by), np.arange(len(n_windows)), n_windows)
        assert (quotas[n_windows > 0] > 0).all()
