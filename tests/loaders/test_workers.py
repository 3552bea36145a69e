"""The same batches in the same order under real DataLoader workers, epoch after epoch."""

from __future__ import annotations

import time

import pytest
import torch
from batches import LENGTHS, assert_same
from stores import make_store
from torch.utils.data import DataLoader

from loaders import Batch, TrialStream
from shards.manifest import TargetSchema

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make_stream(path, **request) -> TrialStream:
    target = TargetSchema("per_step", ("y0",))
    store = make_store(path, LENGTHS, n_shards=2, missing=True, target=target)
    return TrialStream(store, **{"batch_size": 8, "seed": 3, **request})


def epochs_of(stream: TrialStream, n_epochs: int) -> list[list[Batch]]:
    return [list(stream) for _ in range(n_epochs)]


def assert_epochs(got, want) -> None:
    for mine, theirs in zip(got, want, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b)


def sleep_by_worker(worker: int) -> None:
    time.sleep(0.25 * worker)


def load(stream, n_workers, **options) -> DataLoader:
    return DataLoader(stream, batch_size=None, num_workers=n_workers, **options)


@pytest.mark.parametrize(
    ("n_workers", "rank", "world_size"), [(0, 1, 2), (1, 0, 1), (2, 1, 4), (3, 0, 1), (3, 1, 2)]
)
def test_forked_workers(tmp_path, n_workers, rank, world_size):
    request = {"rank": rank, "world_size": world_size}
    want = epochs_of(make_stream(tmp_path / "a", **request), 3)
    stream = make_stream(tmp_path / "b", **request)
    options = {"multiprocessing_context": "fork"} if n_workers else {}
    loader = load(stream, n_workers, **options)
    assert len(loader) == len(stream)
    assert_epochs([list(loader) for _ in range(3)], want)
    assert stream.state_dict()["epoch"] == 3


@pytest.mark.parametrize(("method", "persistent"), [("spawn", True), ("forkserver", False)])
def test_other_start_methods(tmp_path, method, persistent):
    want = epochs_of(make_stream(tmp_path / "a"), 3)
    stream = make_stream(tmp_path / "b")
    assert_epochs([list(stream)], want[:1])  # the parent's open maps must not be sent
    loader = load(stream, 2, multiprocessing_context=method, persistent_workers=persistent)
    assert_epochs([list(loader) for _ in range(2)], want[1:])
    assert stream.state_dict()["epoch"] == 3


def test_children_of_a_parent_in_the_middle_of_an_epoch(tmp_path):
    """They inherit its maps, and batch memory that it still uses."""
    want = epochs_of(make_stream(tmp_path / "a"), 1)
    stream = make_stream(tmp_path / "b")
    loop = iter(stream)
    held = [next(loop) for _ in range(4)]
    assert_epochs([list(load(stream, 2, multiprocessing_context="fork"))], want)
    assert_epochs([held], [want[0][:4]])
    assert_epochs([[next(loop)]], [want[0][4:5]])


def test_persistent_workers_follow_the_parent(tmp_path):
    want = epochs_of(make_stream(tmp_path / "a"), 6)
    stream = make_stream(tmp_path / "b")
    loader = load(
        stream, 2, multiprocessing_context="fork", persistent_workers=True, prefetch_factor=2
    )
    assert_epochs([list(loader) for _ in range(2)], want[:2])
    for _ in loader:
        break  # long before the end: the epoch is not done
    assert_epochs([list(loader)], want[2:3])
    stream.set_epoch(5)
    assert_epochs([list(loader)], want[5:6])
    state = stream.state_dict(want[1][2])
    stream.load_state_dict(state)
    assert_epochs([list(loader), list(loader)], [want[1][3:], want[2]])


@pytest.mark.parametrize("reseed", [False, True])
def test_late_workers_read_the_same_epoch(tmp_path, reseed):
    """One worker has read its whole share before the next one starts."""
    want = epochs_of(make_stream(tmp_path / "a", batch_size=64), 3)
    stream = make_stream(tmp_path / "b", batch_size=64)
    loader = load(stream, 3, multiprocessing_context="fork", worker_init_fn=sleep_by_worker)
    got = []
    for _ in range(3):
        if reseed:
            torch.manual_seed(0)
        got.append(list(loader))
    assert len(want[0]) < 3  # fewer steps than workers: some have nothing to do
    assert_epochs(got, want)


def test_resume_with_another_number_of_workers(tmp_path):
    want = epochs_of(make_stream(tmp_path / "a"), 2)
    stream = make_stream(tmp_path / "b")
    loader = load(stream, 3, multiprocessing_context="fork")
    batch = next(batch for batch in loader if batch.step == 4)
    other = make_stream(tmp_path / "c")
    other.load_state_dict(stream.state_dict(batch))
    loader = load(other, 2, multiprocessing_context="fork")
    assert_epochs([list(loader), list(loader)], [want[0][5:], want[1]])


def test_spawned_workers_know_their_parents_rank(tmp_path, monkeypatch):
    want = epochs_of(make_stream(tmp_path / "a", rank=1, world_size=2), 1)
    stream = make_stream(tmp_path / "b")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert_epochs([list(load(stream, 1, multiprocessing_context="spawn"))], want)


def test_threads_are_left_alone(tmp_path):
    before = torch.get_num_threads()
    list(make_stream(tmp_path))
    assert torch.get_num_threads() == before
