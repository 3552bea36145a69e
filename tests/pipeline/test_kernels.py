"""Compiled arithmetic: as the plain functions compute it, with the same bits in every batch."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import kernels, normalize


@st.composite
def batches(draw):
    """Return rows with gaps, and offsets; some trials are short, some columns empty."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    n_columns, seed = draw(st.integers(1, 5)), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((sum(lengths), n_columns)) * 10.0 ** rng.integers(-3, 9, n_columns)
    values += rng.choice([0.0, 1e9], n_columns)
    values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = np.nan
    return values, np.cumsum([0, *lengths], dtype=np.int64)


def trials(values, offsets):
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


@settings(max_examples=100)
@given(batches())
def test_moments_are_those_of_each_trial(batch):
    values, offsets = batch
    got = kernels.measure_moments(values, offsets)
    for i, rows in enumerate(trials(values, offsets)):
        alone = kernels.measure_moments(rows, np.array([0, len(rows)]))
        if not len(rows):
            continue
        wanted = normalize.measure_moments(rows)
        for name in kernels.MOMENTS:
            assert got[name][i].tobytes() == alone[name][0].tobytes()
            assert got[name][i].tobytes() == wanted[name].tobytes()


@settings(max_examples=60)
@given(batches())
def test_an_affine_is_applied_trial_by_trial(batch):
    values, offsets = batch
    rng = np.random.default_rng(0)
    n = (len(offsets) - 1, values.shape[1])
    offset, scale = rng.standard_normal(n), rng.random(n) + 0.1
    got = kernels.apply_affine(values, offsets, offset, scale)
    parts = trials(values, offsets)
    wanted = [normalize.Affine(offset[i], scale[i]).apply(part) for i, part in enumerate(parts)]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.concatenate(wanted))
