"""The way of batches to a device: in order, one ahead, never over memory that is still read."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from batches import LENGTHS, assert_same
from stores import make_store
from torch.utils.data import DataLoader

from loaders import TrialStream
from loaders.device import MOST_COPYING, DeviceFeed, Moving, locked_memory
from loaders.gather import RowGather
from loaders.pool import BufferPool
from shards import InvalidSpecError

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HERE = torch.device("cpu")


class SlowEvent:
    """Is done when somebody waits for it, as late as can be; the values move no earlier.

    Like a GPU it knows an address, and keeps nobody from using the memory again.
    """

    def __init__(self, values, moved):
        self.address, self.moved, self.is_done = values.data_ptr(), moved, False

    def query(self):
        return self.is_done

    def synchronize(self):
        if not self.is_done:
            n_bytes = self.moved.numel() * self.moved.element_size()
            ctypes.memmove(self.moved.data_ptr(), self.address, n_bytes)
        self.is_done = True


class SlowCopier:
    """A device whose copies read the host's memory long after they were asked for."""

    def __init__(self):
        self.log, self.events = [], []

    def start(self, batch):
        moved = batch._map(torch.clone)
        moved.values = torch.full_like(batch.values, torch.nan)
        self.events.append(SlowEvent(batch.values, moved.values))
        self.log.append(f"start {batch.step}")
        return Moving(batch, moved, self.events[-1])

    def hand_over(self, moving):
        self.log.append(f"give {moving.host.step}")
        moving.done.synchronize()
        return moving.batch


def feed_of(batches, copier):
    return DeviceFeed(batches, torch.device("meta"), copier)


def test_the_next_copy_begins_before_a_batch_is_given(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=8)
    copier = SlowCopier()
    want = list(TrialStream(make_store(tmp_path / "b", LENGTHS), batch_size=8))
    for got, other in zip(feed_of(stream, copier), want, strict=True):
        assert_same(got, other)
    n = len(want)
    order = ["start 0"]
    for step in range(n):
        order += [f"start {step + 1}"] * (step + 1 < n) + [f"give {step}"]
    assert copier.log == order
    assert n > 2 * MOST_COPYING


def test_memory_that_is_still_copied_is_not_gathered_into(tmp_path):
    """Whoever takes the batches waits for no copy: all of them read memory of the pool late."""
    stream = TrialStream(make_store(tmp_path / "a", LENGTHS), batch_size=3)
    want = list(TrialStream(make_store(tmp_path / "b", LENGTHS), batch_size=3))
    copier = SlowCopier()
    copier.hand_over = lambda moving: moving.batch
    got = []
    for batch in feed_of(stream, copier):
        got.append(batch)
        assert sum(not event.is_done for event in copier.events) <= MOST_COPYING
    for batch, other in zip(got, want, strict=True):
        assert_same(batch, other)


def test_what_is_left_alone_is_copied_to_its_end(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=3)
    copier = SlowCopier()
    iterator = iter(feed_of(stream, copier))
    next(iterator)
    assert not all(event.is_done for event in copier.events)
    iterator.close()
    assert all(event.is_done for event in copier.events)


def test_an_error_comes_behind_the_batches_before_it(tmp_path):
    def broken(stream):
        for batch in stream:
            yield batch
            if batch.step == 1:
                raise OSError("disk gone")

    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=3)
    got = iter(feed_of(broken(stream), SlowCopier()))
    assert [next(got).step, next(got).step] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(got)


def test_batches_that_are_there_pass(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=3)
    copier = SlowCopier()
    batches = list(stream)
    for got, batch in zip(DeviceFeed(iter(batches), HERE, copier), batches, strict=True):
        assert got is batch
    assert copier.log == []


def test_an_empty_feed_ends():
    assert list(feed_of(iter(()), SlowCopier())) == []
    assert list(DeviceFeed(iter(()), HERE)) == []


def test_a_worker_does_not_move_batches(tmp_path):
    """To the host it may: `device="cuda" if there is one else "cpu"` should run on both."""
    want = list(TrialStream(make_store(tmp_path / "b", LENGTHS), batch_size=3))
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=3, device="cpu")
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for got, other in zip(loader, want, strict=True):
        assert_same(got, other)
    away = TrialStream(make_store(tmp_path / "c", LENGTHS), batch_size=3, device="meta")
    loader = DataLoader(away, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(InvalidSpecError, match=r"in a DataLoader worker.*num_workers=0"):
        list(loader)


def test_batches_are_gathered_into_the_memory_that_was_asked_for(tmp_path):
    sizes = []

    def allocate(size_bytes):
        sizes.append(size_bytes)
        return np.zeros(size_bytes, np.uint8)

    stream = TrialStream(make_store(tmp_path / "a", LENGTHS), batch_size=3)
    want = list(TrialStream(make_store(tmp_path / "b", LENGTHS), batch_size=3))
    stream._gather = RowGather(stream.store, stream._selection, allocate)
    got = list(stream)
    for batch, other in zip(got, want, strict=True):
        assert_same(batch, other)
    assert len(sizes) == len(got)  # all are alive
    stream._gather.renew_pool()
    list(stream)
    assert len(sizes) > len(got)


def test_a_batch_that_comes_to_the_host_is_complete(tmp_path, monkeypatch):
    """PyTorch returns host tensors that are still being written, if it may."""
    batch = next(iter(TrialStream(make_store(tmp_path, LENGTHS))))
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: asked.append(non_blocking) or self
    )
    batch.to("cpu", non_blocking=True)
    assert set(asked) == {False}
    asked.clear()
    batch.to("cuda", non_blocking=True)
    assert set(asked) == {True}


# --- with a GPU -----------------------------------------------------------------------------------


@no_cuda
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_gpu_gets_the_bits_of_the_host(tmp_path, batch_size):
    lengths = LENGTHS * 20
    store = make_store(tmp_path, lengths, missing=True, scale=(3.0, 7.0))
    want = TrialStream(store, batch_size=batch_size)
    stream = TrialStream(store, batch_size=batch_size, device="cuda", resident=False)
    assert stream.device == torch.device("cuda:0")
    for _ in range(2):
        for got, other in zip(stream, want, strict=True):
            torch.cuda._sleep(200_000)  # the computing is late: what was copied must stay
            assert got.values.is_cuda
            assert_same(got.to("cpu"), other)


@no_cuda
def test_page_locked_memory_is_reused(tmp_path):
    pool = BufferPool(locked_memory)
    array = pool.take((4, 3), "float32")
    assert torch.from_numpy(array).is_pinned()
    address = array.ctypes.data
    del array
    assert pool.take((4, 3), "float32").ctypes.data == address


@no_cuda
def test_free_memory_decides_on_a_gpu(tmp_path):
    store = make_store(tmp_path, LENGTHS)
    stream = TrialStream(store, device="cuda")
    next(iter(stream))
    assert not isinstance(stream._gather, RowGather)
