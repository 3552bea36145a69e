"""Law 4 as arithmetic: no files, no torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders import epochorder
from loaders.epochorder import EpochOrder
from loaders.order import (
    EpochPlan,
    largest_remainder,
    permute,
    rank_rows,
    splitmix64,
    worker_steps,
)
from shards import InvalidSpecError

counts = st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(any)
seeds = st.integers(0, 2**63 - 1)


def plan_of(n_windows, balance="window", seed=0, shuffle="global"):
    n = np.array(n_windows, np.int64)
    quotas = n if balance == "window" else largest_remainder(n > 0, int(n.sum()))
    return EpochPlan(n, quotas, seed, shuffle)


def epoch_of(plan, epoch):
    return plan.draws(epoch, 0, plan.n_draws)


@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@example(n=1, key=0)
@example(n=2, key=5)
@example(n=3, key=5)
@pytest.mark.parametrize("power", [None, 4, 8, 12, 16])
def test_permute_is_a_bijection(n, key, power):
    sizes = [n] if power is None else [(1 << power) - 1, 1 << power, (1 << power) + 1]
    for size in sizes if power in (None, 4, 8, 12) else sizes[:: 1 + key % 2]:
        image = permute(np.arange(size), size, key)
        assert np.array_equal(np.sort(image), np.arange(size))


@given(
    n=st.sampled_from([2**31, 2**32 - 1, 2**32, 2**32 + 1, 10**12]),
    at=st.integers(0, 2**31 - 1),
    key=seeds,
)
def test_permute_of_huge_sizes_stays_inside_and_apart(n, at, key):
    image = permute(np.arange(at, min(n, at + 500)), n, key)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(image)


def test_order_is_pinned():
    """Every checkpoint holds (seed, epoch, step) and relies on these numbers for ever."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # Vigna's splitmix64.c, first output for seed 0
    assert permute(np.arange(16), 16, 1).tolist() == [
        12, 8, 15, 1, 13, 5, 6, 7, 10, 11, 0, 4, 9, 14, 3, 2,
    ]  # fmt: skip
    key = splitmix64(splitmix64(7) + 3)
    assert permute(np.arange(4), 10**12, key).tolist() == [
        193983110523, 69146958359, 704982274573, 24415934195,
    ]  # fmt: skip
    trial, window = epoch_of(plan_of([5, 0, 3, 9]), 0)
    assert trial.tolist() == [0, 3, 3, 2, 2, 0, 3, 2, 0, 3, 3, 3, 3, 0, 0, 3, 3]
    assert window.tolist() == [4, 3, 6, 0, 1, 3, 7, 2, 1, 2, 0, 5, 1, 2, 0, 4, 8]
    trial, window = epoch_of(plan_of([5, 0, 3, 9], "trial"), 2)
    assert trial.tolist() == [0, 2, 3, 2, 2, 3, 3, 0, 0, 2, 2, 0, 3, 0, 2, 3, 0]
    assert window.tolist() == [0, 0, 3, 1, 2, 0, 2, 0, 2, 1, 0, 4, 5, 1, 2, 7, 3]


def test_order_looks_random():
    """Serial correlation and displacement of 100,000 positions, within 5 sigma of chance."""
    n = 100_003
    for seed in range(5):
        image = permute(np.arange(n), n, splitmix64(seed)).astype(float)
        for lag in (1, 2, 256):
            assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 5 / np.sqrt(n)


@given(n_windows=counts, seed=seeds, epoch=st.integers(0, 1000))
def test_every_window_comes_once_per_epoch(n_windows, seed, epoch):
    trial, window = epoch_of(plan_of(n_windows, seed=seed), epoch)
    got = sorted(zip(trial.tolist(), window.tolist(), strict=True))
    assert got == [(t, w) for t, n in enumerate(n_windows) for w in range(n)]


@given(n_windows=counts, seed=seeds, shuffle=st.sampled_from(["global", "none"]))
def test_balanced_quotas_are_exact_and_no_window_returns_early(n_windows, seed, shuffle):
    plan = plan_of(n_windows, "trial", seed, shuffle)
    busy = np.array(n_windows) > 0
    assert plan.quotas.sum() == sum(n_windows)
    assert np.ptp(plan.quotas[busy]) <= 1
    assert not plan.quotas[~busy].any()
    seen = [np.zeros(n, int) for n in n_windows]
    for epoch in range(4):
        trial, window = epoch_of(plan, epoch)
        assert np.array_equal(np.bincount(trial, minlength=len(n_windows)), plan.quotas)
        for t, w in zip(trial, window, strict=True):
            seen[t][w] += 1
        assert all(np.ptp(s) <= 1 for s in seen if len(s))


def test_partial_draws_of_a_trial_are_spread_over_it():
    plan = plan_of([1000] + [1] * 99, "trial")
    trial, window = epoch_of(plan, 0)
    gaps = np.diff(np.sort(window[trial == 0]))
    assert plan.quotas[0] == 11
    assert gaps.max() < 4 * 1000 / 11


