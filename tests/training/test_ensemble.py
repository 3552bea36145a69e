"""Means and spreads of predictions, element by element, held against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learnable import learnable_store

from shards import InvalidSpecError
from training.ensemble import as_predictions, average_predictions, shared_trials
from training.predict import Predictions
from training.tables import predictions_table
from training.target import Objective


def table(rows: list[tuple[str, int, int]], predicted: Any, **more: Any) -> pa.Table:
    trial, row, ahead = zip(*rows, strict=True)
    return pa.table(
        {
            "trial": list(trial), "row": list(row), "ahead": pa.array(ahead, pa.int32()),
            "truth_y": [float(r) for r in row], "predicted_y": np.asarray(predicted, float),
            "naive_y": [0.0] * len(rows), **more,
        }
    )  # fmt: skip


ROWS = [(trial, row, ahead) for trial in ("a", "b") for row in (0, 1) for ahead in (1, 2)]


@given(st.data())
@settings(max_examples=30)
def test_predictions_are_matched_by_element_in_whatever_order_they_come(data: st.DataObject):
    n_models = data.draw(st.integers(2, 4))
    finite = st.floats(-1e3, 1e3)
    said = np.array([[data.draw(finite) for _ in ROWS] for _ in range(n_models)])
    tables = {}
    for number, values in enumerate(said):
        order = data.draw(st.permutations(range(len(ROWS))))
        tables[str(number)] = table([ROWS[i] for i in order], values[order])
    found = average_predictions(tables)
    keys = list(zip(*(found[k].to_pylist() for k in ("trial", "row", "ahead")), strict=True))
    assert keys == ROWS
    assert found["truth_y"].to_pylist() == [float(row) for _, row, _ in ROWS]
    assert np.allclose(found["predicted_y"].to_numpy(), said.mean(axis=0))
    assert np.allclose(found["sd_y"].to_numpy(), said.std(axis=0, ddof=1))


def test_the_spread_of_one_model_is_not_a_number():
    assert np.isnan(average_predictions({"a": table(ROWS, range(8))})["sd_y"].to_numpy()).all()


def test_other_elements_are_refused():
    with pytest.raises(InvalidSpecError, match=r"two predicts other elements \(7 rows\) than one"):
        average_predictions({"one": table(ROWS, range(8)), "two": table(ROWS[1:], range(7))})
    moved = [(trial, row + 1, ahead) for trial, row, ahead in ROWS]
    with pytest.raises(InvalidSpecError, match="other elements"):
        average_predictions({"one": table(ROWS, range(8)), "two": table(moved, range(8))})


def test_a_class_is_the_one_with_the_highest_mean_probability():
    parts = {}
    for name, slow in (("one", [0.9, 0.4]), ("two", [0.2, 0.45])):
        fast = [1 - p for p in slow]
        code = [float(p > 0.5) for p in fast]
        parts[name] = table(ROWS[:2], code, probability_slow=slow, probability_fast=fast)
    found = average_predictions(parts)
    assert found["predicted_y"].to_pylist() == [0, 1]
    assert np.allclose(found["probability_slow"].to_numpy(), [0.55, 0.425])
    assert np.allclose(found["sd_slow"].to_numpy(), np.std([[0.9, 0.4], [0.2, 0.45]], 0, ddof=1))
    assert "sd_y" not in found.column_names


@pytest.mark.parametrize("loss", ["mse", "quantile"])
def test_a_table_of_predictions_goes_back_to_what_was_scored(tmp_path: Any, loss: str):
    store = learnable_store(tmp_path / "store", "per_step", n_trials=6)
    rng = np.random.default_rng(0)
    levels = (0.1, 0.5, 0.9) if loss == "quantile" else ()
    objective = Objective("per_step", ("effort",), loss, quantiles=levels)
    parts: dict[str, Any] = {k: rng.normal(size=(5, 1)) for k in ("truth", "predicted", "naive")}
    part = Predictions(
        trial=np.array([0, 0, 3, 5, 5]), row=np.arange(5), ahead=np.zeros(5, np.int64),
        quantiles=np.sort(rng.normal(size=(5, 1, 3))) if levels else None, **parts,
    )  # fmt: skip
    back = as_predictions(predictions_table(part, store, objective), store, objective)
    for name in ("trial", "row", "ahead", "truth", "predicted", "naive"):
        assert np.array_equal(getattr(back, name), getattr(part, name)), name
    assert (back.quantiles is None) == (part.quantiles is None)
    assert back.quantiles is None or np.array_equal(back.quantiles, part.quantiles)


def test_trials_in_two_tables_are_counted_once():
    first, second = table(ROWS[:4], range(4)), table(ROWS, range(8))
    assert shared_trials([first, second]) == 1
    assert shared_trials([first, table(ROWS[4:], range(4))]) == 0
