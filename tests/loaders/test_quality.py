"""The report on an order against brute force, and on orders whose quality is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders import quality
from loaders.blocks import BlockPlan
from loaders.groups import GroupPlan
from loaders.order import EpochPlan, largest_remainder
from loaders.quality import expected_distinct, rank_correlation, shuffle_quality

counts = st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(any)


def plan_of(n_windows, shuffle="global", balance="window", seed=0, per_block=50, pool_blocks=4):
    n = np.array(n_windows, np.int64)
    quotas = n if balance == "window" else largest_remainder(n > 0, int(n.sum()))
    if shuffle == "blocks":
        blocks = np.arange(len(n)) // per_block
        return BlockPlan(n, quotas, seed, blocks=blocks, pool_blocks=pool_blocks)
    return EpochPlan(n, quotas, seed, shuffle)


def exact_expectation(quotas, size):
    n = sum(quotas)
    return float(sum(1 - Fraction(math.comb(n - q, size), math.comb(n, size)) for q in quotas))


def slow_ranks(numbers):
    return [sum(b < a for b in numbers) + (1 + sum(b == a for b in numbers)) / 2 for a in numbers]


def slow_correlation(x, y):
    a, b = np.array(slow_ranks(x)), np.array(slow_ranks(y))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / scale if scale else 0.0


# The parts


@given(quotas=counts, data=st.data())
def test_the_expectation_is_the_hypergeometric_one(quotas, data):
    size = data.draw(st.integers(1, sum(quotas)))
    got = expected_distinct(np.array(quotas), size)
    assert got == pytest.approx(exact_expectation(quotas, size), rel=1e-9)


@given(quotas=counts, data=st.data())
def test_of_mean_draws_it_is_the_mean_of_epochs_with_one_more_or_less(quotas, data):
    more = data.draw(st.lists(st.sampled_from([0, 0.25, 0.5]), min_size=1, max_size=len(quotas)))
    means = np.array(quotas, float)
    means[: len(more)] += more
    means = np.append(means, 1 + math.ceil(sum(more)) - sum(more))  # their sum is whole
    size = data.draw(st.integers(1, sum(quotas)))
    n, want = int(means.sum()), 0.0
    for mean in means:
        low = int(mean)
        for q, share in ((low, 1 - mean + low), (low + 1, mean - low)):
            want += share * (1 - math.comb(n - q, size) / math.comb(n, size) if share else 0)
    assert expected_distinct(means, size) == pytest.approx(want, rel=1e-9)


def test_an_order_by_group_is_as_good_as_random():
    n_windows, groups = np.full(400, 50), (np.arange(400) % 8 == 0).astype(np.int64)
    plan = GroupPlan(n_windows, groups, np.array([10_000, 10_000]), 3)
    got = shuffle_quality(plan, 256, 1, np.arange(400))
    assert abs(got.distinct_share - 1) < 0.02
    assert abs(got.rank_correlation) < 0.05


@given(
    quotas=st.lists(st.sampled_from([1, 90, 500, 3000]), min_size=1, max_size=6),
    size=st.integers(1, 400),
)
@example(quotas=[3000, 1], size=400)
@example(quotas=[500, 500], size=400)
def test_the_expectation_is_exact_on_both_sides_of_its_change_of_method(quotas, size):
    size = min(size, sum(quotas))
    got = expected_distinct(np.array(quotas), size)
    assert got == pytest.approx(exact_expectation(quotas, size), rel=1e-9)


@pytest.mark.parametrize("size", [2, 256, 65_536])
@pytest.mark.parametrize("quota", [1, 1000, 10**6, 10**10])
def test_the_chance_of_a_trial_keeps_its_digits_at_10_to_the_12_draws(quota, size):
    """Where differences of ln(gamma) have none left."""
    n = 10**12
    want = math.fsum(np.log1p(-quota / (n - np.arange(size))).tolist())
    assert quality._log_missing(n, np.array([quota]), size)[0] == pytest.approx(want, rel=1e-4)
    if quota >= 10**6:
        alike = expected_distinct(np.full(n // quota, quota), size)
        assert alike == pytest.approx(n // quota * -math.expm1(want), rel=1e-6)


def test_the_expectation_is_what_shuffling_gives():
    quotas = np.array([1, 2, 3, 10, 40, 0, 100])
    draws = np.repeat(np.arange(7), quotas)
    random = np.random.default_rng(0)
    seen = [len(np.unique(random.permutation(draws)[:16])) for _ in range(4000)]
    error = np.std(seen) / np.sqrt(len(seen))
    assert abs(np.mean(seen) - expected_distinct(quotas, 16)) < 5 * error


@given(
    pairs=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=60),
)
@example(pairs=[(1, 1)])
@example(pairs=[(1, 5), (2, 5)])
def test_the_correlation_is_spearmans_with_shared_ranks(pairs):
    x, y = np.array(pairs).T
    assert rank_correlation(x, y) == pytest.approx(slow_correlation(x, y), abs=1e-12)


# The whole


@given(
    n_windows=counts,
    batch_size=st.integers(1, 80),
    shuffle=st.sampled_from(["global", "blocks", "none"]),
    balance=st.sampled_from(["window", "trial"]),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_an_epoch_seen_as_a_whole_agrees_with_brute_force(
    n_windows, batch_size, shuffle, balance, seed, data
):
    plan = plan_of(n_windows, shuffle, balance, seed, per_block=3, pool_blocks=2)
    storage = np.array(data.draw(st.permutations(range(len(n_windows))))) * 7
    got = shuffle_quality(plan, batch_size, 3, storage)
    size = min(batch_size, plan.n_draws)
    trial, window = (column.tolist() for column in plan.draws(3, 0, plan.n_draws))
    batches = [trial[i : i + size] for i in range(0, plan.n_draws - size + 1, size)]
    read = len(batches) * size
    rows = [(storage[t], w) for t, w in zip(trial[:read], window[:read], strict=True)]
    assert got.n_batches == len(batches)
    assert got.distinct_trials == pytest.approx(np.mean([len(set(b)) for b in batches]))
    assert got.expected_trials == pytest.approx(exact_expectation(plan.quotas.tolist(), size))
    want = slow_correlation(range(read), rows) if read < 300 else got.rank_correlation
    assert got.rank_correlation == pytest.approx(want, abs=1e-12)
    assert got.distinct_share == pytest.approx(got.distinct_trials / got.expected_trials)


@given(
    n_batches=st.integers(1, 10**9),
    budget=st.integers(1, 10**6),
    epoch=st.integers(0, 100),
)
@example(n_batches=201, budget=200, epoch=0)
def test_stretches_lie_apart_within_the_epoch_and_keep_to_the_budget(n_batches, budget, epoch):
    first, last = quality._stretches(n_batches, budget, epoch)
    assert first[0] >= 0
    assert last[-1] <= n_batches
    assert (first < last).all()
    assert (first[1:] >= last[:-1]).all()
    assert len(first) <= quality.MOST_STRETCHES
    assert budget / 2 < (last - first).sum() <= budget or (last - first).sum() == n_batches


@pytest.mark.parametrize("balance", ["window", "trial"])
@pytest.mark.parametrize("max_draws", [60_000, 1_000_000])
def test_global_is_as_good_as_random_none_is_far_from_it_and_blocks_lie_between(balance, max_draws):
    n_windows = 20 + np.arange(4000) % 61
    got = {
        shuffle: shuffle_quality(
            plan_of(n_windows, shuffle, balance), 256, 1, np.arange(4000), max_draws=max_draws
        )
        for shuffle in ("global", "blocks", "none")
    }
    assert got["global"].distinct_share == pytest.approx(1, abs=0.01)
    assert abs(got["global"].rank_correlation) < 0.02
    assert got["none"].distinct_share < 0.1
    assert got["none"].rank_correlation > 0.99
    assert got["none"].distinct_share < got["blocks"].distinct_share < 0.9
    assert got["blocks"].distinct_share > 0.4
    assert abs(got["blocks"].rank_correlation) < 0.5


def test_larger_pools_mix_better():
    n_windows = np.full(2000, 50)
    shares = [
        shuffle_quality(
            plan_of(n_windows, "blocks", per_block=20, pool_blocks=pool), 256, 0, np.arange(2000)
        ).distinct_share
        for pool in (1, 4, 16, 100)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.15
    assert shares[-1] == pytest.approx(1, abs=0.01)


def test_storage_against_the_order_of_ids_turns_the_correlation_round():
    plan = plan_of(np.full(500, 1), "none")
    assert shuffle_quality(plan, 10, 0, np.arange(500)).rank_correlation == pytest.approx(1)
    assert shuffle_quality(plan, 10, 0, -np.arange(500)).rank_correlation == pytest.approx(-1)


def test_of_10_to_the_12_draws_it_looks_at_as_many_as_allowed(monkeypatch):
    plan = plan_of(np.full(1_000_000, 1_000_000))
    looked = []

    def draws(self, epoch, first, last):
        looked.append(last - first)
        return whole(self, epoch, first, last)

    whole = EpochPlan.draws
    monkeypatch.setattr(EpochPlan, "draws", draws)
    got = shuffle_quality(plan, 256, 0, np.arange(1_000_000), max_draws=100_000)
    assert 50_000 < sum(looked) <= 100_000
    assert len(looked) <= quality.MOST_STRETCHES
    assert got.n_batches * 256 == sum(looked)
    assert got.distinct_share == pytest.approx(1, abs=1e-3)
    assert abs(got.rank_correlation) < 5 / np.sqrt(sum(looked))
