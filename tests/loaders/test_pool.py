"""Law 7: memory is handed out again only when nobody can see it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from stores import make_store

from loaders import TrialStream
from loaders.pool import KEPT, BufferPool

HOLDERS = {
    "tensor": lambda t: t,
    "view": lambda t: t[1:, :2],
    "reshaped": lambda t: t.view(-1),
    "detached": lambda t: t.detach(),
    "array": lambda t: t.numpy(),
    "array slice": lambda t: t.numpy()[2:, 1],
    "storage": lambda t: t.untyped_storage(),
    "set_": lambda t: torch.empty(0).set_(t.untyped_storage(), 0, t.shape),
    "dlpack": lambda t: np.from_dlpack(t),
    "memoryview": lambda t: memoryview(t.numpy()),
    "autograd": lambda t: (t.requires_grad_() * 2).sum().grad_fn,
    "closure": lambda t: lambda: t,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_kept_while_it_is_seen(holder):
    pool = BufferPool()
    tensor = torch.from_numpy(pool.take((4, 3), "float32"))
    address = tensor.data_ptr()
    held = HOLDERS[holder](tensor)
    del tensor
    assert pool.take((4, 3), "float32").ctypes.data != address
    del held
    assert pool.take((4, 3), "float32").ctypes.data == address


def test_idle_memory_is_reused_and_the_pool_is_bounded():
    pool = BufferPool()
    addresses = [pool.take((8,), "float32").ctypes.data for _ in range(5)]
    assert len(set(addresses)) == 1
    held = [pool.take((8,), "float32") for _ in range(3 * KEPT)]
    assert len({array.ctypes.data for array in held}) == 3 * KEPT
    assert sum(len(kept) for kept in pool._arrays.values()) == KEPT


def test_threads_never_share_memory():
    pool, clashes = BufferPool(), []

    def work(mark: int) -> None:
        for _ in range(2000):
            array = pool.take((64,), "int64")
            array.fill(mark)
            if not (array == mark).all():
                clashes.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_batches_that_are_kept_do_not_change(tmp_path):
    store = make_store(tmp_path, [40, 30, 3, 50], missing=True)
    stream = TrialStream(store, batch_size=4)
    kept, copies = [], []
    for batch in stream:
        kept.append(batch)
        copies.append({k: v.clone() for k, v in vars(batch).items() if torch.is_tensor(v)})
    assert len(kept) > KEPT
    for batch, copy in zip(kept, copies, strict=True):
        for name, tensor in copy.items():
            assert torch.equal(getattr(batch, name).nan_to_num(-7), tensor.nan_to_num(-7)), name
    pointers = [batch.values.data_ptr() for batch in kept]
    assert len(set(pointers)) == len(pointers)


def test_writing_into_a_batch_reaches_no_other(tmp_path):
    stream = TrialStream(make_store(tmp_path, [60, 50]), batch_size=8, shuffle="none")
    clean = [{k: v.clone() for k, v in vars(b).items() if torch.is_tensor(v)} for b in stream]
    stream.set_epoch(0)
    for batch, want in zip(stream, clean, strict=True):
        for name, tensor in want.items():
            got = getattr(batch, name)
            assert torch.equal(got.nan_to_num(-7), tensor.nan_to_num(-7)), name
            getattr(batch, name).fill_(1)


def test_a_loop_that_keeps_nothing_uses_one_buffer(tmp_path):
    stream = TrialStream(make_store(tmp_path, [200]), batch_size=8)
    assert len({batch.values.data_ptr() for batch in stream}) <= 2
