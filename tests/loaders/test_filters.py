"""Streams over some trials of a split: the same laws as over all, and nothing else delivered."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from batches import LENGTHS, assert_same, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from knownstores import Known, known_store
from stores import make_store
from torch.utils.data import DataLoader

from loaders import TrialStream, open_store
from shards import InvalidSpecError, TrialNotFoundError, WindowSpec
from shards.errors import ResumeError

PINNED = {
    "fingerprint": "50a794d0a842b8d47fcaf7fdb9898b89672f6566c0d928dc077dfc5ced6d9fdc",
    "plan": "8cf3f87f63179773938cdfd140d4ca1469216951118ebff1b4a77c79e9d9eeda",
    "seed": 7, "epoch": 0, "step": 0,
}  # fmt: skip
"""As streams gave it before they had filters."""


def robots(path, n=24, **changes):
    rows = [
        Known(
            f"t{i:02}", n_rows=5 + 3 * (i % 5), split="val" if i % 6 == 5 else "train",
            attributes={"subject": f"s{i % 3}", "load": str(i)}, weight=1 + i % 2,
        )
        for i in range(n)
    ]  # fmt: skip
    return known_store(path, rows, n_shards=3, **changes)


def ids_of(store, batches) -> set[str]:
    return {store.trial(t).id for t, _ in rows_of(batches)}


def test_a_filter_delivers_all_windows_of_its_trials_and_no_other(tmp_path):
    store = robots(tmp_path)
    some = [f"t{i:02}" for i in (0, 3, 6, 9)]
    for request, holds in (
        ({"where": "subject = 's1' and n_rows > 6"}, lambda t: t.number % 3 == 1 and t.n_rows > 6),
        ({"where": "load >= 10", "split": "val"}, lambda t: int(t.attributes["load"]) >= 10),
        ({"trials": some}, lambda t: t.id in some),
        ({"trials": some[::-1] + some}, lambda t: t.id in some),
        ({"trials": store.trials("id")["id"].slice(0, 4)}, lambda t: t.number < 4),
        ({"trials": (name for name in some), "where": "load > 4"}, lambda t: t.id in some[2:]),
    ):  # fmt: skip
        stream = TrialStream(store, batch_size=4, **request)
        want = {
            (t.number, start)
            for t in map(store.trial, range(len(store)))
            if t.split == stream.options.split and holds(t)
            for start in range(0, 2 * t.n_windows, 2)
        }
        got = rows_of(list(stream))
        assert set(got) == want, request
        assert len(got) == len(want)


def test_values_of_a_filtered_stream_are_those_of_the_whole_one(tmp_path):
    """Look-ups by position in the list of trials must not slip: weights, constants, rows."""
    normalize = {
        "method": "zscore", "scope": "group:subject", "offset": [1.0, 2.0], "scale": [3.0, 4.0],
        "groups": {"subject": {
            "values": ["s0", "s2"], "n_trials": [1, 1],
            "offset": [[1.0, 5.0], [2.0, 6.0]], "scale": [[2.0, 3.0], [4.0, 5.0]],
        }},
    }  # fmt: skip
    store = robots(tmp_path, normalize=normalize, n_parts=2)
    whole = {
        (int(b.trial[i]), int(b.start[i])): (b.values[i], b.targets[i], b.weights[i])
        for b in TrialStream(store, batch_size=8)
        for i in range(8)
    }
    for batch in TrialStream(store, batch_size=8, where="subject <> 's0'", balance="trial"):
        for i in range(8):
            if batch.weights[i] > 0:
                key = int(batch.trial[i]), int(batch.start[i])
                mine = batch.values[i], batch.targets[i], batch.weights[i]
                assert all(torch.equal(a, b) for a, b in zip(mine, whole[key], strict=True))


@given(
    seed=st.integers(0, 9), world=st.integers(1, 3), stop=st.integers(0, 60),
    balance=st.sampled_from(["window", "trial"]), by_id=st.booleans(),
    subject=st.sampled_from(["s0", "s1", "s2"]),
)  # fmt: skip
@settings(max_examples=15)
def test_ranks_and_resume_at_any_step_deliver_the_same_sequence(
    tmp_path_factory, seed, world, stop, balance, by_id, subject
):
    store = robots(tmp_path_factory.mktemp("s"))
    where = f"subject = '{subject}'"
    by = {"where": where}
    if by_id:
        train = store.index.split == store.split_code("train")
        by = {"trials": [store.trial(i).id for i in store.select(where) if train[i]]}
    request = {"batch_size": 5, "seed": seed, "balance": balance}
    whole = TrialStream(store, rank=0, world_size=1, **request, **by)
    run = [*whole, *whole]
    for rank in range(world):
        stream = TrialStream(store, rank=rank, world_size=world, **request, **by)
        first, last = rank * 5 // world, (rank + 1) * 5 // world
        for mine, want in zip([*stream, *stream], run, strict=True):
            assert torch.equal(mine.trial, want.trial[first:last])
            assert torch.equal(mine.values, want.values[first:last])
            assert mine.global_weight == want.global_weight
    stop %= len(run)
    state = pickle.loads(pickle.dumps(whole.state_dict(run[stop])))
    again = pickle.loads(pickle.dumps(TrialStream(store.path, where=where, **request)))
    again.load_state_dict(state)  # the trials count, not the words that chose them
    rest = run[stop + 1 :]
    for mine, want in zip([*again, *again], rest, strict=False):
        assert_same(mine, want)
    assert len([*again]) == len(again)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("method", "n_workers"), [("fork", 3), ("spawn", 1)])
def test_workers_read_the_same_trials(tmp_path, method, n_workers):
    store = robots(tmp_path)
    want = list(TrialStream(store, batch_size=4, where="load < 12"))
    stream = TrialStream(store, batch_size=4, where="load < 12")
    loader = DataLoader(
        stream, batch_size=None, num_workers=n_workers, multiprocessing_context=method
    )
    for mine, batch in zip(loader, want, strict=True):
        assert_same(mine, batch)


def test_a_pickle_keeps_the_filter_and_asks_no_more(tmp_path, monkeypatch):
    store = robots(tmp_path)
    for request in ({"where": "subject = 's2'"}, {"trials": ["t00", "t03"]}):
        stream = TrialStream(store, batch_size=4, **request)
        want = list(stream)
        copied = pickle.loads(pickle.dumps(stream))
        copied.set_epoch(0)
        monkeypatch.setattr("loaders.selection.choose_trials", None)  # the answer came along
        got = list(pickle.loads(pickle.dumps(copied)))
        monkeypatch.undo()
        for mine, batch in zip(got, want, strict=True):
            assert_same(mine, batch)
        assert copied.state_dict()["plan"] == stream.state_dict()["plan"]
        assert copied.options.where == stream.options.where


def test_a_stream_without_a_filter_has_the_state_it_always_had(tmp_path):
    store = make_store(tmp_path, LENGTHS, n_shards=2)
    request = {"shuffle": "none", "balance": "trial", "seed": 7, "batch_size": 8}
    stream = TrialStream(store, **request)
    assert stream.state_dict() == PINNED
    stream.load_state_dict(PINNED)
    every = TrialStream(store, where="n_rows > 0", **request)
    assert every.state_dict() == PINNED  # a filter that leaves nothing out is none
    assert TrialStream(store, trials=list(store), **request).state_dict() == PINNED
    fewer = TrialStream(store, where="n_rows > 5", **request).state_dict()
    assert fewer.keys() == {*PINNED, "trials"}
    assert fewer["plan"] != PINNED["plan"]


def test_other_trials_are_refused_even_where_their_windows_are_alike(tmp_path):
    rows = [Known(f"t{i}", attributes={"subject": f"s{i % 2}"}) for i in range(8)]
    store = known_store(tmp_path, rows)  # all of one length, so the plans are of one shape
    odd, even = (TrialStream(store, batch_size=4, where=f"subject = 's{i}'") for i in (1, 0))
    every = TrialStream(store, batch_size=4)
    for stream, state in (
        (even, odd.state_dict()), (even, every.state_dict()), (every, odd.state_dict()),
    ):  # fmt: skip
        with pytest.raises(ResumeError, match="where or trials changed") as caught:
            stream.load_state_dict(state)
        assert "plan:" not in str(caught.value)
    with pytest.raises(ResumeError, match="batch_size, windows"):
        TrialStream(store, batch_size=5, where="subject = 's1'").load_state_dict(odd.state_dict())
    same = TrialStream(store, batch_size=4, trials=["t7", "t5", "t3", "t1"])
    same.load_state_dict(odd.state_dict())


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"where": "subject = 's9'"}, InvalidSpecError, r"holds for no trial.*store\.trials\(\)"),
        ({"where": "sbject = 's1'"}, InvalidSpecError, "no such column: sbject"),
        ({"where": ""}, InvalidSpecError, "wanted an SQL expression"),
        ({"where": "n_rows > 1", "trials": ["t05"]}, InvalidSpecError, "not in split 'train'"),
        ({"where": "load = 1", "trials": ["t00"]}, InvalidSpecError, "among those of trials="),
        ({"trials": ["t00", "t05"]}, InvalidSpecError, "1 are not in split 'train' but in 'val'"),
        ({"trials": ["t00", "x1", "x2"]}, TrialNotFoundError, "2 of 3 ids are not in.*'x1', 'x2'"),
        ({"trials": []}, InvalidSpecError, "trials has 0 values"),
        ({"trials": "t00"}, InvalidSpecError, "wanted a list of trial ids"),
        ({"trials": [1, 2]}, InvalidSpecError, "values of type int64"),
        ({"trials": ["t00", None]}, InvalidSpecError, "1 of them missing"),
        ({"trials": 5}, InvalidSpecError, "trials cannot be read"),
        ({"trials": ["\ud800"]}, InvalidSpecError, "trials cannot be read"),
    ],
)  # fmt: skip
def test_a_request_for_nothing_or_for_strangers_is_refused(tmp_path, request_, error, message):
    with pytest.raises(error, match=message):
        TrialStream(robots(tmp_path), **request_)


def test_short_trials_alone_say_that_they_have_no_windows(tmp_path):
    store = known_store(tmp_path, [Known("a", n_rows=3), Known("b", n_rows=40)])
    windows = WindowSpec(length=9, steps=1, short="drop")
    with pytest.raises(InvalidSpecError, match="no windows: 1 trials, the longest of 3 rows"):
        TrialStream(store, where="id = 'a'", windows=windows)


def test_the_id_of_a_trial_with_gaps_means_all_its_segments(tmp_path):
    rows = [Known(f"cut#{k + 1}", trial="cut", segment=k) for k in range(3)]
    for n_parts in (0, 2):
        store = known_store(tmp_path / str(n_parts), [*rows, Known("x")], n_parts=n_parts)
        got = ids_of(store, TrialStream(store, batch_size=4, trials=["cut"]))
        assert got == {"cut#1", "cut#2", "cut#3"}
        got = ids_of(store, TrialStream(store, batch_size=4, trials=["cut#2", "x"]))
        assert got == {"cut#2", "x"}


def test_open_store_is_at_hand(tmp_path):
    robots(tmp_path)
    assert open_store(tmp_path)["t03"].split == "train"


def test_ids_may_come_in_any_column(tmp_path):
    store = robots(tmp_path)
    want = TrialStream(store, trials=["t00", "t01"]).state_dict()
    for ids in (
        pa.array(["t01", "t00"]), pa.chunked_array([["t00"], ["t01"]]), {"t00": 1, "t01": 2},
        np.array(["t00", "t01"]), pa.array(["t00", "t01"], pa.large_utf8()), {"t01", "t00"},
    ):  # fmt: skip
        assert copy.copy(TrialStream(store, trials=ids)).state_dict() == want
