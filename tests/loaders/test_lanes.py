"""Law 8 as arithmetic: no files, no torch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.blocks import BlockPlan
from loaders.lanes import LanePlan, best_lanes
from loaders.order import EpochPlan, rank_rows

trials = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=25).filter(
    lambda pairs: any(quota for _, quota in pairs)
)
n_lanes = st.integers(1, 9)
chunks = st.integers(1, 20)
shuffles = st.sampled_from(["global", "none", "blocks"])


def plan_of(pairs, lanes, chunk, shuffle="global", seed=0):
    lengths, quotas = np.array(pairs, np.int64).reshape(-1, 2).T
    once = (quotas > 0).astype(np.int64)
    if shuffle == "blocks":
        blocks = np.arange(len(lengths)) // 3
        passes = BlockPlan(once, quotas, seed, blocks=blocks, pool_blocks=2)
    else:
        passes = EpochPlan(once, quotas, seed, shuffle)
    return LanePlan(passes, np.where(quotas > 0, lengths, 0), lanes, chunk)


def once_each(lengths, lanes, chunk, shuffle="global", seed=0):
    return plan_of([(length, 1) for length in lengths], lanes, chunk, shuffle, seed)


def steps_of(plan, epoch):
    laid = plan.epoch(epoch)
    return [laid.rows(step, 0, plan.n_lanes) for step in range(laid.n_steps)]


def passes_of(plan, epoch):
    """Read all steps; returns (trial, first step, lane) of each pass."""
    return [
        (int(rows.trial[lane]), step, lane)
        for step, rows in enumerate(steps_of(plan, epoch))
        for lane in np.flatnonzero(rows.reset).tolist()
    ]


def simulated(order, spans, lanes):
    """Law 8 word for word, one step after the other; what `passes_of` should return."""
    fewest = max(max(spans), -(-sum(spans) // lanes))
    waiting, busy, placed, step = list(range(len(order))), [0] * lanes, [], 0
    while waiting or any(busy):
        for lane in range(lanes):
            if waiting and not busy[lane]:
                longest = max(waiting, key=lambda p: (spans[p], -p))
                chosen = waiting[0] if step + spans[longest] < fewest else longest
                waiting.remove(chosen)
                busy[lane] = spans[chosen]
                placed.append((order[chosen], step, lane))
        busy = [max(0, left - 1) for left in busy]
        step += 1
    return placed, step


def test_lane_order_is_pinned():
    """Checkpoints hold (seed, epoch, step) and states by lane; both rely on these for ever."""
    plan = plan_of([(5, 1), (9, 2), (0, 0), (20, 1), (3, 1), (7, 1), (1, 2)], 3, 4, seed=7)
    # In the order 0 1 5 6 1 3 4 6, but trial 3 may not wait: S* is 6.
    assert [rows.trial.tolist() for rows in steps_of(plan, 2)] == [
        [0, 1, 5], [0, 1, 5], [3, 1, 6], [3, 1, 4], [3, 1, 6], [3, 1, -1], [3, -1, -1],
    ]  # fmt: skip
    assert [rows.start.tolist() for rows in steps_of(plan, 2)] == [
        [0, 0, 0], [4, 4, 4], [0, 8, 0], [4, 0, 0], [8, 4, 0], [12, 8, 0], [16, 0, 0],
    ]  # fmt: skip


@given(pairs=trials, lanes=n_lanes, chunk=chunks, shuffle=shuffles, epoch=st.integers(0, 50))
def test_lanes_follow_the_rule_step_by_step(pairs, lanes, chunk, shuffle, epoch):
    plan = plan_of(pairs, lanes, chunk, shuffle)
    order = plan.passes.draws(epoch, 0, plan.passes.n_draws)[0].tolist()
    spans = [-(-int(plan.lengths[trial]) // chunk) for trial in order]
    placed, n_steps = simulated(order, spans, lanes)
    assert passes_of(plan, epoch) == placed
    assert plan.epoch(epoch).n_steps == n_steps


@given(pairs=trials, lanes=n_lanes, chunk=chunks, shuffle=shuffles, epoch=st.integers(0, 50))
def test_every_pass_is_walked_once_by_one_lane_from_its_first_row_to_its_last(
    pairs, lanes, chunk, shuffle, epoch
):
    plan = plan_of(pairs, lanes, chunk, shuffle)
    walked, current = Counter(), [(-1, 0)] * lanes  # (trial, rows walked) of each lane
    for rows in steps_of(plan, epoch):
        assert rows.length == chunk
        assert {len(column) for column in (rows.trial, rows.start, rows.n_rows, rows.reset)} == {
            lanes
        }
        for lane, (trial, start, n_rows, reset) in enumerate(
            zip(*(column.tolist() for column in (rows[0], rows[1], rows[2], rows[4])), strict=True)
        ):
            before, done = current[lane]
            finished = before < 0 or done == plan.lengths[before]
            if trial < 0:
                assert (start, n_rows, reset) == (0, 0, False)
                assert finished
                current[lane] = (-1, 0)
                continue
            assert reset == finished
            assert (reset and start == 0) or (trial, start) == (before, done)
            assert n_rows == min(chunk, plan.lengths[trial] - start)
            current[lane] = (trial, start + n_rows)
            walked[trial] += start + n_rows == plan.lengths[trial]
    assert all(trial < 0 or done == plan.lengths[trial] for trial, done in current)
    assert [walked[trial] for trial in range(len(pairs))] == plan.passes.quotas.tolist()


@given(pairs=trials, lanes=st.integers(4, 9), chunk=chunks, world_size=st.integers(1, 4))
def test_the_lanes_of_all_ranks_are_the_lanes_of_the_step(pairs, lanes, chunk, world_size):
    plan = plan_of(pairs, lanes, chunk)
    shares = [rank_rows(lanes, rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(steps_of(plan, 0)):
        parts = [plan.epoch(0).rows(step, *share) for share in shares]
        assert {part.length for part in parts} == {whole.length}
        for name in ("trial", "start", "n_rows", "reset"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tolist() == getattr(whole, name).tolist()
            assert joined.dtype == getattr(whole, name).dtype


@given(pairs=trials, lanes=n_lanes, chunk=chunks, epoch=st.integers(0, 5))
def test_an_epoch_has_less_than_twice_the_fewest_steps_and_says_how_full_it_is(
    pairs, lanes, chunk, epoch
):
    plan = plan_of(pairs, lanes, chunk)
    laid, steps = plan.epoch(epoch), steps_of(plan, epoch)
    spans = [-(-length // chunk) for length, quota in pairs for _ in range(quota)]
    fewest = max(max(spans), -(-sum(spans) // lanes))
    assert fewest <= laid.n_steps < sum(spans) / lanes + max(spans)
    assert (steps[-1].trial >= 0).any()
    slots = lanes * laid.n_steps
    n_rows = sum(length * quota for length, quota in pairs)
    assert laid.fill.chunks == sum(int((rows.trial >= 0).sum()) for rows in steps) / slots
    assert laid.fill.rows == sum(int(rows.n_rows.sum()) for rows in steps) / (slots * chunk)
    assert laid.bound == (sum(spans) / (lanes * fewest), n_rows / (lanes * fewest * chunk))


@pytest.mark.parametrize(
    "lengths",
    [
        np.random.default_rng(1).integers(500, 4001, 2000),
        np.clip(np.random.default_rng(2).lognormal(6.5, 1.0, 2000), 20, 50_000).astype(np.int64),
        np.clip(np.random.default_rng(3).lognormal(3.66, 0.45, 20_000), 8, 336).astype(np.int64),
    ],
    ids=["uniform", "long tail", "hospital stays"],
)
@pytest.mark.parametrize(("lanes", "chunk"), [(256, 128), (64, 64), (256, 24)])
def test_lanes_are_full_and_long_trials_come_neither_early_nor_late(lengths, lanes, chunk):
    plan = once_each(lengths, lanes, chunk)
    correlations = []
    for epoch in range(5):
        laid = plan.epoch(epoch)
        assert laid.fill.chunks >= 0.977 * laid.bound.chunks
        first = laid.begins % laid.n_steps
        correlations.append(np.corrcoef(first, lengths[laid.trial])[0, 1])
    assert abs(np.mean(correlations)) < 0.1  # -0.98 where the longest go first


@given(pairs=trials, lanes=n_lanes, chunk=chunks, shuffle=shuffles)
def test_the_same_plan_gives_the_same_lanes_whatever_was_asked_before(pairs, lanes, chunk, shuffle):
    one, other = (plan_of(pairs, lanes, chunk, shuffle) for _ in range(2))
    in_turn = [passes_of(one, epoch) for epoch in range(4)]
    assert [passes_of(other, epoch) for epoch in (3, 2, 1, 0)][::-1] == in_turn
    assert passes_of(one, 0) == in_turn[0]
    if shuffle == "none":
        assert all(passes == in_turn[0] for passes in in_turn)


def test_an_epoch_is_laid_out_once_while_two_are_read():
    plan = once_each(range(1, 40), 3, 5)
    first, second = plan.epoch(0), plan.epoch(1)
    assert plan.epoch(0) is first
    assert plan.epoch(1) is second
    plan.epoch(2)
    assert plan.epoch(1) is second
    assert plan.epoch(0) is not first


def test_epochs_and_seeds_give_other_orders():
    lengths = np.random.default_rng(0).integers(1, 200, 300)
    orders = [
        tuple(passes_of(once_each(lengths, 8, 16, seed=seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_more_lanes_than_trials_leave_the_highest_lanes_empty():
    first, *_, last = steps_of(once_each([3, 30, 9], 5, 4, "none"), 0)
    assert first.trial[3:].tolist() == [-1, -1]
    assert sorted(first.trial[:3].tolist()) == [0, 1, 2]
    assert sorted(last.trial.tolist()) == [-1, -1, -1, -1, 1]


def test_no_passes_make_no_steps():
    plan = plan_of([(4, 0), (5, 0)], 3, 2)
    assert plan.epoch(0).n_steps == 0
    assert plan.epoch(0).fill == plan.epoch(0).bound == (1.0, 1.0)


def test_an_epoch_of_many_trials_holds_two_integers_for_each():
    laid = once_each(np.random.default_rng(0).integers(20, 400, 100_000), 256, 24).epoch(3)
    assert laid.trial.nbytes + laid.begins.nbytes == 16 * 100_000
    assert sorted(laid.trial.tolist()) == list(range(100_000))


def test_the_best_number_of_lanes_leaves_none_empty():
    lengths = np.full(12, 30)
    choices = best_lanes(lengths, 32, [5, 6, 7, 4, 6])
    assert [tuple(choice) for choice in choices] == [
        (6, 2, 1.0, 1.0), (4, 3, 1.0, 1.0), (7, 2, 12 / 14, 12 / 14), (5, 3, 12 / 15, 12 / 15),
    ]  # fmt: skip
    assert best_lanes(lengths[:0], 32, [5]) == [(5, 0, 1.0, 1.0)]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    chunk=chunks,
    candidates=st.sets(n_lanes, min_size=1),
)
def test_the_best_numbers_of_lanes_come_fullest_first(lengths, chunk, candidates):
    choices = best_lanes(np.array(lengths), chunk, candidates)
    assert {choice.n_lanes for choice in choices} == candidates
    assert sorted(choices, key=lambda choice: choice.fill, reverse=True) == choices
    spans = [-(-length // chunk) for length in lengths]
    for lanes, n_steps, fill, bound in choices:
        assert bound == once_each(lengths, lanes, chunk).epoch(0).bound.chunks
        assert fill == sum(spans) / (lanes * n_steps)
        assert max(max(spans), -(-sum(spans) // lanes)) <= n_steps < sum(spans) / lanes + max(spans)
