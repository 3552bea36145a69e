"""k-means of our own: what it finds, and that nothing but rows and seed decides."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import trainrows
from pipeline.regimes import _assign, _refine, _seed_centres, find_regimes
from shards.errors import InvalidSpecError
from shards.regimes import nearest_centre

# Altitude, Mach number and throttle of six operating conditions, as turbofan records have them.
SIX = np.array(
    [[0, 0, 100], [10, 0.25, 100], [20, 0.7, 100], [25, 0.62, 60], [35, 0.84, 100], [42, 0.84, 100]]
)


def make_rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = SIX[rng.integers(0, 6, n)] + rng.uniform(0, 0.002, (n, 3))
    return rows.astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_six_operating_conditions_are_found_from_any_seed(seed):
    rows = make_rows(3000)
    spread = rows.astype(np.float64).std(axis=0)
    centres = find_regimes(rows, spread, "ahm", count=6, seed=seed)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(centres, SIX, atol=0.01)
    found = nearest_centre(rows, centres, (1 / spread).astype(np.float32))
    truth = np.abs(rows[:, None] - SIX).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found, truth)


@given(
    hnp.arrays(np.float32, (30, 2), elements=st.integers(-50, 50).map(float)),
    st.integers(2, 5),
    st.integers(0, 9),
)
def test_no_row_is_nearer_to_another_centre_and_centres_are_means(rows, count, seed):
    columns = rows.T.astype(np.float64)
    if len(np.unique(rows, axis=0)) < count:
        with pytest.raises(InvalidSpecError, match="different"):
            find_regimes(rows, np.ones(2), "ab", count=count, seed=seed)
        return
    centres = _refine(columns, _seed_centres(columns, "ab", count, seed))
    nearest = _assign(columns, centres)
    far = ((columns.T[:, None] - centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest, far.argmin(axis=1))
    for number in np.unique(nearest):
        np.testing.assert_allclose(centres[number], rows[nearest == number].mean(axis=0), atol=1e-9)
    found = find_regimes(rows, np.ones(2), "ab", count=count, seed=seed)
    assert found.tolist() == sorted(found.tolist())


def test_the_result_is_pinned():
    """Fits of published stores are compared with fits of later builds, bit for bit."""
    rows = np.array([[0, 1], [0, 2], [9, 1], [9, 3], [5, 5], [5, 7], [np.nan, 1]], np.float32)
    centres = find_regimes(rows, np.array([2.0, 1.0]), "ab", count=3, seed=1)
    assert centres.tolist() == [[0, 1.5], [5, 6], [9, 2]]


def test_threads_do_not_matter():
    code = (
        "import numpy as np; from pipeline.regimes import find_regimes;"
        "rows = np.random.default_rng(0).normal(size=(50_000, 3)).astype(np.float32);"
        "print(find_regimes(rows, np.ones(3), 'abc', count=5, seed=3).tobytes().hex())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "PYTHONPATH": "."},
        ).stdout
        for n in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


def test_rows_without_a_value_are_in_no_regime_and_ties_go_to_the_lowest():
    centres = np.array([[0, 0], [2, 0], [2, 0]], np.float32)
    rows = np.array([[0, 0], [1, 0], [1.5, 9], [np.nan, 0], [3e38, 3e38], [np.inf, 0]], np.float32)
    ones = np.ones(2, np.float32)
    assert nearest_centre(rows, centres, ones).tolist() == [0, 0, 1, 3, 3, 3]


def test_blocks_hold_all_rows_in_order_whatever_the_trials(monkeypatch):
    monkeypatch.setattr(trainrows, "BLOCK_ROWS", 10)
    everything = np.arange(57, dtype=np.float32)[:, None]
    for cuts in ([57], [10, 10, 37], [1] * 57, [9, 2, 30, 16]):
        rows = trainrows.TrainRows.__new__(trainrows.TrainRows)
        edges = np.cumsum([0, *cuts])
        rows._n_rows = np.diff(edges)
        parts = [everything[a:b] for a, b in itertools.pairwise(edges)]
        monkeypatch.setattr(rows, "_trial", parts.__getitem__, raising=False)
        blocks = list(rows.blocks())
        assert [len(block) for block in blocks] == [10, 10, 10, 10, 10, 7]
        np.testing.assert_array_equal(np.concatenate(blocks), everything)
        monkeypatch.setattr(trainrows, "QUANTILE_ROWS", 20)
        sample = rows.sample(np.array([0]))
        np.testing.assert_array_equal(sample, np.concatenate([p[::3] for p in parts]))
