"""Epochs, ranks, resume and requests of a stream."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from batches import LENGTHS, assert_same, rows_of, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from loaders import Batch, TrialStream
from shards import InvalidSpecError, StoreNotFoundError, WindowSpec
from shards.errors import ResumeError


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_ranks_split_the_same_steps(tmp_path, world_size, shuffle):
    weights = [1.0, 0.1, 2.5, 1.0, 0.3, 0.7]
    store = make_store(tmp_path, LENGTHS, n_shards=2, weights=weights)
    request = {"batch_size": 7, "shuffle": shuffle, "seed": 5}
    whole = list(TrialStream(store, rank=0, world_size=1, **request))
    ranks = [
        list(TrialStream(store, rank=r, world_size=world_size, **request))
        for r in range(world_size)
    ]
    for step, want in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        for name, tensor in tensors(want).items():
            joined = torch.cat([getattr(part, name) for part in parts])
            assert joined.numpy().tobytes() == tensor.numpy().tobytes(), name
        assert {part.global_weight for part in parts} == {want.global_weight}
        total = sum(part.weights.sum(dtype=torch.float64).item() for part in parts)
        assert want.global_weight == pytest.approx(total, rel=1e-12)
    rows = rows_of(whole)
    assert len(rows) == len(set(rows)) == store.manifest.counts["windows"]["train"]


def test_a_loop_is_an_epoch(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=8)
    epochs = [list(stream) for _ in range(3)]
    assert [[b.epoch for b in e] for e in epochs] == [[i] * len(stream) for i in range(3)]
    assert [[b.step for b in e] for e in epochs] == [list(range(len(stream)))] * 3
    assert len({tuple(rows_of(e)) for e in epochs}) == 3
    assert len({tuple(sorted(rows_of(e))) for e in epochs}) == 1
    for _ in stream:
        break
    assert next(iter(stream)).step == 0
    assert stream.state_dict()["epoch"] == 3
    stream.set_epoch(1)
    for got, want in zip(stream, epochs[1], strict=True):
        assert_same(got, want)
    assert stream.state_dict()["epoch"] == 2
    other = TrialStream(make_store(tmp_path / "b", LENGTHS), batch_size=8, seed=1)
    assert rows_of(list(other)) != rows_of(epochs[0])


@given(stop=st.integers(0, 30), epoch=st.integers(0, 5))
@settings(max_examples=15)
def test_resume_equals_the_uninterrupted_run(tmp_path_factory, stop, epoch):
    store = make_store(tmp_path_factory.mktemp("s"), LENGTHS, missing=True)
    for balance in ("window", "trial"):
        stream = TrialStream(store, batch_size=8, balance=balance, seed=3)
        stream.set_epoch(epoch)
        run = list(stream) + list(stream)
        stop %= len(run)
        state = stream.state_dict(run[stop])
        again = TrialStream(store, batch_size=8, balance=balance, seed=3)
        again.load_state_dict(pickle.loads(pickle.dumps(state)))
        rest = run[stop + 1 :]
        got = [*again, *again][: len(rest)]
        assert len(got) == len(rest)
        for mine, want in zip(got, rest, strict=True):
            assert_same(mine, want)


def test_set_epoch_keeps_a_resumed_start(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=8)
    stream.load_state_dict({**stream.state_dict(), "epoch": 2, "step": 3})
    stream.set_epoch(2)
    assert next(iter(stream)).step == 3
    stream.set_epoch(3)
    assert next(iter(stream)).step == 0
    with pytest.raises(InvalidSpecError, match="epoch is -1"):
        stream.set_epoch(-1)


def test_a_state_of_something_else_is_refused(tmp_path):
    store = make_store(tmp_path / "a", LENGTHS)
    state = TrialStream(store, batch_size=8).state_dict()
    other = make_store(tmp_path / "b", [*LENGTHS, 9])
    cases = {
        "fingerprint: got": TrialStream(other, batch_size=8),
        "plan: got": TrialStream(store, batch_size=9),
        "batch_size, windows": TrialStream(store, batch_size=8, windows=WindowSpec(5, 2, steps=1)),
        "shuffle or balance": TrialStream(store, batch_size=8, shuffle="none"),
        "seed: got 0, wanted 1": TrialStream(store, batch_size=8, seed=1),
    }
    for message, stream in cases.items():
        with pytest.raises(ResumeError, match=message):
            stream.load_state_dict(state)
    stream = TrialStream(store, batch_size=8)
    with pytest.raises(ResumeError, match="lacks plan"):
        stream.load_state_dict({"fingerprint": "", "seed": 0, "epoch": 0, "step": 0})
    with pytest.raises(ResumeError, match=f"step below {len(stream)}"):
        stream.load_state_dict({**state, "step": len(stream)})


def test_the_version_may_change_under_a_state_if_the_split_does_not(tmp_path):
    splits = ["train", "train", "val"]
    old = make_store(tmp_path / "a", [20, 30, 9], splits=splits)
    new = make_store(tmp_path / "b", [20, 30, 9], splits=splits, n_shards=3)
    state = TrialStream(old, batch_size=4).state_dict()
    TrialStream(new, batch_size=4).load_state_dict(state)


def test_balance_trial_draws_equally(tmp_path):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=8, balance="trial")
    counts = np.bincount([trial for trial, _ in rows_of(list(stream))], minlength=len(LENGTHS))
    assert np.ptp(counts) <= 1


def test_bad_requests_name_argument_got_and_wanted(tmp_path):
    store = make_store(tmp_path, [30, 3], splits=["train", "val"], windows=WindowSpec(4, steps=1))
    cases = {
        "batches is 'rows'; wanted 'windows', 'trials' or 'lanes'": {"batches": "rows"},
        "shuffle is 'random'; wanted 'global', 'blocks' or 'none'": {"shuffle": "random"},
        "balance is 'even'; wanted 'window', 'trial'": {"balance": "even"},
        "weights is 'even'; wanted 'own', 'trial'": {"weights": "even"},
        "ahead is -1; wanted an integer >= 0": {"ahead": -1},
        "batch_size is 0; wanted an integer >= 1": {"batch_size": 0},
        "seed is -1": {"seed": -1},
        "seed is 1.5": {"seed": 1.5},
        "windows is 4; wanted a WindowSpec or None": {"windows": 4},
        "rank is 1 and world_size is None": {"rank": 1},
        "rank is 2; wanted less than world_size, 2": {"rank": 2, "world_size": 2},
        "at least world_size, 4": {"batch_size": 3, "rank": 0, "world_size": 4},
        "windows.steps is 0; wanted at least 1": {"windows": WindowSpec(4)},
        "split 'val' .* has no windows: 1 trials, the longest of 3 rows": {
            "split": "val", "windows": WindowSpec(4, steps=1, short="drop"),
        },
        "version is 'v0009' beside an open store": {"version": "v0009"},
    }  # fmt: skip
    for message, request in cases.items():
        with pytest.raises(InvalidSpecError, match=message):
            TrialStream(store, **request)
    with pytest.raises(StoreNotFoundError, match="no split 'test'"):
        TrialStream(store, split="test")
    with pytest.raises(StoreNotFoundError):
        TrialStream(tmp_path, version="v0009")


def test_pickles_are_small_and_open_again(tmp_path):
    store = make_store(tmp_path, [20 + i % 7 for i in range(300)], n_shards=50)
    stream = TrialStream(str(tmp_path), batch_size=64)
    want = list(stream)
    assert stream.store.version == store.version
    raw = pickle.dumps(stream)
    assert len(raw) < 20_000
    for twin in (pickle.loads(raw), copy.deepcopy(stream)):
        assert twin.state_dict() == stream.state_dict()
        twin.set_epoch(0)
        for got, batch in zip(twin, want, strict=True):
            assert_same(got, batch)
        assert twin.state_dict()["epoch"] == 1


def test_batch_moves_and_counts(tmp_path):
    batch = next(iter(TrialStream(make_store(tmp_path, LENGTHS), batch_size=8)))
    assert len(batch) == 8
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {t.device.type for t in tensors(moved).values()} == {"meta"}
    assert (moved.epoch, moved.step, moved.observed) == (0, 0, None)
    moved.epoch = 3  # not frozen: Fabric and Lightning set attributes
