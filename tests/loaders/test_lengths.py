"""Batches of like length as arithmetic: no files, no torch."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders.blocks import BlockPlan
from loaders.lengths import LengthPlan
from loaders.order import EpochPlan, rank_rows

trials = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=40).filter(
    lambda pairs: any(quota for _, quota in pairs)
)
lengths_of_all = st.lists(st.integers(1, 60), min_size=1, max_size=60)
sizes = st.integers(1, 9)
bounds = st.sampled_from([0.0, 0.02, 0.1, 0.25, 0.5, 1.0])
shuffles = st.sampled_from(["global", "none", "blocks"])
epochs = st.integers(0, 50)


def plan_of(pairs, batch_size, max_padding=0.1, shuffle="global", seed=0):
    lengths, quotas = np.array(pairs, np.int64).reshape(-1, 2).T
    once = (quotas > 0).astype(np.int64)
    if shuffle == "blocks":
        blocks = np.arange(len(lengths)) // 3
        passes = BlockPlan(once, quotas, seed, blocks=blocks, pool_blocks=2)
    else:
        passes = EpochPlan(once, quotas, seed, shuffle)
    return LengthPlan(passes, lengths, lengths % 7, batch_size, max_padding)


def once_each(lengths, batch_size, max_padding=0.1, shuffle="global", seed=0):
    pairs = [(length, 1) for length in lengths]
    return plan_of(pairs, batch_size, max_padding, shuffle, seed)


def steps_of(plan, epoch):
    cut = plan.epoch(epoch)
    return [cut.rows(step, 0, plan.batch_size) for step in range(cut.n_steps)]


def trials_of(plan, epoch):
    return [rows.trial[rows.trial >= 0].tolist() for rows in steps_of(plan, epoch)]


def padding_of(batches):
    slots = sum(len(batch) * max(batch) for batch in batches)
    return (slots - sum(map(sum, batches))) / slots


def cuts(lengths, batch_size, pool_size):
    """All ways to cut pools that are sorted, the short batch at each place of the last one."""
    pools = [sorted(lengths[i : i + pool_size]) for i in range(0, len(lengths), pool_size)]
    batches = [
        pool[i : i + batch_size] for pool in pools[:-1] for i in range(0, pool_size, batch_size)
    ]
    last, rest = pools[-1], len(lengths) % batch_size
    for place in range(0, len(last) - rest + 1, batch_size) if rest else [len(last)]:
        left = last[:place] + last[place + rest :]
        yield [
            *batches,
            *([last[place : place + rest]] if rest else []),
            *(left[i : i + batch_size] for i in range(0, len(left), batch_size)),
        ]


def fewest_slots(lengths, batch_size):
    """Row slots of the best of all ways to form batches, at most one of them short."""
    if not lengths:
        return 0
    rest, best = len(lengths) % batch_size, []
    for size in {batch_size, rest} - {0}:
        if size > len(lengths):
            continue
        # The longest trial is in some batch, full or short: whom does it take along?
        for others in combinations(range(len(lengths) - 1), size - 1):
            left = [lengths[i] for i in range(len(lengths) - 1) if i not in others]
            best.append(size * lengths[-1] + fewest_slots(left, batch_size))
    return min(best)


def test_order_of_whole_trials_is_pinned():
    """Every checkpoint holds (seed, epoch, step) and relies on these numbers for ever."""
    pairs = [(5, 1), (90, 1), (20, 2), (33, 0), (7, 1), (60, 1), (19, 1), (61, 1), (4, 2), (88, 1)]
    plan = plan_of(pairs, 3, 0.2, seed=7)  # passes in the order 0 8 1 9 4 7 | 6 2 2 8 5
    assert plan.epoch(2).pool_batches == 2
    assert [rows.trial.tolist() for rows in steps_of(plan, 2)] == [
        [0, 8, 4], [1, 9, 7], [6, 2, 8], [2, 5, -1],
    ]  # fmt: skip
    assert [rows.length for rows in steps_of(plan, 2)] == [7, 90, 20, 60]
    whole = once_each(range(100, 142), 4, 0.0, seed=7).epoch(1)
    assert whole.pool_batches == 16
    assert whole.longest.tolist() == [109, 141, 105, 117, 125, 137, 133, 113, 129, 121, 101]
    assert whole.trial[:12].tolist() == [9, 8, 7, 6, 39, 40, 41, 38, 3, 4, 5, 2]


@given(pairs=trials, size=sizes, bound=bounds, shuffle=shuffles, epoch=epochs)
def test_every_pass_comes_once_and_whole(pairs, size, bound, shuffle, epoch):
    plan = plan_of(pairs, size, bound, shuffle)
    steps = steps_of(plan, epoch)
    n_passes = sum(quota for _, quota in pairs)
    assert len(steps) == -(-n_passes // size)
    trial, start, n_rows = (
        np.concatenate([getattr(rows, name) for rows in steps])
        for name in ("trial", "start", "n_rows")
    )
    assert trial.dtype == start.dtype == n_rows.dtype == np.int64
    # Full steps first; filler rows are the end of the last one.
    assert (trial[:n_passes] >= 0).all()
    assert (trial[n_passes:] == -1).all()
    assert len(trial) == size * len(steps)
    assert not start[n_passes:].any()
    assert not n_rows[n_passes:].any()
    delivered = trial[:n_passes]
    assert np.bincount(delivered, minlength=len(pairs)).tolist() == plan.passes.quotas.tolist()
    assert n_rows[:n_passes].tolist() == plan.lengths[delivered].tolist()
    assert start[:n_passes].tolist() == plan.starts[delivered].tolist()
    for rows in steps:
        assert rows.length == rows.n_rows.max()
        assert rows.reset is None


@given(pairs=trials, size=st.integers(4, 9), bound=bounds, world_size=st.integers(1, 4))
def test_the_rows_of_all_ranks_are_the_rows_of_the_step(pairs, size, bound, world_size):
    plan = plan_of(pairs, size, bound)
    shares = [rank_rows(size, rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(steps_of(plan, 0)):
        parts = [plan.epoch(0).rows(step, *share) for share in shares]
        assert {part.length for part in parts} == {whole.length}
        for name in ("trial", "start", "n_rows"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tolist() == getattr(whole, name).tolist()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    size=st.integers(1, 4),
    bound=bounds,
    shuffle=shuffles,
    epoch=epochs,
)
@example(lengths=[8, 8, 8, 1, 1], size=3, bound=0.0, shuffle="global", epoch=0)
def test_padding_is_below_its_bound_wherever_any_batches_would_be(
    lengths, size, bound, shuffle, epoch
):
    plan = once_each(lengths, size, bound, shuffle)
    got = plan.epoch(epoch).padding
    assert got == padding_of([[lengths[t] for t in batch] for batch in trials_of(plan, epoch)])
    slots = fewest_slots(sorted(lengths), size)
    least = (slots - sum(lengths)) / slots
    assert got <= bound or got == least


@given(lengths=lengths_of_all, size=sizes, bound=bounds, shuffle=shuffles, epoch=epochs)
def test_no_smaller_pool_would_do(lengths, size, bound, shuffle, epoch):
    plan = once_each(lengths, size, bound, shuffle)
    order = plan.passes.draws(epoch, 0, len(lengths))[0]
    in_order = [lengths[trial] for trial in order]
    pool, got = plan.epoch(epoch).pool_batches, plan.epoch(epoch).padding
    assert got <= bound or pool * size >= len(lengths)
    paddings = {padding_of(cut) for cut in cuts(in_order, size, pool * size)}
    assert got in paddings
    while pool > 1:
        pool //= 2
        assert all(padding_of(cut) > bound for cut in cuts(in_order, size, pool * size))


@given(lengths=lengths_of_all, size=sizes, bound=bounds, shuffle=shuffles, epoch=epochs)
def test_batches_stay_in_their_pool_and_rows_in_the_order_of_the_passes(
    lengths, size, bound, shuffle, epoch
):
    plan = once_each(lengths, size, bound, shuffle)
    order = plan.passes.draws(epoch, 0, len(lengths))[0].tolist()
    pool = plan.epoch(epoch).pool_batches * size
    for step, batch in enumerate(trials_of(plan, epoch)):
        places = [order.index(trial) for trial in batch]
        assert places == sorted(places)
        assert {place // pool for place in places} == {step * size // pool}


@given(lengths=lengths_of_all, size=sizes, shuffle=shuffles, epoch=epochs)
def test_without_a_bound_the_order_is_that_of_the_passes(lengths, size, shuffle, epoch):
    plan = once_each(lengths, size, 1.0, shuffle)
    order = plan.passes.draws(epoch, 0, len(lengths))[0].tolist()
    assert plan.epoch(epoch).pool_batches == 1
    assert list(chain.from_iterable(trials_of(plan, epoch))) == order


@given(lengths=lengths_of_all, size=sizes, bound=bounds)
def test_without_shuffle_batches_rise_in_their_pool_and_epochs_are_alike(lengths, size, bound):
    plan = once_each(lengths, size, bound, "none")
    steps, pool = steps_of(plan, 0), plan.epoch(0).pool_batches
    full = [rows for rows in steps if (rows.trial >= 0).all()]
    for step, rows in enumerate(full[1:], 1):
        if step % pool:
            assert full[step - 1].n_rows.max() <= rows.n_rows.min()
    assert [rows.trial.tolist() for rows in steps] == [
        rows.trial.tolist() for rows in steps_of(plan, 3)
    ]


@pytest.mark.parametrize(
    ("longer", "bound", "last"),
    [([4, 6, 5], 0.2, [5, -1]), ([4, 6, 6], 0.0, [4, -1])],
    ids=["bound allows", "bound forbids"],
)
def test_without_shuffle_the_short_step_holds_the_longest_if_the_bound_allows(longer, bound, last):
    plan = once_each([1, 9, 1, 9, *longer], 2, bound, "none")
    assert plan.epoch(0).pool_batches == 2
    assert steps_of(plan, 0)[-1].trial.tolist() == last


@given(pairs=trials, size=sizes, bound=bounds, shuffle=shuffles)
def test_the_same_plan_gives_the_same_steps_whatever_was_asked_before(pairs, size, bound, shuffle):
    one, other = (plan_of(pairs, size, bound, shuffle) for _ in range(2))
    in_turn = [trials_of(one, epoch) for epoch in range(4)]
    assert [trials_of(other, epoch) for epoch in (3, 2, 1, 0)][::-1] == in_turn
    assert trials_of(one, 0) == in_turn[0]


def test_an_epoch_is_cut_once_while_two_are_read():
    plan = once_each(range(1, 40), 3)
    first, second = plan.epoch(0), plan.epoch(1)
    assert plan.epoch(0) is first
    assert plan.epoch(1) is second
    plan.epoch(2)
    assert plan.epoch(1) is second
    assert plan.epoch(0) is not first


LONG_TAIL = np.clip(np.random.default_rng(2).lognormal(6.5, 1.0, 10_007), 20, 50_000).astype(int)


@pytest.mark.parametrize("bound", [0.3, 0.1, 0.0])
def test_lengths_neither_rise_nor_fall_over_an_epoch(bound):
    plan = once_each(LONG_TAIL, 16, bound)
    for epoch in range(4):
        longest = np.log(plan.epoch(epoch).longest[:-1])
        assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 5 / np.sqrt(len(longest))
        assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 5 / np.sqrt(len(longest))


def test_ranks_get_trials_of_like_length():
    cut = once_each(LONG_TAIL, 16, 0.3).epoch(0)
    halves = [
        np.array([cut.rows(step, *half).n_rows.sum() for step in range(cut.n_steps - 1)])
        for half in ((0, 8), (8, 16))
    ]
    assert 0.45 < (halves[0] > halves[1]).mean() < 0.55


def test_the_short_step_holds_other_lengths_each_time():
    plan = once_each(LONG_TAIL, 16, 0.1)
    assert plan.epoch(0).pool_batches < 1000
    last = [int(plan.epoch(epoch).longest[-1]) for epoch in range(60)]
    ranks = np.searchsorted(np.sort(LONG_TAIL), last) / len(LONG_TAIL)
    assert ranks.min() < 0.2
    assert ranks.max() > 0.8


def test_epochs_and_seeds_give_other_orders():
    plans = [once_each(LONG_TAIL[:500], 16, 0.0, seed=seed) for seed in (0, 1)]
    orders = [str(trials_of(plan, epoch)) for plan in plans for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_no_passes_make_no_steps():
    plan = plan_of([(4, 0), (5, 0)], 3)
    assert plan.epoch(0).n_steps == 0
    assert plan.epoch(0).padding == 0
