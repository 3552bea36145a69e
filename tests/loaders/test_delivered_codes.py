"""Codes and statics: each delivered one is what its trial's text says in train's vocabulary."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import zarr
from batches import assert_same
from codedstores import TextTrial, slow_codes, text_spec, text_store
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from vandal import replace

from loaders import TrialStream
from loaders.codes import CodeTable
from pipeline.codes import CATEGORIES
from shards import CorruptStoreError, InvalidSpecError, Store, WindowSpec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1"
WORD = st.sampled_from(["open", " open", "close ", "öffnen", "Open", "", "  ", "z", "日本", None])
SPEC = text_spec({"gripper": "one_hot", "mode": "embed"})


@st.composite
def text_trials(draw, n_columns=2):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    splits = ["train", *(draw(st.sampled_from(["train", "test"])) for _ in lengths[1:])]
    return [
        TextTrial(
            [draw(st.lists(WORD, min_size=n, max_size=n)) for _ in range(n_columns)], split=split
        )
        for n, split in zip(lengths, splits, strict=True)
    ]


@settings(max_examples=40)
@given(
    trials=text_trials(),
    length=st.integers(1, 9),
    stride=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    n_shards=st.integers(1, 3),
    split=st.sampled_from(["train", "test"]),
)
def test_delivered_codes_are_those_of_a_slow_look_up(
    tmp_path_factory, trials, length, stride, batch_size, n_shards, split
):
    """Windows of any stride, short ones, padding, filler rows, words that train does not know."""
    store = text_store(tmp_path_factory.mktemp("s"), trials, SPEC, n_shards=n_shards)
    if split not in store.manifest.splits:
        return
    try:
        stream = TrialStream(
            store, split=split, windows=WindowSpec(length, stride, steps=1), batch_size=batch_size
        )
    except InvalidSpecError:
        return
    for batch in stream:
        assert (batch.codes.dtype, batch.codes.shape) == (torch.int64, (batch_size, length, 2))
        assert batch.statics is None
        assert batch.static_codes is None
        for row, trial in enumerate(batch.trial.tolist()):
            want = np.zeros((length, 2), np.int64)
            if trial >= 0:
                n, start = int(batch.lengths[row]), int(batch.start[row])
                want[:n] = slow_codes(trials[trial], trials)[start : start + n]
            assert np.array_equal(batch.codes[row].numpy(), want)


def many_trials(n=40):
    rng = np.random.default_rng(5)
    words = ["a", "b", "c", "d", None]
    return [
        TextTrial(
            [rng.choice(words[i % 3 :], 5 + 7 * i % 40).tolist() for _ in range(2)],
            {"load": str(i / 4) if i % 7 else None, "site": "xyz"[i % 3], "hand": f"h{i % 5}"},
            split="test" if i % 4 == 3 else "train",
        )
        for i in range(n)
    ]


STATIC = {"load": "number", "site": "one_hot", "hand": "embed"}
ALL = text_spec({"gripper": "one_hot", "mode": "embed"}, STATIC)


@pytest.mark.parametrize("n_shards", [3, 100])
def test_packing_does_not_show(tmp_path, n_shards):
    want = TrialStream(text_store(tmp_path / "a", many_trials(), ALL), batch_size=32)
    got = TrialStream(text_store(tmp_path / "b", many_trials(), ALL, n_shards=n_shards))
    got = TrialStream(got.store, batch_size=32)
    assert got.fingerprint == want.fingerprint
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)


def test_neither_batch_size_nor_workers_nor_ranks_show(tmp_path):
    store = text_store(tmp_path, many_trials(), ALL, n_shards=4)

    def rows(stream):
        return {
            (trial, start): tuple(
                tensor[row].numpy().tobytes()
                for tensor in (batch.codes, batch.statics, batch.static_codes)
            )
            for batch in stream
            for row, (trial, start) in enumerate(
                zip(batch.trial.tolist(), batch.start.tolist(), strict=True)
            )
            if trial >= 0
        }

    want = rows(TrialStream(store, batch_size=1))
    assert rows(TrialStream(store, batch_size=7)) == want
    halves = [rows(TrialStream(store, batch_size=8, rank=r, world_size=2)) for r in (0, 1)]
    assert halves[0] | halves[1] == want
    loader = DataLoader(
        TrialStream(store, batch_size=8), batch_size=None, num_workers=2,
        multiprocessing_context="fork",
    )  # fmt: skip
    for mine, theirs in zip(loader, TrialStream(store, batch_size=8), strict=True):
        assert_same(mine, theirs)


def test_statics_are_by_the_train_trials_alone(tmp_path):
    trials = many_trials()
    trials.append(TextTrial([["a"] * 9] * 2, {"load": "1e30", "site": "new", "hand": "h"}, "test"))
    trials.append(TextTrial([["a"] * 9] * 2, {"load": "", "site": None}, "test"))
    store = text_store(tmp_path, trials, ALL)
    loads = [
        float(t.attributes["load"])
        for t in trials
        if t.split == "train" and t.attributes["load"] is not None
    ]
    mean, sd = np.mean(loads), np.std(loads)
    hands = sorted({t.attributes["hand"] for t in trials if t.split == "train"})
    for split in ("train", "test"):
        for batch in TrialStream(store, split=split, batch_size=16):
            assert (batch.statics.dtype, batch.statics.shape) == (torch.float32, (16, 4))
            assert (batch.static_codes.dtype, batch.static_codes.shape) == (torch.int64, (16, 1))
            for row, trial in enumerate(batch.trial.tolist()):
                want, code = np.zeros(4, np.float32), 0
                if trial >= 0:
                    said = trials[trial].attributes
                    load = said["load"]
                    want[0] = (float(load) - mean) / sd if load else 0
                    want[1:] = [said["site"] == word for word in "xyz"]
                    hand = said.get("hand")
                    code = hands.index(hand) + 1 if hand in hands else 0
                assert np.allclose(batch.statics[row].numpy(), want, rtol=1e-6)
                assert int(batch.static_codes[row]) == code


def test_a_number_is_rounded_once_and_never_infinite(tmp_path):
    texts = ["0.1", "0.2", "0.7"]
    trials = [TextTrial([], {"x": text}, n_rows=9) for text in texts]
    trials.append(TextTrial([], {"x": "3e38"}, "test", n_rows=9))
    store = text_store(tmp_path, trials, text_spec({}, ["x"]))
    fit = store.fit["static"][0]
    for batch in TrialStream(store, batch_size=3, shuffle="none"):
        for row, trial in enumerate(batch.trial.tolist()):
            if trial >= 0:
                want = np.float32((float(texts[trial]) - fit["mean"]) / fit["sd"])
                assert batch.statics[row].numpy().tobytes() == want.tobytes()
        assert batch.codes is None
    far = next(iter(TrialStream(store, split="test", batch_size=1))).statics
    assert far.isfinite().all()
    assert float(far) == np.finfo(np.float32).max


def test_constants_and_absent_numbers_are_delivered_as_zero(tmp_path):
    trials = [TextTrial([], {"same": "0.1", "none": None}, n_rows=9) for _ in range(3)]
    store = text_store(tmp_path, trials, text_spec({}, ["same", "none", "nowhere"]))
    assert [entry["sd"] for entry in store.fit["static"]] == [1.0, 1.0, 1.0]
    for batch in TrialStream(store, batch_size=2):
        assert batch.statics.shape == (2, 3)
        assert not batch.statics.any()


def test_attributes_that_no_trial_has_are_missing_everywhere(tmp_path):
    trials = [TextTrial([["a"] * 9], {"other": "1"}) for _ in range(3)]
    spec = text_spec({"gripper": "embed"}, {"x": "number", "y": "one_hot", "z": "embed"})
    store = text_store(tmp_path, trials, spec)
    batch = next(iter(TrialStream(store, batch_size=2)))
    assert batch.statics.tolist() == [[0.0], [0.0]]
    assert batch.static_codes.tolist() == [[0], [0]]


def test_the_fit_knows_nothing_of_other_splits(tmp_path):
    trials = many_trials()
    others = [
        t if t.split == "train" else TextTrial([["secret"] * len(t)] * 2, {"load": "99"}, "test")
        for t in trials
    ]
    a, b = (text_store(tmp_path / n, t, ALL) for n, t in (("a", trials), ("b", others)))
    assert a.fit == b.fit
    assert a.manifest.fingerprints["train"] == b.manifest.fingerprints["train"]
    assert a.manifest.fingerprints["test"] != b.manifest.fingerprints["test"]
    for batch in TrialStream(b, split="test", batch_size=8):
        assert not batch.codes.any()


@pytest.mark.parametrize("case", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_older_stores_deliver_neither(case):
    store = Store(GOLDEN / case)
    assert (store.manifest.codes, store.manifest.statics) == ((), ())
    batch = next(iter(TrialStream(store, batch_size=4, windows=WindowSpec(4, 2, steps=1))))
    assert (batch.codes, batch.statics, batch.static_codes) == (None, None, None)


def test_zarr_python_opens_the_codes(tmp_path):
    trials = many_trials()
    store = text_store(tmp_path, trials, ALL, n_shards=3)
    index = store.index
    for number, trial in enumerate(trials):
        digest = store.manifest.shards[index.shard[number]].digest
        array = zarr.open_group(tmp_path / "shards" / digest, mode="r")["codes"]
        assert array.dtype == np.uint16
        first = int(index.row_start[number])
        codes = array[first : first + len(trial)]
        assert np.array_equal(codes, store.trial_rows(number, "codes"))
        words = store.cold("categories")["categories"][number].as_py()
        for j, column in enumerate(trial.columns):
            assert [None if c == 0 else words[j][c - 1] for c in codes[:, j]] == list(column)


@pytest.mark.parametrize("key", ["categorical", "static"])
def test_a_fit_that_does_not_fit_is_refused(tmp_path, key):
    store = text_store(tmp_path, many_trials(), ALL)
    path = store.folder / "fit.json"
    fit = json.loads(path.read_bytes())
    for change in (fit[key][:-1], fit[key][::-1], [{"name": 1}], None):
        replace(store.folder, "fit.json", json.dumps({**fit, key: change}).encode())
        with pytest.raises(CorruptStoreError, match=r"fit\.json does not fit the manifest"):
            next(iter(TrialStream(Store(tmp_path))))


def test_a_million_trials_open_in_seconds(tmp_path, monkeypatch):
    """No loop over trials: their dictionaries are looked up as one array."""
    store = text_store(tmp_path, many_trials(), ALL)
    n = 1_000_000
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 4 * n + 1, 2, dtype=np.int32)), pa.array(["a", "c"]).take(
            pa.array(np.tile([0, 1], 2 * n)))
    )  # fmt: skip
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * n + 1, 2, dtype=np.int32)), inner)
    table = pa.table({"categories": lists.cast(CATEGORIES)})
    monkeypatch.setattr(store, "cold", lambda *_: table)
    began = time.process_time()
    looked_up = CodeTable(store, np.arange(n))
    assert time.process_time() - began < 10
    local = np.array([[[0, 1], [2, 2]]], np.uint16)
    assert looked_up.deliver(np.array([n - 1]), local).tolist() == [[[0, 1], [3, 3]]]
    assert math.isclose(looked_up._table.nbytes, 4 * n * 6)
