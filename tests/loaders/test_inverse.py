"""Delivered values, targets and predictions go back to physical units, whatever the scope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same
from stores import coded_values, make_store
from torch.utils.data import DataLoader

from loaders import TrialStream
from shards import InvalidSpecError, WindowSpec
from shards.manifest import TargetSchema

LENGTHS = [3, 10, 41, 2, 17]
TRAIN = {"method": "zscore", "scope": "train"}
WINDOW = {"method": "zscore", "scope": "window"}
REGIME = {"method": "minmax", "scope": "regime"}
MIXED: dict[str, Any] = {
    "method": "mixed", "scope": "mixed", "channels": [TRAIN, WINDOW, REGIME],
    "offset": [5.0, 0.0, 20_000.0], "scale": [3.0, 1.0, 11.0],
    "regimes": {
        "channels": ["c0"], "centres": [[10.0], [20_010.0], [20_030.0]], "spread": [9000.0],
        "offset": [[0, 0, 7.0], [0, 0, 20_000.1], [0, 0, 20_020.3]],
        "scale": [[1, 1, 0.7], [1, 1, 10.3], [1, 1, 3.1]],
    },
}  # fmt: skip
TARGET = TargetSchema("forecast", ("c1", "c0"))


def make_stream(path, **options) -> TrialStream:
    windows = WindowSpec(6, 2, horizon=2, steps=3)
    store = make_store(path, LENGTHS, target=TARGET, windows=windows, normalize=MIXED,
                       n_shards=2)  # fmt: skip
    return TrialStream(store, **{"batch_size": 4, "shuffle": "none", **options})


def test_values_and_forecasts_go_back_exactly(tmp_path):
    stream, n_seen = make_stream(tmp_path), set()
    for batch in stream:
        assert batch.regimes is not None
        back = stream.to_physical(batch.values.double(), batch, ["c0", "c1", "c2"])
        ahead = stream.to_physical(batch.targets.double(), batch)
        some = stream.to_physical(batch.values[:, :, [2, 0]], batch, ["c2", "c0"])
        for row, trial in enumerate(batch.trial.tolist()):
            n, start = int(batch.lengths[row]), int(batch.start[row])
            if trial < 0:
                assert batch.regimes[row].tolist() == [3] * 6
                continue
            rows = coded_values(trial, LENGTHS[trial], 3)
            np.testing.assert_allclose(back[row, :n], rows[start : start + n], rtol=3e-7)
            first = start + n + 1
            np.testing.assert_allclose(
                ahead[row], rows[first : first + 3][:, [1, 0]], rtol=3e-7, atol=1e-5
            )
            np.testing.assert_allclose(some[row, :n, 0], rows[start : start + n, 2], rtol=3e-7)
            nearest = np.abs(rows[start : start + n, :1] - [10, 20_010, 20_030]).argmin(axis=1)
            assert batch.regimes[row].tolist() == [*nearest.tolist(), *[3] * (6 - n)]
            n_seen |= set(nearest.tolist())
    assert n_seen == {0, 1, 2}


def test_other_channels_have_no_window_affine(tmp_path):
    batch = next(iter(make_stream(tmp_path)))
    assert batch.window_offset is not None
    assert batch.window_scale is not None
    assert batch.window_offset.shape == batch.window_scale.shape == (4, 3)
    assert not batch.window_offset[:, [0, 2]].any()
    assert (batch.window_scale[:, [0, 2]] == 1).all()


@pytest.mark.parametrize("batch_size", range(1, 8))
def test_any_batch_size_delivers_the_same_windows(tmp_path, batch_size):
    def windows(stream):
        return {
            (trial, start): [
                part[row].numpy().tobytes()
                for part in (b.values, b.targets, b.regimes, b.window_offset, b.window_scale)
            ]
            for b in stream
            for row, (trial, start) in enumerate(
                zip(b.trial.tolist(), b.start.tolist(), strict=True)
            )
            if trial >= 0
        }

    want = windows(make_stream(tmp_path))
    again = TrialStream(tmp_path, batch_size=batch_size, seed=3)
    assert windows(again) == want


def test_workers_deliver_the_same_batches(tmp_path):
    stream = make_stream(tmp_path)
    for got, want in zip(
        DataLoader(make_stream(tmp_path / "b"), batch_size=None, num_workers=2), stream, strict=True
    ):
        assert_same(got, want)


def test_what_cannot_be_told_is_said_with_a_remedy(tmp_path):
    stream = make_stream(tmp_path)
    batch = next(iter(stream))
    back = stream.to_physical(batch.targets[..., 1:], batch.trial, ["c0"])
    assert torch.equal(back, stream.to_physical(batch.targets[..., 1:], batch, ["c0"]))
    with pytest.raises(InvalidSpecError, match=r"\['c1'\] have normalization scope window.*batch"):
        stream.to_physical(batch.targets, batch.trial)
    with pytest.raises(InvalidSpecError, match=r"\['c2'\] have normalization scope regime.*batch"):
        stream.to_physical(batch.values[:, :, 2:], batch.trial, ["c2"])
    with pytest.raises(InvalidSpecError, match=r"values of the batch's steps, \[4, 6, 1\] instead"):
        stream.to_physical(batch.targets[:, :, :1], batch, ["c2"])


def test_a_batch_goes_anywhere_with_what_undoes_it(tmp_path):
    batch = next(iter(make_stream(tmp_path)))
    moved = batch.to("cpu")
    assert_same(moved, batch)
    assert moved.window_scale is not None
