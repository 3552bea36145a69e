"""Batches of DataLoader workers are made where the parent can map them: no copy on the way."""

from __future__ import annotations

import gc
import os
import shutil

import pytest
import torch
from batches import LENGTHS, PER_STEP, assert_same, tensors
from stores import make_store
from torch.utils.data import DataLoader

from loaders import TrialStream, forks, gather

CASES = {
    "windows": ({}, {}),
    "trials": ({}, {"batches": "trials"}),
    "lanes": ({}, {"batches": "lanes"}),
    "windows of layout windows": ({"layout": "windows"}, {}),
    "a target per step": ({"target": PER_STEP}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_large_tensors_of_a_worker_are_made_in_shared_memory(case, tmp_path, monkeypatch):
    made, asked = CASES[case]
    store = make_store(tmp_path, LENGTHS, **made)
    at_home = list(TrialStream(store, batch_size=4, **asked))
    monkeypatch.setattr(gather, "get_worker_info", lambda: object())
    stream = TrialStream(store, batch_size=4, **asked)
    batches = []
    for batch, want in zip(stream, at_home, strict=True):
        assert batch.values.is_shared()
        assert batch.targets.is_shared() or case != "a target per step"
        batches.append(batch)
        for got in batches:  # nothing of it is written again
            assert_same(got, at_home[got.step])
        assert not want.values.is_shared()
    storages = {batch.values.untyped_storage().data_ptr() for batch in batches}
    assert len(storages) == len(batches)


def test_what_a_worker_sends_is_what_it_made(tmp_path):
    """Its parent sees the same memory: it reads what is written after it has been sent."""
    batch = torch.zeros(3)
    shared = gather.shared_memory((2, 3))
    shared.copy_(batch)
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    queue.put(shared)
    got = queue.get()
    shared[1, 2] = 7
    assert got[1, 2] == 7
    assert not tensors(next(iter(TrialStream(make_store(tmp_path, LENGTHS)))))["values"].is_shared()


@pytest.mark.parametrize(("method", "is_open"), [("fork", True), ("spawn", False)])
def test_forked_workers_find_the_stream_open(tmp_path, method, is_open):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=4)
    want = list(TrialStream(make_store(tmp_path / "same", LENGTHS), batch_size=4))
    assert stream._gather is None
    loader = DataLoader(stream, None, num_workers=2, multiprocessing_context=method)
    got = list(loader)
    for one, other in zip(got, want, strict=True):
        assert_same(one, other)
    assert (stream._gather is not None) == is_open


def test_a_fork_is_not_stopped_by_a_stream_that_cannot_be_opened(tmp_path):
    store = make_store(tmp_path / "store", LENGTHS)
    stream = TrialStream(store, batch_size=4)
    shutil.rmtree(tmp_path / "store")
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert stream._gather is None


def test_a_stream_that_nobody_holds_is_not_opened(tmp_path):
    n_waiting = len(forks._waiting)
    stream = TrialStream(make_store(tmp_path, LENGTHS))
    assert len(forks._waiting) == n_waiting + 1
    del stream
    gc.collect()
    assert len(forks._waiting) == n_waiting
