"""Normalization at delivery against slow float64 references, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loaders.rescale import Rescale, fold_sum, window_statistics
from shards.affine import Delivery
from shards.regimes import nearest_centre

METHODS = ["zscore", "minmax", "robust"]
cells = st.one_of(
    st.just(np.nan), st.floats(-1e6, 1e6, width=32), st.sampled_from([0.1, 0.1, 7.0, 1e9])
)


@st.composite
def windows(draw):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 3)))
    values = draw(hnp.arrays(np.float32, shape, elements=cells))
    lengths = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1])))
    return values, lengths


def reference(method, column):
    """Offset and scale of the present values of one channel of one window, in float64."""
    seen = column[~np.isnan(column)].astype(np.float64)
    if not len(seen):
        return 0.0, 1.0
    if method == "zscore":
        offset, scale = seen.mean(), 0.0 if len(set(seen.tolist())) == 1 else seen.std()
    elif method == "minmax":
        offset, scale = seen.min(), seen.max() - seen.min()
    else:
        low, offset, high = np.quantile(seen, [0.25, 0.5, 0.75])
        scale = high - low
    return float(offset), float(scale) if scale > 1e-30 else 1.0


def by_window(method, n_channels, length, columns=(0,), **kw):
    delivery = Delivery.parse(((method, "window"),) * n_channels, {}, "abc"[:n_channels], list)
    places = np.array(columns, np.int64)
    return Rescale(delivery, np.arange(99), length, places, may_miss=True, **kw)


def run(rescale, values, lengths):
    out = torch.from_numpy(values.copy())
    position = torch.zeros(len(values), dtype=torch.int64)
    return out, rescale.values(out, position, torch.from_numpy(lengths))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60)
@given(windows())
def test_each_window_has_its_own_statistics(method, case):
    values, lengths = case
    present = np.arange(values.shape[1])[:, None] < lengths[:, None, None]
    seen = torch.from_numpy(present & ~np.isnan(values))
    offset, scale = window_statistics(method, torch.from_numpy(values).double(), seen)
    for b, n in enumerate(lengths.tolist()):
        for c in range(values.shape[2]):
            want = reference(method, values[b, :n, c])
            level = np.nanmax(np.abs(values[b, :n, c]), initial=0).astype(np.float64)
            assert float(offset[b, c]) == pytest.approx(want[0], rel=1e-14, abs=1e-14 * level)
            assert float(scale[b, c]) == pytest.approx(want[1], rel=1e-9, abs=1e-13 * level)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60)
@given(windows())
def test_values_are_two_rounded_operations_and_go_back(method, case):
    values, lengths = case
    got, applied = run(by_window(method, values.shape[2], values.shape[1]), values, lengths)
    assert applied.offset.dtype == applied.scale.dtype == applied.inv_scale.dtype == torch.float32
    offset, scale = applied.offset.numpy(), applied.scale.numpy()
    want = (values - offset[:, None]) * applied.inv_scale.numpy()[:, None]
    assert got.numpy().tobytes() == want.tobytes()
    back = got.numpy().astype(np.float64) * scale[:, None] + offset[:, None]
    for b, n in enumerate(lengths.tolist()):
        rows, again = values[b, :n], back[b, :n]
        assert np.array_equal(np.isnan(rows), np.isnan(got[b, :n].numpy()))
        size = np.abs(rows - offset[b]) + np.abs(offset[b])
        assert (np.isnan(rows) | (np.abs(again - rows) <= 4 * 2**-23 * size + 1e-30)).all()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(windows(), st.integers(1, 4))
def test_a_window_has_the_same_bits_in_any_batch_and_on_any_threads(method, case, n_threads):
    values, lengths = case
    rescale = by_window(method, values.shape[2], values.shape[1])
    together, applied = run(rescale, values, lengths)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        big = np.tile(values, (40, 1, 1))
        many, _ = run(rescale, big, np.tile(lengths, 40))
    finally:
        torch.set_num_threads(before)
    assert many[: len(values)].numpy().tobytes() == together.numpy().tobytes()
    for b in range(len(values)):
        alone, one = run(rescale, values[b : b + 1], lengths[b : b + 1])
        assert alone.numpy().tobytes() == together[b].numpy().tobytes()
        assert one.offset.numpy().tobytes() == applied.offset[b].numpy().tobytes()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@given(windows())
def test_what_lies_behind_a_short_window_does_not_show(method, case):
    values, lengths = case
    other = values.copy()
    for b, n in enumerate(lengths.tolist()):
        other[b, n:] = 12345.0
    rescale = by_window(method, values.shape[2], values.shape[1])
    first, second = run(rescale, values, lengths), run(rescale, other, lengths)
    assert first[1].offset.numpy().tobytes() == second[1].offset.numpy().tobytes()
    assert first[1].scale.numpy().tobytes() == second[1].scale.numpy().tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_empty_channels_and_filler_rows(method):
    values = np.full((3, 5, 2), 0.1, np.float32)
    values[:, :, 1] = np.nan
    got, applied = run(by_window(method, 2, 5), values, np.array([5, 1, 0]))
    assert applied.scale.tolist() == [[1, 1]] * 3
    assert applied.offset[:, 1].tolist() == [0, 0, 0]
    assert applied.offset[2].tolist() == [0, 0]
    assert not got[:2, :, 0].any()
    targets = torch.full((3, 2, 1), 1.1)
    by_window(method, 2, 5).targets(targets, torch.zeros(3, dtype=torch.int64), applied)
    assert targets[0, 0, 0].item() == np.float32(1.1) - np.float32(0.1)


@settings(max_examples=50)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 20), st.just(2)),
                  elements=st.integers(-1000, 1000).map(float)))  # fmt: skip
def test_fold_sum_sums(values):
    before = values.copy()
    got = fold_sum(torch.from_numpy(values))
    np.testing.assert_array_equal(got.numpy(), values.sum(axis=1))
    np.testing.assert_array_equal(values, before)


# --- regimes --------------------------------------------------------------------------------------

FIT = {
    "offset": [0.0, 10.0, 20.0],
    "scale": [1.0, 2.0, 3.0],
    "regimes": {
        "channels": ["c", "a"],
        "centres": [[0.0, 0.0], [1.0, 5.0]],
        "spread": [0.3, 7.0],
        "offset": [[0, 1.1, 2.2], [0, 3.3, 4.4]],
        "scale": [[1, 0.1, 0.2], [1, 0.3, 0.4]],
    },
}
ENTRIES = (("none", "none"), ("zscore", "regime"), ("robust", "regime"))


@settings(max_examples=60)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.just(3)),
                  elements=st.one_of(st.just(np.nan), st.floats(-9, 9, width=32))))  # fmt: skip
def test_tensors_and_arrays_decide_and_deliver_alike(values):
    delivery = Delivery.parse(ENTRIES, FIT, "abc", list)
    known = delivery.regimes
    assert known is not None
    rescale = Rescale(delivery, np.arange(1), values.shape[1], np.array([0]), may_miss=True)
    lengths = np.full(len(values), values.shape[1])
    lengths[-1] -= 1
    got, applied = run(rescale, values, lengths)
    flat = nearest_centre(values.reshape(-1, 3)[:, [2, 0]], known.centres, known.inv_spread)
    want = flat.reshape(values.shape[:2])
    want[-1, -1] = 2
    assert applied.regimes.dtype == torch.uint8
    np.testing.assert_array_equal(applied.regimes.numpy(), want)
    for b, n in enumerate(lengths.tolist()):
        rows = delivery.apply(values[b, :n], 0)
        assert rows.tobytes() == got[b, :n].numpy().tobytes()
        table_offset = np.array([[0, 1.1, 2.2], [0, 3.3, 4.4], [0, 10, 20]], np.float32)
        table_inverse = (1 / np.array([[1, 0.1, 0.2], [1, 0.3, 0.4], [1, 2, 3]])).astype("f4")
        slow = (values[b, :n] - table_offset[want[b, :n]]) * table_inverse[want[b, :n]]
        assert rows.tobytes() == slow.tobytes()
    for b in range(len(values)):
        alone, _ = run(rescale, values[b : b + 1], lengths[b : b + 1])
        assert alone.numpy().tobytes() == got[b].numpy().tobytes()


# --- the fast paths -------------------------------------------------------------------------------


def test_values_that_are_stored_as_delivered_are_not_touched():
    delivery = Delivery.parse((("zscore", "trial"), ("none", "none")), {}, "ab", list)
    rescale = Rescale(delivery, np.arange(3), 4, np.array([0]), may_miss=True)
    values = torch.randn(2, 4, 2)
    values.requires_grad_()  # any operation in place would raise
    zeros = torch.zeros(2, dtype=torch.int64)
    assert all(part is None for part in rescale.values(values, zeros, zeros))


def test_groups_take_the_row_of_their_trial():
    fit = {
        "offset": [9.0, 9.0], "scale": [3.0, 3.0],
        "groups": {"m": {"values": ["p", "q"], "offset": [[0, 1], [0, 2]],
                         "scale": [[1, 10], [1, 20]]}},
    }  # fmt: skip
    groups = {"m": ["q", None, "p", "unknown", "q"]}
    entries = (("zscore", "train"), ("zscore", "group:m"))
    delivery = Delivery.parse(entries, fit, "ab", groups.__getitem__)
    rescale = Rescale(delivery, np.array([4, 3, 2]), 2, np.array([1]), may_miss=False)
    values = torch.full((3, 2, 2), 30.0)
    targets = torch.full((3, 1, 1), 30.0)
    position = torch.tensor([0, 1, 2])
    applied = rescale.values(values, position, torch.full((3,), 2))
    rescale.targets(targets, position, applied)
    inverse = (1 / np.array([20.0, 3.0, 10.0])).astype(np.float32)
    want = (np.float32(30) - np.array([2, 9, 1], np.float32)) * inverse
    assert values[:, 0, 1].tolist() == want.tolist()
    assert targets[:, 0, 0].tolist() == want.tolist()
    assert values[:, 1, 0].tolist() == [float(np.float32(21) * np.float32(1 / 3))] * 3
