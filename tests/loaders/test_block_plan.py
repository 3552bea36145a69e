"""The order of blocks as arithmetic: no files, no torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders import epochorder
from loaders.blocks import BlockPlan
from loaders.epochorder import EpochOrder
from loaders.order import EpochPlan, largest_remainder
from shards import InvalidSpecError

seeds = st.integers(0, 2**63 - 1)


def quotas_of(n_windows, balance):
    n = np.array(n_windows, np.int64)
    if balance == "window":
        return n
    return largest_remainder(n > 0 if balance == "trial" else np.sqrt(n), int(n.sum()))


def plan_of(n_windows, blocks, pool_blocks=2, balance="window", seed=0):
    n = np.array(n_windows, np.int64)
    quotas = n if balance == "window" else quotas_of(n, balance)
    return BlockPlan(n, quotas, seed, blocks=np.array(blocks, np.int64), pool_blocks=pool_blocks)


@st.composite
def plans(draw):
    trials = draw(
        st.lists(
            st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 2, 3, 4, 7, 8, 10**12])),
            min_size=1,
            max_size=30,
        ).filter(lambda trials: any(n for n, _ in trials))
    )
    n_windows, blocks = zip(*trials, strict=True)
    balance = draw(st.sampled_from(["window", "trial", "sqrt"]))
    return plan_of(n_windows, blocks, draw(st.integers(1, 5)), balance, draw(seeds))


def epoch_of(plan, epoch):
    return plan.draws(epoch, 0, plan.n_draws)


def pairs(draws):
    trial, window = draws
    return list(zip(trial.tolist(), window.tolist(), strict=True))


@given(plan=plans(), epoch=st.integers(0, 1000))
@example(plan=plan_of([1], [5]), epoch=0)
def test_an_epoch_holds_the_draws_of_the_global_order(plan, epoch):
    """And thereby each exactly once, in each balance."""
    whole = EpochPlan(plan.n_windows, plan.quotas, plan.seed, "global")
    assert plan.n_draws == whole.n_draws
    assert plan.n_steps(7) == whole.n_steps(7)
    assert sorted(pairs(epoch_of(plan, epoch))) == sorted(pairs(epoch_of(whole, epoch)))


@given(
    n_windows=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    seed=seeds,
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_every_window_comes_once_per_epoch(n_windows, seed, epoch, data):
    blocks = data.draw(
        st.lists(st.integers(0, 9), min_size=len(n_windows), max_size=len(n_windows))
    )
    got = sorted(pairs(epoch_of(plan_of(n_windows, blocks, seed=seed), epoch)))
    assert got == [(t, w) for t, n in enumerate(n_windows) for w in range(n)]


@given(plan=plans())
def test_no_window_returns_before_the_others_of_its_trial_came(plan):
    seen = [np.zeros(n, int) for n in plan.n_windows]
    for epoch in range(4):
        trial, window = epoch_of(plan, epoch)
        assert np.array_equal(np.bincount(trial, minlength=len(seen)), plan.quotas)
        for t, w in zip(trial, window, strict=True):
            seen[t][w] += 1
        assert all(np.ptp(s) <= 1 for s in seen if len(s))


@given(plan=plans(), epoch=st.integers(0, 1000))
def test_a_pool_draws_all_of_its_blocks_and_nothing_else(plan, epoch):
    trial, _ = epoch_of(plan, epoch)
    pools = plan.pools(epoch)
    assert pools[0].first == 0
    assert pools[-1].last == plan.n_draws
    for pool in pools:
        drawn = plan.blocks[trial[pool.first : pool.last]]
        assert set(drawn.tolist()) == set(pool.blocks.tolist())
        whole = plan.quotas[np.isin(plan.blocks, pool.blocks)].sum()
        assert pool.last - pool.first == whole


@given(plan=plans(), epoch=st.integers(0, 1000))
def test_pools_share_out_the_blocks_that_have_draws(plan, epoch):
    pools = plan.pools(epoch)
    blocks = np.concatenate([pool.blocks for pool in pools])
    assert np.array_equal(np.sort(blocks), np.unique(plan.blocks[plan.quotas > 0]))
    assert all(len(pool.blocks) == plan.pool_blocks for pool in pools[:-1])
    assert 1 <= len(pools[-1].blocks) <= plan.pool_blocks
    assert all(a.last == b.first for a, b in pairwise(pools))
    for position in range(plan.n_draws):
        pool = pools[plan.pool_of(epoch, position)]
        assert pool.first <= position < pool.last


@given(plan=plans(), epochs=st.lists(st.integers(0, 3), min_size=1, max_size=8), data=st.data())
def test_any_range_of_any_epoch_is_a_part_of_the_whole(plan, epochs, data):
    """Whatever was asked for before: tables of an epoch come and go."""
    wholes = {epoch: epoch_of(fresh(plan), epoch) for epoch in set(epochs)}
    for epoch in epochs:
        first = data.draw(st.integers(0, plan.n_draws))
        last = data.draw(st.integers(first, plan.n_draws))
        for got, want in zip(plan.draws(epoch, first, last), wholes[epoch], strict=True):
            assert np.array_equal(got, want[first:last])
        assert len(plan._kept) <= 2


def fresh(plan):
    return BlockPlan(
        plan.n_windows, plan.quotas, plan.seed, blocks=plan.blocks, pool_blocks=plan.pool_blocks
    )


@given(plan=plans(), size=st.integers(1, 50), data=st.data())
def test_an_epoch_is_read_in_batches_as_any_other_order(plan, size, data, monkeypatch):
    for name in ("BLOCK", "SHORT_BLOCK"):
        monkeypatch.setattr(epochorder, name, data.draw(st.integers(1, 40)))
    reader = EpochOrder(plan, 2, lambda trial, window: (trial, window))
    whole = epoch_of(plan, 2)
    first, every = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 4))
    for step in range(first, plan.n_steps(size), every):
        first, last = step * size, min(plan.n_draws, (step + 1) * size)
        for got, want in zip(reader.read(first, last), whole, strict=True):
            assert np.array_equal(got, want[first:last])


@given(plan=plans(), numbers=st.lists(st.integers(0, 10**9), min_size=8, max_size=8, unique=True))
def test_only_which_trials_share_a_block_counts(plan, numbers):
    """And the order of the numbers: gaps, and blocks without draws, change nothing."""
    rename = dict(zip(np.unique(plan.blocks).tolist(), sorted(numbers), strict=False))
    blocks = np.array([rename[b] for b in plan.blocks.tolist()])
    idle = max(numbers) + 1
    renamed = BlockPlan(
        np.append(plan.n_windows, 0), np.append(plan.quotas, 0), plan.seed,
        blocks=np.append(blocks, idle), pool_blocks=plan.pool_blocks,
    )  # fmt: skip
    assert pairs(epoch_of(renamed, 3)) == pairs(epoch_of(plan, 3))


@given(seed=seeds, epoch=st.integers(0, 10**6))
def test_epochs_and_seeds_differ_and_the_same_is_the_same(seed, epoch):
    n_windows, blocks = [20] * 24, np.arange(24) // 2
    got = [
        pairs(epoch_of(plan_of(n_windows, blocks, 3, seed=s), e))
        for s, e in [(seed, epoch), (seed, epoch), (seed, epoch + 1), (seed + 1, epoch)]
    ]
    assert got[0] == got[1]
    assert got[0] != got[2]
    assert got[0] != got[3]


def test_order_is_pinned():
    """Checkpoints of shuffle='blocks' hold (seed, epoch, step) and rely on these for ever."""
    blocks = [2, 0, 0, 1, 3, 2]
    plan = plan_of([5, 0, 3, 9, 2, 1], blocks, 2, seed=7)
    assert [(p.first, p.last, p.blocks.tolist()) for p in plan.pools(0)] == [
        (0, 9, [0, 2]),
        (9, 20, [1, 3]),
    ]
    trial, window = epoch_of(plan, 0)
    assert trial.tolist() == [2, 2, 2, 0, 0, 0, 0, 0, 5, 3, 3, 4, 3, 3, 3, 3, 3, 3, 3, 4]
    assert window.tolist() == [2, 1, 0, 2, 3, 1, 0, 4, 0, 0, 4, 0, 2, 7, 3, 8, 1, 6, 5, 1]
    trial, window = epoch_of(plan_of([5, 0, 3, 9, 2, 1], blocks, 2, "trial", 7), 2)
    assert trial.tolist() == [5, 5, 0, 5, 3, 0, 3, 0, 3, 3, 5, 0, 2, 4, 4, 4, 2, 2, 4, 2]
    assert window.tolist() == [0, 0, 4, 0, 8, 4, 1, 2, 5, 3, 0, 1, 1, 1, 1, 0, 2, 0, 0, 1]


def test_the_order_within_a_pool_looks_random():
    """Correlation with storage, serial correlation, and that of two pools, within 5 sigma."""
    n_windows = np.full(4000, 25)
    plan = plan_of(n_windows, np.arange(4000) // 100, 8, seed=3)
    first_slot = np.arange(4000) * 25
    for epoch in range(3):
        trial, window = epoch_of(plan, epoch)
        slot = (first_slot[trial] + window).astype(float)
        inside = []
        for pool in plan.pools(epoch):
            rank = np.argsort(np.argsort(slot[pool.first : pool.last])).astype(float)
            limit = 5 / np.sqrt(len(rank))
            assert abs(np.corrcoef(np.arange(len(rank)), rank)[0, 1]) < limit
            for lag in (1, 2, 64):
                assert abs(np.corrcoef(rank[:-lag], rank[lag:])[0, 1]) < limit
            inside.append(rank)
        assert len(inside) == 5
        for i, a in enumerate(inside):
            assert all(abs(np.corrcoef(a, b)[0, 1]) < limit for b in inside[:i])


def test_blocks_meet_each_other_equally_often():
    """And come first equally often: 3,000 epochs of 12 blocks in pools of 3, within 5 sigma."""
    n_blocks, size, n_epochs = 12, 3, 3000
    plan = plan_of([1] * n_blocks, range(n_blocks), size, seed=1)
    met = np.zeros((n_blocks, n_blocks))
    opened = np.zeros(n_blocks)
    for epoch in range(n_epochs):
        for pool in plan.pools(epoch):
            met[np.ix_(pool.blocks, pool.blocks)] += 1
        opened[plan.pools(epoch)[0].blocks[0]] += 1
    for counts, p in [
        (met[~np.eye(n_blocks, dtype=bool)], (size - 1) / (n_blocks - 1)),
        (opened, 1 / n_blocks),
    ]:
        assert (np.abs(counts - n_epochs * p) < 5 * np.sqrt(n_epochs * p * (1 - p))).all()


def test_a_pool_of_all_blocks_is_as_good_as_the_global_order():
    plan = plan_of([30] * 200, np.arange(200) // 5, 40, seed=5)
    trial, window = epoch_of(plan, 0)
    assert len(plan.pools(0)) == 1
    slot = trial * 30 + window
    limit = 5 / np.sqrt(len(slot))
    assert abs(np.corrcoef(np.arange(len(slot)), slot)[0, 1]) < limit
    assert abs(np.corrcoef(slot[:-1], slot[1:])[0, 1]) < limit


def test_pools_of_10_to_the_12_windows_cost_what_their_trials_cost():
    n_windows = np.full(1_000_000, 1_000_000, np.int64)
    n_windows[:3] = 1, 0, 1_999_999
    for balance in ("window", "trial"):
        plan = plan_of(n_windows, np.arange(1_000_000)[::-1] // 50, 16, balance, 1)
        at = plan.pools(5)[-1].first - 500  # a range across the border of two pools
        trial, window = plan.draws(5, at, at + 1000)
        assert (window >= 0).all()
        assert (window < n_windows[trial]).all()
        before, after = (plan.pools(5)[plan.pool_of(5, p)] for p in (at, at + 999))
        assert np.isin(plan.blocks[trial[:500]], before.blocks).all()
        assert np.isin(plan.blocks[trial[500:]], after.blocks).all()


def test_the_digest_holds_blocks_and_pools():
    n = np.array([5, 6, 7])
    variants = [
        plan_of(n, [0, 0, 1]), plan_of(n, [0, 1, 1]), plan_of(n, [0, 0, 1], 3),
        plan_of([5, 7, 6], [0, 0, 1]), plan_of(n, [0, 0, 1], balance="trial"),
        EpochPlan(n, n, 0, "global"), EpochPlan(n, n, 0, "blocks"),
    ]  # fmt: skip
    digests = [plan.digest({"batch_size": b}) for plan in variants for b in (4, 8)]
    assert len(set(digests)) == len(digests)
    assert plan_of(n, [0, 0, 1], seed=1).digest({}) == plan_of(n, [0, 0, 1], seed=2).digest({})


def test_wrong_blocks_and_pools_are_refused_with_advice():
    with pytest.raises(InvalidSpecError, match=r"blocks has shape \(2,\); wanted \(3,\)"):
        plan_of([1, 2, 3], [0, 1])
    with pytest.raises(InvalidSpecError, match="pool_blocks is 0; wanted an integer of at least 1"):
        plan_of([1, 2], [0, 1], 0)
    with pytest.raises(InvalidSpecError, match="balance='window'"):
        BlockPlan(
            np.array([2**40, 1]), np.array([2**39, 2**39 + 1]), 0,
            blocks=np.array([0, 1]), pool_blocks=2,
        )  # fmt: skip
