"""Packing: order and items are conserved, sizes are bounded, batching is invisible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pack import pack_trials, plan_batches

sizes = st.lists(st.integers(0, 50), max_size=60)
targets = st.integers(1, 120)


@given(sizes, targets)
def test_batches_hold_every_item_once_and_in_order(items: list[int], target: int):
    batches = plan_batches(items, target)
    assert [i for batch in batches for i in batch] == list(range(len(items)))
    assert all(len(batch) for batch in batches)


@given(sizes, targets)
def test_a_batch_ends_with_the_item_that_fills_it(items: list[int], target: int):
    batches = plan_batches(items, target)
    for batch in batches:
        assert sum(items[i] for i in batch[:-1]) < target
    for batch in batches[:-1]:
        assert sum(items[i] for i in batch) >= target


@given(sizes, targets)
def test_shards_hold_every_trial_once_and_in_order(items: list[int], target: int):
    named = list(enumerate(items))
    shards = list(pack_trials(named, lambda item: item[1], target))
    assert [item for shard in shards for item in shard] == named
    assert all(shards)


@given(sizes, targets)
def test_a_shard_is_within_the_target_or_one_trial_and_none_could_take_the_next(
    items: list[int], target: int
):
    shards = list(pack_trials(items, int, target))
    for shard in shards:
        assert sum(shard) <= target or len([n for n in shard if n]) == 1
    for shard, following in itertools.pairwise(shards):
        assert sum(shard) + following[0] > target


def test_one_shard_is_held_at_a_time():
    taken: list[int] = []

    def trials() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield 1

    packed = pack_trials(trials(), int, 10)
    assert taken == []
    assert next(packed) == [1] * 10
    assert len(taken) == 11


@pytest.mark.parametrize("items", [[], [0], [0, 0, 0], [500]])
def test_small_cases(items: list[int]):
    wanted = [items] if items else []
    assert list(pack_trials(items, int, 8)) == wanted
    positions = [list(range(len(items)))] if items else []
    assert [list(batch) for batch in plan_batches(items, 8)] == positions
