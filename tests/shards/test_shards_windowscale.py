"""Normalization by a window's own rows: NumPy and tensors give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loaders import rescale
from shards.affine import Delivery
from shards.regimes import AffineTable
from shards.windowscale import rescale_window, window_statistics

METHODS = ("zscore", "minmax", "robust")
cells = st.one_of(
    st.just(np.nan),
    st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
    st.sampled_from([0.125, -0.0]),
)
windows = hnp.arrays(np.float32, st.tuples(st.integers(1, 19), st.just(3)), elements=cells)


def statistics(method: str, values: Any, length: int) -> list[bytes]:
    """Return what a stream finds for a window that is padded to `length`."""
    rows = np.full((1, length, values.shape[1]), np.nan)
    rows[0, : len(values)] = values
    present = torch.from_numpy(~np.isnan(rows))
    found = rescale.window_statistics(method, torch.from_numpy(rows), present)
    return [part[0].numpy().tobytes() for part in found]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@given(windows, st.integers(0, 6))
def test_statistics_are_those_of_a_stream_to_the_bit(method, values, n_padding):
    length = len(values) + n_padding
    got = window_statistics(method, values.astype(np.float64), length)
    assert [part.tobytes() for part in got] == statistics(method, values, length)


@settings(max_examples=30)
@given(windows, st.permutations([*METHODS]))
def test_each_channel_has_its_own_method_and_others_stay_as_they_are(values, methods):
    entries = (("zscore", "train"), *((method, "window") for method in methods[:2]))
    table = AffineTable.of(np.zeros((1, 3)), np.ones((1, 3)))
    delivery = Delivery(entries, table, None, None)
    got = values.copy()
    rescale_window(delivery, values, got, len(values))
    tensor = torch.from_numpy(values.copy())[None]
    whole = rescale.Rescale(
        delivery, np.zeros(1, np.int64), len(values), np.zeros(0, np.int64), may_miss=True
    )
    whole.values(tensor, torch.zeros(1, dtype=torch.int64), torch.tensor([len(values)]))
    assert got[:, 0].tobytes() == values[:, 0].tobytes()
    assert got[:, 1:].tobytes() == tensor[0, :, 1:].numpy().tobytes()
