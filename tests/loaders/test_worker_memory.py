"""Batches of DataLoader workers are made where the parent can map them: no copy on the way."""

from __future__ import annotations

import pytest
import torch
from batches import LENGTHS, PER_STEP, assert_same, tensors
from stores import make_store

from loaders import TrialStream, gather

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
