"""What a demanding user met: each test is one bug that was found by using the loader."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pytest
from batches import LENGTHS
from stores import make_store

from loaders import BlockShuffle, LaneBatches, TrialBatches, TrialStream, mix
from loaders.ahead import Ahead
from shards import InvalidSpecError, Store
from shards.compact import compact_store
from shards.errors import ResumeError
from shards.manifest import TargetSchema


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", LENGTHS, n_shards=2)


def test_a_stream_in_place_of_a_list_is_refused_without_a_look_at_its_batches(store):
    streams = [TrialStream(store, batch_size=4) for _ in range(2)]
    for wrong in [(streams[0],), (streams[0], streams[1]), (streams, streams[1])]:
        with pytest.raises(InvalidSpecError, match="wanted a list"):
            mix(*wrong)
    assert [stream.state_dict()["epoch"] for stream in streams] == [0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_proportions_may_come_as_an_array(store, dtype):
    streams = [TrialStream(store, batch_size=4, seed=seed) for seed in range(2)]
    got = [mix(streams, by).identity for by in (np.array([1, 3], dtype), [dtype(1), dtype(3)])]
    assert got == [mix(streams, [1, 3]).identity] * 2


def test_equal_requests_have_one_identity_however_they_are_written(store):
    paddings = [
        TrialStream(store, batches=TrialBatches(max_padding=bound)).identity for bound in (0, 0.0)
    ]
    assert paddings[0] == paddings[1]
    listed = TargetSchema("forecast", ["c0"])  # type: ignore[arg-type]
    assert TrialStream(store, target=listed).identity == TrialStream(store).identity


def _first_epoch(stream: TrialStream, said: SimpleQueue[int]) -> None:
    said.put(next(iter([batch.epoch for batch in stream])))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_were_given_a_stream_read_the_same_epoch(store, method):
    context, stream = multiprocessing.get_context(method), TrialStream(store, batch_size=4)
    epochs = []
    for _ in range(2):
        said = context.SimpleQueue()
        rank = context.Process(target=_first_epoch, args=(stream, said))
        rank.start()
        epochs.append(said.get())
        rank.join()
    assert epochs == [0, 0]
    assert stream.state_dict()["epoch"] == 0


def test_ctrl_c_while_a_thread_starts_stays_ctrl_c(monkeypatch):
    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    ahead = Ahead(iter(range(3)), 1)
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    ahead.close()


def test_packing_filler_rows_alone_says_what_to_do(store):
    stream = TrialStream(store, batch_size=64, rank=3, world_size=4, batches="trials")
    with pytest.raises(InvalidSpecError, match="filler"):
        next(iter(stream)).packed()


def test_a_state_by_blocks_from_before_compact_is_told_of_the_packing(tmp_path):
    before = make_store(tmp_path / "store", LENGTHS * 2, n_shards=4)
    state = TrialStream(before, shuffle="blocks").state_dict()
    compact_store(tmp_path / "store", force=True)
    with pytest.raises(ResumeError, match=r"compact|packed"):
        TrialStream(tmp_path / "store", shuffle="blocks").load_state_dict(state)


@pytest.mark.parametrize("epoch", ["x", 2**63, None, 1.0])
def test_a_state_whose_epoch_is_no_epoch_is_refused_as_a_state(store, epoch):
    stream = TrialStream(store)
    with pytest.raises(ResumeError):
        stream.load_state_dict({**stream.state_dict(), "epoch": epoch})


def test_numpy_integers_are_integers(store):
    plain = TrialStream(store, batch_size=4, seed=3, rank=0, world_size=1)
    asked = {"batch_size": 4, "seed": 3, "rank": 0, "world_size": 1}
    got = TrialStream(store, **{name: np.int64(x) for name, x in asked.items()})
    assert got.identity == plain.identity
    assert [b.step for b in got] == [b.step for b in plain]


def test_no_row_is_longer_than_memory(store):
    for ask in (
        lambda: LaneBatches(chunk=10**19),
        lambda: TrialBatches(max_length=10**19),
        lambda: BlockShuffle(10**30),
        lambda: TrialStream(store, batch_size=10**19),
    ):
        with pytest.raises(InvalidSpecError, match="wanted at most"):
            ask()
