"""Cutting trials into blocks and sizing pools: arithmetic, no files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loaders.blocks import cut_blocks, pool_blocks_of
from loaders.order import splitmix64
from shards import InvalidSpecError

seeds = st.integers(0, 2**63 - 1)


@st.composite
def packings(draw):
    """Trials of some shards in storage order, a part of them chosen, in any order."""
    trials = []
    for shard in range(draw(st.integers(1, 4))):
        start = 0
        for n in draw(st.lists(st.integers(0, 30), max_size=12)):
            trials.append((shard, start, n))
            start += n
    assume(trials)
    chosen = draw(st.lists(st.sampled_from(range(len(trials))), min_size=1, unique=True))
    shard, row_start, n_rows = np.array([trials[i] for i in chosen], np.int64).T
    # An empty trial and its successor start at the same row: which is first does not matter here.
    assume(len(np.unique(shard * 1000 + row_start)) == len(shard))
    return shard.astype(np.int32), row_start, n_rows


@given(packing=packings(), row_bytes=st.integers(1, 9), block_bytes=st.integers(1, 400))
def test_blocks_are_cut_as_a_walk_through_storage_cuts_them(packing, row_bytes, block_bytes):
    shard, row_start, n_rows = packing
    want = np.empty(len(shard), np.int64)
    block, here, size, multiple = -1, None, 0, 0
    for i in sorted(range(len(shard)), key=lambda i: (shard[i], row_start[i])):
        if shard[i] != here:
            block, here, size, multiple = block + 1, shard[i], 0, 0
        elif size // block_bytes > multiple:
            block, multiple = block + 1, size // block_bytes
        want[i] = block
        size += int(n_rows[i]) * row_bytes
    got = cut_blocks(shard, row_start, n_rows, row_bytes=row_bytes, block_bytes=block_bytes)
    assert got.dtype == np.int64
    assert np.array_equal(got, want)


@given(packing=packings(), row_bytes=st.integers(1, 9), block_bytes=st.integers(1, 400))
def test_a_block_is_of_one_shard_and_bounded_but_for_its_last_trial(
    packing, row_bytes, block_bytes
):
    shard, row_start, n_rows = packing
    blocks = cut_blocks(shard, row_start, n_rows, row_bytes=row_bytes, block_bytes=block_bytes)
    assert np.array_equal(np.unique(blocks), np.arange(blocks.max() + 1))
    in_storage = np.lexsort((row_start, shard))
    assert (np.diff(blocks[in_storage]) >= 0).all()
    for block in range(blocks.max() + 1):
        own = in_storage[blocks[in_storage] == block]
        assert len(np.unique(shard[own])) == 1
        assert n_rows[own[:-1]].sum() * row_bytes < block_bytes


@given(packing=packings(), seed=seeds)
def test_the_order_of_the_trials_does_not_move_the_cuts(packing, seed):
    shard, row_start, n_rows = packing
    mix = np.argsort([splitmix64(seed + i) for i in range(len(shard))])
    cut = cut_blocks(shard, row_start, n_rows, row_bytes=4, block_bytes=100)
    again = cut_blocks(shard[mix], row_start[mix], n_rows[mix], row_bytes=4, block_bytes=100)
    assert np.array_equal(cut[mix], again)


def test_a_pool_holds_its_bytes_on_average():
    blocks = np.repeat(np.arange(100), 4)
    n_bytes = np.full(400, 250)
    assert pool_blocks_of(blocks, n_bytes, 16_000) == 16
    assert pool_blocks_of(blocks, n_bytes, 16_999) == 16
    assert pool_blocks_of(blocks, n_bytes, 1) == 2
    assert pool_blocks_of(blocks, n_bytes, 10**15) == 100
    assert pool_blocks_of(blocks[:3], n_bytes[:3], 10**15) == 2
    assert pool_blocks_of(blocks, np.zeros(400, np.int64), 1) == 100


@pytest.mark.parametrize("wrong", [{"row_bytes": 0}, {"block_bytes": 0}, {"block_bytes": -1}])
def test_sizes_below_one_are_refused(wrong):
    one = np.array([1])
    with pytest.raises(InvalidSpecError, match="wanted an integer of at least 1"):
        cut_blocks(one, one, one, **{"row_bytes": 1, "block_bytes": 1, **wrong})
    with pytest.raises(InvalidSpecError, match="pool_bytes is 0; wanted"):
        pool_blocks_of(one, one, 0)
