"""Probing a stream: it counts what came, stands where it stood, and sees who waits for whom."""

import mmap
import time
from types import SimpleNamespace

import numpy as np
import pytest
from stores import make_store
from torch.utils.data import DataLoader

from loaders import LaneBatches, TrialStream
from loaders import probe as probing
from loaders.probe import private_bytes, probe_stream, share_waiting, size_of
from shards import InvalidSpecError, WindowSpec


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("probe"),
        [30, 3, 17],
        windows=WindowSpec(length=4, stride=2, steps=1, short="pad"),
    )


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_probe_counts_what_a_loop_would_see_and_leaves_the_stream_where_it_stood(
    store, n_workers
):
    stream = TrialStream(store, batch_size=4)
    stream.load_state_dict({**stream.state_dict(), "epoch": 3, "step": 2})
    before = stream.state_dict()
    found = probe_stream(stream, 0.05, n_workers=n_workers)
    assert stream.state_dict() == before
    batches = []
    while len(batches) < found.n_batches + 1:  # from step 2 of epoch 3 on, as the probe did
        batches += list(stream)
    first, *rest = batches[: found.n_batches + 1]
    assert found.n_rows == sum(int((batch.trial >= 0).sum()) for batch in rest)
    assert found.n_valid_steps == sum(int(batch.valid.sum()) for batch in rest)
    assert found.batch_bytes == size_of(first)
    assert found.seconds >= 0.05
    assert found.rows_per_second == found.n_rows / found.seconds


def test_a_probe_of_lanes_counts_chunks_that_hold_something(store):
    stream = TrialStream(store, batch_size=3, batches=LaneBatches(chunk=8))
    found = probe_stream(stream, 0.01)
    assert found.n_rows < 3 * found.n_batches  # lanes that are empty at the end


def test_what_cannot_be_measured_is_refused(store):
    stream = TrialStream(store)
    with pytest.raises(InvalidSpecError, match="seconds is 0"):
        probe_stream(stream, 0)
    with pytest.raises(InvalidSpecError, match="n_steps is 0"):
        share_waiting(stream, print, n_steps=0)
    with pytest.raises(InvalidSpecError, match="no batch"):
        share_waiting([], print)


@pytest.mark.parametrize(("slow", "least", "most"), [("data", 0.5, 1.0), ("step", 0.0, 0.5)])
def test_the_share_of_waiting_tells_slow_data_from_a_slow_step(store, slow, least, most):
    stream = TrialStream(store, batch_size=4)

    def batches():
        for batch in stream:
            time.sleep(0.03 if slow == "data" else 0)
            yield batch

    class Source:
        def __iter__(self):
            return batches()

    seen = []

    def step(batch):
        seen.append((batch.epoch, batch.step))
        time.sleep(0.03 if slow == "step" else 0)

    waiting = share_waiting(Source(), step, n_steps=8, n_warm_up=2)
    assert waiting.n_steps == 8
    assert len(seen) == len(set(seen)) == 10  # over the end of an epoch of fewer steps
    assert len(stream) < 10
    assert least <= waiting.share <= most
    assert waiting.seconds >= 8 * 0.03


def test_the_share_of_waiting_is_measured_through_a_dataloader_as_well(store):
    loader = DataLoader(TrialStream(store, batch_size=4), batch_size=None, num_workers=1)
    assert 0 < share_waiting(loader, len, n_steps=2, n_warm_up=0).share < 1


def test_on_a_device_the_wait_is_the_time_between_its_steps(store, monkeypatch):
    # Events of a device that is ready 1 s after each batch came, and busy for 3 s with each step.
    ready = iter(np.cumsum([0, 1, 3, 1, 3]))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(ready)

        def elapsed_time(self, other):
            return (other.at - self.at) * 1e3

    cuda = SimpleNamespace(Event=Event, synchronize=lambda: None)
    monkeypatch.setattr(probing.torch, "cuda", cuda)
    waiting = share_waiting(
        TrialStream(store, batch_size=4), len, n_steps=2, n_warm_up=1, device="cuda"
    )
    assert (waiting.seconds, waiting.wait_seconds, waiting.share) == (8.0, 2.0, 0.25)


def test_private_bytes_count_own_arrays_once_and_no_maps(store, tmp_path):
    (tmp_path / "file").write_bytes(bytes(4096))
    own = np.zeros(10)
    with (tmp_path / "file").open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    # A view counts as much as what it keeps alive.
    assert private_bytes([own, {"again": own, "view": own[:2]}, (mapped, {1, "x"})]) == 80
    assert private_bytes(np.arange(4)[1:]) == 32
    stream = TrialStream(store)
    next(iter(stream))
    assert private_bytes(stream) > 0
    assert private_bytes(store.index) == 0
