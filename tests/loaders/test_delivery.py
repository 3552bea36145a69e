"""Every delivered number is the one that its trial and row say, on self-naming stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from batches import LENGTHS, PER_STEP, assert_same, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import coded_values, make_store

from loaders import TrialStream
from shards import InvalidSpecError, WindowSpec
from shards.manifest import TargetSchema


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    length=st.integers(1, 9),
    stride=st.integers(1, 5),
    horizon=st.integers(1, 4),
    steps=st.integers(1, 9),
    short=st.sampled_from(["pad", "drop"]),
    balance=st.sampled_from(["window", "trial"]),
    batch_size=st.integers(1, 9),
)
def test_rows_targets_and_padding(
    tmp_path_factory, lengths, length, stride, horizon, steps, short, balance, batch_size
):
    """No window spans two trials; each value is the one its trial and row say."""
    target = TargetSchema("forecast", ("c2", "c0"))
    store = make_store(tmp_path_factory.mktemp("s"), lengths, n_shards=3, target=target)
    spec = WindowSpec(length, stride, horizon=horizon, steps=steps, short=short)
    try:
        stream = TrialStream(store, windows=spec, batch_size=batch_size, balance=balance)
    except InvalidSpecError:
        assert all(n < length + spec.ahead for n in lengths)
        return
    n_seen = 0
    for batch in stream:
        assert batch.values.shape == (batch_size, length, 3)
        assert batch.targets.shape == (batch_size, steps, 2)
        for row, (trial, start) in enumerate(zip(batch.trial, batch.start, strict=True)):
            n, weight = int(batch.lengths[row]), float(batch.weights[row])
            want = np.zeros((length, 3), np.float32)
            ahead = np.full((steps, 2), np.nan, np.float32)
            if trial >= 0:
                rows = coded_values(int(trial), lengths[trial], 3)
                assert n == min(length, lengths[trial] - spec.ahead)
                want[:n] = rows[start : start + n]
                first = int(start) + n + horizon - 1
                ahead[:] = rows[first : first + steps][:, [2, 0]]
            assert (n, weight) == (n, 1) if trial >= 0 else (0, 0)
            assert np.array_equal(batch.values[row].numpy(), want)
            assert np.array_equal(batch.targets[row].numpy(), ahead, equal_nan=True)
            assert batch.valid[row].tolist() == [i < n for i in range(length)]
            n_seen += int(trial >= 0)
        assert batch.global_weight == float(batch.weights.sum())
    assert n_seen == stream._selection.plan.n_draws


@pytest.mark.parametrize("n_shards", [1, 3, 100])
def test_packing_does_not_show(tmp_path, n_shards):
    lengths = [5 + 7 * i % 40 for i in range(120)]
    kw = {"missing": True, "scale": (3.0, 7.0), "target": PER_STEP}
    want = TrialStream(make_store(tmp_path / "a", lengths, **kw), batch_size=32)
    store = make_store(tmp_path / "b", lengths, n_shards=n_shards, **kw)
    got = TrialStream(store, batch_size=32)
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)
    assert len(store.manifest.shards) == n_shards


def test_maps_equal_zarr_python(tmp_path):
    store = make_store(tmp_path, [30, 5000, 20], n_shards=2, target=PER_STEP)
    stream = TrialStream(store, batch_size=16, windows=WindowSpec(8, 40))
    index = store.index
    for batch in stream:
        for row, trial in enumerate(batch.trial.tolist()):
            if trial < 0:
                continue
            digest = store.manifest.shards[index.shard[trial]].digest
            group = zarr.open_group(Path(store.path) / "shards" / digest, mode="r")
            first = int(index.row_start[trial] + batch.start[row])
            rows = slice(first, first + int(batch.lengths[row]))
            n = int(batch.lengths[row])
            assert np.array_equal(group["values"][rows], batch.values[row, :n].numpy())
            assert np.array_equal(group["targets"][rows], batch.targets[row, :n].numpy())


def test_missing_is_zero_and_unobserved(tmp_path):
    for n_channels in (3, 8, 11):
        store = make_store(
            tmp_path / str(n_channels), LENGTHS, n_channels=n_channels, missing=True,
            scale=(2.0, 4.0),
        )  # fmt: skip
        for batch in TrialStream(store, batch_size=8):
            assert batch.observed is not None
            assert batch.observed.shape == batch.values.shape
            for row, trial in enumerate(batch.trial.tolist()):
                n, start = int(batch.lengths[row]), int(batch.start[row])
                assert not batch.observed[row, n:].any()
                assert not batch.values[row, n:].any()
                if trial < 0:
                    continue
                stored = store.trial_rows(trial)[start : start + n]
                assert np.array_equal(batch.observed[row, :n].numpy(), ~np.isnan(stored))
                want = np.nan_to_num((stored - np.float32(2)) * np.float32(0.25))
                assert np.array_equal(batch.values[row, :n].numpy(), want)
                ahead = store.trial_rows(trial)[start + n, 0]
                want = (ahead - np.float32(2)) * np.float32(0.25)
                assert np.array_equal(batch.targets[row, 0, 0].numpy(), want, equal_nan=True)


def test_affine_is_two_rounded_float32_operations(tmp_path):
    offset, scale = 1234.5678, 0.3
    store = make_store(tmp_path, [400, 300], n_channels=5, scale=(offset, scale))
    a, b = np.float32(offset), np.float32(1 / scale)
    many = WindowSpec(6, 3, steps=20)  # more targets than are picked one by one
    for windows in (None, many):
        for batch in TrialStream(store, batch_size=16, windows=windows):
            for row, trial in enumerate(batch.trial.tolist()):
                if trial < 0:
                    continue
                start, n = int(batch.start[row]), int(batch.lengths[row])
                rows = store.trial_rows(trial)[start:]
                want = np.multiply(np.subtract(rows, a, dtype=np.float32), b, dtype=np.float32)
                assert batch.values[row].numpy().tobytes() == want[:n].tobytes()
                steps = batch.targets.shape[1]
                got = batch.targets[row, :, 0].numpy()
                assert got.tobytes() == want[n : n + steps, 0].tobytes()


def test_infinite_values_pass_through(tmp_path):
    store = make_store(tmp_path, [30], scale=(0.0, 1e-38))
    batch = next(iter(TrialStream(store, batch_size=4, shuffle="none")))
    assert torch.isinf(batch.values).any()


def test_per_step_targets(tmp_path):
    store = make_store(
        tmp_path, LENGTHS, target=PER_STEP, windows=WindowSpec(5, 2), scale=(3.0, 2.0)
    )
    for batch in TrialStream(store, batch_size=16):
        assert batch.targets.shape == (16, 5, 2)
        for row, start in enumerate(batch.start.tolist()):
            n = int(batch.lengths[row])
            want = np.full((5, 2), np.nan, np.float32)
            want[:n] = (start + np.arange(n))[:, None] + np.arange(2) / 4
            assert np.array_equal(batch.targets[row].numpy(), want, equal_nan=True)


@pytest.mark.parametrize("classes", [None, ("walk", "sit", "run")])
def test_per_trial_targets(tmp_path, classes):
    labels = [2, 0, 1, 1, 0, 2]
    target = TargetSchema("per_trial", ("label",), classes)
    store = make_store(tmp_path, LENGTHS, target=target, labels=labels, windows=WindowSpec(4, 2))
    stream = TrialStream(store, batch_size=8)
    assert (stream.classes, stream.n_targets, stream.n_channels) == (classes, 1, 3)
    for batch in stream:
        assert batch.targets.dtype == (torch.int64 if classes else torch.float32)
        for got, trial in zip(batch.targets.tolist(), batch.trial.tolist(), strict=True):
            if trial >= 0:
                assert got == labels[trial]
            else:
                assert got == -1 if classes else np.isnan(got)


def test_windows_may_be_overridden_at_load_time(tmp_path):
    store = make_store(tmp_path, [50, 6, 3], windows=WindowSpec(4, 2, steps=1))
    spec = WindowSpec(10, 7, horizon=2, steps=3, short="drop")
    stream = TrialStream(store, windows=spec, batch_size=4, shuffle="none")
    assert stream.windows == spec
    batches = list(stream)
    assert rows_of(batches) == [(0, s) for s in range(0, 37, 7)]
    assert batches[0].targets[0, :, 0].tolist() == [11.0, 12.0, 13.0]


def test_to_physical(tmp_path):
    store = make_store(tmp_path / "a", LENGTHS, scale=(5.0, 3.0))
    stream = TrialStream(store, batch_size=64)
    batch = next(iter(stream))
    real = batch.trial >= 0
    back = stream.to_physical(batch.values, batch.trial, ["c0", "c1", "c2"])[real, 0, 0]
    want = batch.trial[real] * 10_000 + batch.start[real]
    assert torch.allclose(back, want.float(), rtol=1e-6)
    back = stream.to_physical(batch.targets, batch.trial)[real, 0, 0]
    ahead = want + batch.lengths[real]
    assert torch.allclose(back, ahead.float(), rtol=1e-6)
    assert stream.to_physical(batch.targets[:, 0], batch.trial).shape == (64, 1)
    for columns in (["nope"], ["c0", "c1"]):
        with pytest.raises(InvalidSpecError, match="columns"):
            stream.to_physical(batch.targets, batch.trial, columns)
    steps = make_store(tmp_path / "b", LENGTHS, target=PER_STEP, scale=(5.0, 3.0))
    stream = TrialStream(steps)
    batch = next(iter(stream))
    assert stream.to_physical(batch.targets, batch.trial) is batch.targets


def test_to_physical_per_trial(tmp_path, monkeypatch):
    stream = TrialStream(make_store(tmp_path, LENGTHS), batch_size=64)
    offset = np.arange(len(LENGTHS) * 3, dtype=np.float32).reshape(-1, 3)
    monkeypatch.setattr(stream.store, "physical_affine", lambda: (offset, offset + 1))
    trial = torch.tensor([4, 0, -1])
    got = stream.to_physical(torch.ones(3, 2, 1), trial, ["c1"])
    assert got[:, 0, 0].tolist() == [27.0, 3.0, 3.0]