@given(n_windows=counts)
def test_without_shuffle_the_order_is_natural(n_windows):
    for epoch in (0, 3):
        trial, window = epoch_of(plan_of(n_windows, shuffle="none"), epoch)
        want = [(t, w) for t, n in enumerate(n_windows) for w in range(n)]
        assert list(zip(trial.tolist(), window.tolist(), strict=True)) == want


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3),
    total=st.integers(0, 10**12),
)
def test_largest_remainder_adds_up(weights, total):
    weights = np.array(weights)
    quotas = largest_remainder(weights, total)
    assert quotas.sum() == total
    assert (quotas >= 0).all()
    assert not quotas[weights == 0].any()
    exact = weights / weights.sum() * total
    assert (np.abs(quotas - exact) <= 1 + 1e-9 * total).all()


@given(
    n_windows=counts,
    batch_size=st.integers(4, 70),
    world_size=st.sampled_from([1, 2, 3, 4]),
    n_workers=st.integers(1, 5),
    first=st.integers(0, 3),
)
def test_ranks_and_workers_divide_the_steps_exactly(
    n_windows, batch_size, world_size, n_workers, first
):
    plan = plan_of(n_windows, seed=3)
    n_steps = plan.n_steps(batch_size)
    steps = [worker_steps(first, n_steps, worker=w, n_workers=n_workers) for w in range(n_workers)]
    in_turn = [s for turn in range(n_steps + 1) for part in steps for s in part[turn : turn + 1]]
    assert in_turn == list(range(first, n_steps))
    shares = [rank_rows(batch_size, r, world_size) for r in range(world_size)]
    assert [a for a, _ in shares] == [0, *(b for _, b in shares[:-1])]
    assert shares[-1][1] == batch_size
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1
    positions = [
        s * batch_size + row
        for s in range(n_steps)
        for a, b in shares
        for row in range(a, b)
        if s * batch_size + row < plan.n_draws
    ]
    assert positions == list(range(plan.n_draws))


@given(n_windows=counts, batch_size=st.integers(1, 50), n_workers=st.integers(1, 7), data=st.data())
def test_blocks_do_not_show(n_windows, batch_size, n_workers, data, monkeypatch):
    """Nor does it show which steps a worker leaves out, or that a reader goes elsewhere."""
    plan = plan_of(n_windows, seed=9)
    whole = epoch_of(plan, 2)
    for name in ("BLOCK", "SHORT_BLOCK"):
        monkeypatch.setattr(epochorder, name, data.draw(st.integers(1, 40)))
    reader = EpochOrder(plan, 2, lambda trial, window: (trial, window))
    n_steps = plan.n_steps(batch_size)
    steps = list(range(data.draw(st.integers(0, 2)), n_steps, n_workers))
    steps += data.draw(st.lists(st.integers(0, n_steps - 1), max_size=4))
    for step in steps:
        first, last = step * batch_size, min(plan.n_draws, (step + 1) * batch_size)
        for got, want in zip(reader.read(first, last), whole, strict=True):
            assert np.array_equal(got, want[first:last])


@pytest.mark.parametrize("n_workers", [1, 2, 16])
def test_a_worker_evaluates_its_own_steps_alone(n_workers):
    plan = plan_of([300_000], seed=9)
    evaluated = []

    def resolve(trial, window):
        evaluated.append(len(trial))
        return trial, window

    reader = EpochOrder(plan, 0, resolve)
    steps = worker_steps(0, plan.n_steps(256), worker=n_workers - 1, n_workers=n_workers)
    for step in steps:
        reader.read(step * 256, min(plan.n_draws, (step + 1) * 256))
    assert sum(evaluated) <= len(steps) * 256 + epochorder.SHORT_BLOCK
    most = epochorder.BLOCK if n_workers == 1 else epochorder.SHORT_BLOCK
    assert max(evaluated) == most


@given(
    n_windows=st.lists(st.sampled_from([0, 1, 1, 1, 2, 5000]), min_size=1, max_size=300).filter(any)
)
def test_lookup_agrees_with_a_search(n_windows):
    plan = plan_of(n_windows, shuffle="none")
    trial, _ = epoch_of(plan, 0)
    assert np.array_equal(trial, np.repeat(np.arange(len(n_windows)), n_windows))


def test_a_plan_of_10_to_the_12_windows():
    n_windows = np.full(1_000_000, 1_000_000, np.int64)
    n_windows[:3] = 1, 0, 1_999_999
    for balance in ("window", "trial"):
        plan = plan_of(n_windows, balance, seed=1)
        assert plan.n_draws == n_windows.sum()
        at = plan.n_draws - 1000
        trial, window = plan.draws(5, at, plan.n_draws)
        assert (window >= 0).all()
        assert (window < n_windows[trial]).all()


def test_digest_tells_orders_apart():
    plans = [
        plan_of([5, 6]), plan_of([6, 5]), plan_of([5, 6], shuffle="none"),
        plan_of([1, 10], "trial"), plan_of([1, 10]),
    ]  # fmt: skip
    digests = [plan.digest({"batch_size": b}) for plan in plans for b in (4, 8)]
    assert len(set(digests)) == len(digests)
    assert plan_of([5, 6], seed=1).digest({}) == plan_of([5, 6], seed=2).digest({})


def test_balanced_quotas_refuse_a_trial_beyond_int64_products():
    with pytest.raises(InvalidSpecError, match="balance='window'"):
        EpochPlan(np.array([2**40, 1]), np.array([2**39, 2**39 + 1]), 0, "global")
