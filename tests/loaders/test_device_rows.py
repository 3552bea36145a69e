"""Rows on a device: uploaded compactly, all at once or a pool at a time, never over one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batches import LENGTHS, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store
from test_device import assert_same_epochs, make_pair

import loaders.devicerows
from loaders import BlockShuffle, TrialStream
from loaders.devicepools import PooledGather
from loaders.devicerows import RowSource, Staging
from shards import InvalidSpecError, WindowSpec


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    n_shards=st.integers(1, 3),
    block_rows=st.integers(1, 60),
    pool_blocks=st.integers(1, 4),
    batch_size=st.integers(1, 70),
    balance=st.sampled_from(["window", "sqrt"]),
)
def test_pools_of_any_size_deliver_the_same(
    tmp_path_factory, lengths, n_shards, block_rows, pool_blocks, batch_size, balance
):
    """Down to pools of a few windows, of which a step reads many, and one pool for all."""
    store = make_store(tmp_path_factory.mktemp("s"), lengths, n_shards=n_shards)
    blocks = BlockShuffle(block_rows * 12, pool_blocks * block_rows * 12)
    try:
        got, want = make_pair(
            store, resident="blocks", shuffle=blocks, batch_size=batch_size, balance=balance
        )
    except InvalidSpecError:
        return
    assert_same_epochs(got, want)
    assert isinstance(got._gather, PooledGather)


def test_pools_serve_steps_in_any_order_and_two_epochs_at_a_time(tmp_path):
    store = make_store(tmp_path, [40] * 12, n_shards=3)
    got, want = make_pair(store, resident="blocks", shuffle=BlockShuffle(500, 1000), batch_size=8)
    readers = [[stream.reader(epoch) for epoch in (0, 3)] for stream in (got, want)]
    n_steps = readers[0][0].n_steps
    for step in np.random.default_rng(0).permutation(n_steps).tolist():
        for mine, other in zip(*readers, strict=True):
            assert_same(mine.read(step), other.read(step))


def test_while_a_pool_is_read_the_next_one_is_loaded(tmp_path):
    store = make_store(tmp_path, [40] * 12)
    stream, _ = make_pair(store, resident="blocks", shuffle=BlockShuffle(500, 1000), batch_size=2)
    reader = stream.reader(0)
    reader.read(0)
    slots = stream._gather._slots
    assert slots._holds == [(0, 0), (0, 1)]
    assert slots.rows.arrays["values"].numel() * 4 < 12 * 40 * 12  # less than all rows
    slots._arriving[1].result()
    loads = []
    slots._upload = lambda *arguments: loads.append(arguments)
    step = next(s for s in range(reader.n_steps) if stream._selection.plan.pool_of(0, 2 * s) == 1)
    reader.read(step)  # pool 1 is there; pool 2 takes the place of pool 0
    assert slots._holds == [(0, 2), (0, 1)]
    slots._arriving[0].result()
    assert len(loads) == 1


def test_a_pool_that_cannot_be_read_is_tried_again(tmp_path):
    store = make_store(tmp_path, [40] * 12)
    got, want = make_pair(store, resident="blocks", shuffle=BlockShuffle(500, 1000), batch_size=8)
    reader = got.reader(0)
    slots = got._gather._slots
    upload, slots._upload = slots._upload, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        reader.read(0)
    slots._upload = upload
    for step in range(reader.n_steps):
        assert_same(reader.read(step), want.reader(0).read(step))


# --- rows -----------------------------------------------------------------------------------------


@given(
    parts=st.lists(st.binary(max_size=40), max_size=9),
    size=st.integers(1, 50),
)
def test_staging_joins_parts_of_any_size(parts, size):
    whole = b"".join(parts)
    out = torch.zeros(len(whole), dtype=torch.uint8)
    staging = Staging(torch.device("cpu"), size)
    for _ in range(2):
        out.zero_()
        staging.send((np.frombuffer(part, np.uint8) for part in parts), out)
        assert out.numpy().tobytes() == whole


def test_a_staging_buffer_is_filled_again_only_when_its_copy_is_done(monkeypatch):
    """As on a GPU, where a copy reads the buffer later."""
    events = []

    class Event:
        def __init__(self, buffer):
            self.buffer, self.content, self.is_done = buffer, buffer.clone(), False
            events.append(self)

        def synchronize(self):
            assert self.buffer.equal(self.content)  # not yet overwritten
            self.is_done = True

    staging = Staging(torch.device("cpu"), 7)
    monkeypatch.setattr("loaders.devicerows.mark", lambda device: Event(staging._buffers[0]))
    data = np.arange(100, dtype=np.uint8)
    out = torch.zeros(100, dtype=torch.uint8)
    for part in (data, data[::-1].copy()):
        staging.send([part], out)
        assert out.numpy().tobytes() == part.tobytes()
    assert len(events) == 2 * 15
    assert all(event.is_done for event in events[:-2])


def test_streams_wait_for_each_other(tmp_path, monkeypatch):
    """A pool is gathered from when it is uploaded, and uploaded over what is gathered from."""
    store = make_store(tmp_path, [40] * 12)
    stream, _ = make_pair(store, resident="blocks", shuffle=BlockShuffle(500, 1000), batch_size=8)
    numbers, gathered_from, uploaded, now = itertools.count(), {}, {}, {}

    def mark(device):
        return next(numbers)

    monkeypatch.setattr("loaders.devicepools.mark", mark)
    monkeypatch.setattr(
        "loaders.devicepools.await_mark", lambda device, event: now["on"].add(event)
    )
    monkeypatch.setattr(
        "loaders.device.SideStream.wait", lambda self, event: now.update(side=event)
    )
    reader = stream.reader(0)
    slots = stream._gather._slots
    upload = slots._upload

    def upload_after(members, slot, used):
        assert used == gathered_from.get(slot)
        uploaded[slot] = upload(members, slot, used)
        assert now["side"] == used
        return uploaded[slot]

    slots._upload = upload_after
    for step in range(reader.n_steps):
        now["on"] = set()
        draws = stream._selection.plan.draws(0, 8 * step, min(8 * step + 8, 228))[0]
        needed = {int(p) % 2 for p in reader._gather._pools.pool[draws]}
        reader.read(step)
        assert {uploaded[slot] for slot in needed} == now["on"]
        for slot in needed:
            gathered_from[slot] = slots._used[slot]
    assert reader._gather._pools.n_pools > 3


def test_neighbours_are_copied_in_one_piece(tmp_path):
    store = make_store(tmp_path, [5, 9, 4, 6, 7, 1], n_shards=2)
    stream = TrialStream(store, trials=["t0000", "t0001", "t0002", "t0003", "t0004"])
    source = RowSource(store, stream._selection)
    sizes = [len(run) // 12 for run in source.runs("values", source.storage)]
    # One shard holds trials 0, 2, 4, the other one 1, 3, 5, of which 5 is not read.
    assert sorted(sizes) == [9 + 6, 5 + 4 + 7]
    assert list(source.runs("values", source.storage[:0])) == []


def test_trials_that_are_never_drawn_take_no_room(tmp_path):
    store = make_store(tmp_path, [50, 3, 60, 8], windows=WindowSpec(8, 4, steps=1, short="drop"))
    stream, want = make_pair(store, trials=["t0001", "t0002"], batch_size=5)
    assert_same_epochs(stream, want)
    assert stream._gather._rows["values"].shape == (60, 3)


def test_rows_are_uploaded_once(tmp_path, monkeypatch):
    store = make_store(tmp_path, LENGTHS, n_shards=3, missing=True)
    sent = []
    send = Staging.send
    monkeypatch.setattr(
        Staging, "send", lambda *given: sent.append(given[2].numel()) or send(*given)
    )
    monkeypatch.setattr(loaders.devicerows, "STAGING_BYTES", 100)
    stream, want = make_pair(store, batch_size=5)
    assert_same_epochs(stream, want, n_epochs=3)
    assert sorted(sent) == [sum(LENGTHS) * 1, sum(LENGTHS) * 12]  # observed, values
