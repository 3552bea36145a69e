"""Quotas and weights from what stores and users say about trials."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from knownstores import Known, known_store
from stores import make_store

from loaders.balance import draw_quotas, loss_weights
from loaders.choices import Balance, LossWeights
from loaders.order import EpochPlan, largest_remainder
from loaders.trialfacts import number_values
from shards import InvalidSpecError, TrialNotFoundError
from shards.manifest import TargetSchema

CLASSES = TargetSchema("per_trial", ("fault",), ("none", "slip", "crash"))
WINDOWS = [8, 2, 0, 5, 1, 9]


def ints(values):
    return np.array(values, np.int64)


def faults(path, **changes):
    """Return a store of 6 trials; the attributes of the last are missing."""
    labels = [0, 0, 1, 1, 2, 0]
    rows = [
        Known(
            f"t{i}", n_rows=9 + i, label=labels[i], weight=1 + i % 2,
            attributes={"subject": "ab"[i % 2], "n": str(i), "w": f"{i}.5"} if i < 5 else {},
        )
        for i in range(6)
    ]  # fmt: skip
    return known_store(path, rows, n_parts=2, **{"target": CLASSES, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return faults(tmp_path_factory.mktemp("faults"))


def quotas_of(store, balance, n_windows=WINDOWS, trials=None):
    trials = np.arange(len(n_windows)) if trials is None else ints(trials)
    return draw_quotas(store, balance, trials, ints(n_windows)).tolist()


def weights_of(store, weights, quotas=WINDOWS, trials=None):
    trials = np.arange(len(quotas)) if trials is None else ints(trials)
    found = loss_weights(store, weights, trials, ints(quotas))
    assert found.dtype == np.float32
    return found.tolist()


def test_by_window_and_by_trial_are_as_ever(store):
    """Saved states hold a digest of these quotas, and plans of windows compare identities."""
    n_windows = ints(WINDOWS)
    assert draw_quotas(store, Balance(), np.arange(6), n_windows) is n_windows
    want = largest_remainder(n_windows > 0, 25)
    assert quotas_of(store, Balance("trial")) == want.tolist() == [5, 5, 0, 5, 5, 5]


def test_by_square_root(store):
    assert quotas_of(store, Balance("sqrt"), [16, 4, 0, 1]) == [12, 6, 0, 3]


def test_by_class_each_class_is_drawn_alike(store):
    quotas = quotas_of(store, Balance("class"))
    # 9, 8 and 8 of 25; class 0 has 8, 2 and 9 windows.
    assert quotas == [4, 1, 0, 8, 8, 4]
    # Class 1 has no windows among these, and gets nothing.
    assert quotas_of(store, Balance("class"), [3, 0, 1], [0, 2, 4]) == [2, 0, 2]


def test_by_attribute_each_value_is_drawn_alike_and_missing_is_one(store):
    quotas = ints(quotas_of(store, Balance("attribute", "subject")))
    assert [quotas[[0, 2, 4]].sum(), quotas[[1, 3]].sum(), quotas[5]] == [9, 8, 8]
    assert quotas.tolist() == [8, 2, 0, 6, 1, 8]


def test_by_attribute_takes_every_column_of_the_table_of_trials(store):
    for column in store.trials().column_names:
        values = store.trials(column)[column].to_pylist()
        quotas = ints(quotas_of(store, Balance("attribute", column)))
        of_value: dict[object, int] = {}
        for i, value in enumerate(values):
            key = None if value is None or value != value else value
            if WINDOWS[i]:
                of_value[key] = of_value.get(key, 0) + int(quotas[i])
        assert sum(of_value.values()) == sum(WINDOWS), column
        assert max(of_value.values()) - min(of_value.values()) <= 1, column


def test_values_are_numbered_as_they_appear_and_what_is_missing_last(tmp_path):
    starts = [float("nan"), 0.0, 5.0, -0.0, float("nan")]
    rows = [
        Known(f"t{i}", clock=(start, 1.0), attributes={"a": None if start else "x"})
        for i, start in enumerate(starts)
    ]
    store = known_store(tmp_path, rows)
    trials = np.arange(5)
    assert number_values(store, "segment_start", trials).tolist() == [2, 0, 1, 0, 2]
    assert number_values(store, "a", trials).tolist() == [1, 0, 1, 0, 1]
    assert number_values(store, "segment_start", trials[2:]).tolist() == [0, 1, 2]


def test_a_trial_whose_share_is_below_a_draw_is_told_of(store, caplog):
    with caplog.at_level(logging.WARNING):
        assert quotas_of(store, Balance("class"), [99, 1, 1, 0, 1, 0])[1] == 0
    assert "1 of 6 trials" in caplog.text
    assert "'t1'" in caplog.text
    caplog.clear()
    quotas_of(store, Balance("class"))
    assert not caplog.text


def test_own_quotas_are_taken_as_they_are(store):
    want = [3, 0, 0, 7, 1, 2]
    by_id = {f"t{i}": quota for i, quota in reversed(list(enumerate(want)))}
    forms = (
        by_id, {k: np.int16(v) for k, v in by_id.items()},
        ints(want), np.array(want, np.uint8), np.array(want, np.uint64),
    )  # fmt: skip
    for given in forms:
        assert quotas_of(store, Balance("quota", quotas=given)) == want
        assert quotas_of(store, Balance("quota", quotas=given), [5, 1], [3, 4]) == [7, 1]
    assert quotas_of(store, Balance("quota", "n"), [1] * 5) == [0, 1, 2, 3, 4]
    assert quotas_of(store, Balance("quota", "n_rows"), [1] * 6) == [9, 10, 11, 12, 13, 14]


def test_an_array_of_quotas_is_of_the_trials_of_the_split(tmp_path):
    rows = [Known(f"t{i}", split="val" if i % 2 else "train") for i in range(6)]
    store = known_store(tmp_path, rows)
    balance = Balance("quota", quotas=ints([7, 8, 9]))
    assert quotas_of(store, balance, [1, 1, 1], [1, 3, 5]) == [7, 8, 9]
    assert quotas_of(store, balance, [1, 1], [0, 4]) == [7, 9]


@pytest.mark.parametrize(
    ("quotas", "error", "says"),
    [
        ({"t0": 1}, InvalidSpecError, "lacks 5 of 6 trials, such as 't1'"),
        ({}, InvalidSpecError, "wanted trial id -> integer"),
        ({"x": 1, "t0": 1}, TrialNotFoundError, "1 of 2 ids.*'x'"),
        ({"t0": 1.5}, InvalidSpecError, "double"),
        ({"t0": True}, InvalidSpecError, "bool"),
        ({"t0": "1"}, InvalidSpecError, "string"),
        ({"t0": None}, InvalidSpecError, "integer"),
        ({"t0": 1, "t1": None}, InvalidSpecError, "1 of them missing"),
        ({"t0": 2**70}, InvalidSpecError, "cannot be read"),
        ({0: 1}, InvalidSpecError, "cannot be read"),
        (ints([1] * 5), InvalidSpecError, r"int64\[5\].*6 trials of split 'train'"),
        (np.ones(6), InvalidSpecError, r"float64\[6\]"),
        (np.ones(6, bool), InvalidSpecError, r"bool\[6\]"),
        (ints([[1]] * 6), InvalidSpecError, r"int64\[6, 1\]"),
        (ints([0] * 6), InvalidSpecError, "all 0"),
        (ints([1, 1, 0, -1, 1, 1]), InvalidSpecError, "'t3' is -1"),
        (ints([1, 2**31 + 1, 0, 1, 1, 1]), InvalidSpecError, "'t1' is"),
        (np.array([1, 2**63 + 1, 0, 1, 1, 1], np.uint64), InvalidSpecError, "'t1' is"),
        (ints([1] * 6), InvalidSpecError, "1 trials without windows.*'t2' 1 times"),
    ],
)
def test_quotas_that_cannot_be_drawn_are_refused(store, quotas, error, says):
    with pytest.raises(error, match=says):
        quotas_of(store, Balance("quota", quotas=quotas))


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("n", "'t5' is missing; wanted an integer from 0"),
        ("w", r"'t0' is 0\.5; wanted an integer"),
        ("subject", "'subject' of trial 't0' is 'a'; wanted a plain number"),
        ("nope", "column is 'nope'.*subject"),
    ],
)
def test_columns_that_are_no_quotas_are_refused(store, column, says):
    with pytest.raises(InvalidSpecError, match=says):
        quotas_of(store, Balance("quota", column))


def test_weights_of_the_store_and_of_a_column(store):
    assert weights_of(store, LossWeights()) == [1, 2, 1, 2, 1, 2]
    assert weights_of(store, LossWeights(), [1, 1], [1, 4]) == [2, 1]
    assert weights_of(store, LossWeights("column", "w"), [1, 1, 0], [1, 4, 5]) == [1.5, 4.5, 0]
    assert weights_of(store, LossWeights("column", "n_rows"), [1, 0, 3]) == [9, 0, 11]


def test_weights_of_series_and_classes_are_those_of_what_is_drawn(store):
    quotas = [1, 2, 3, 4, 5, 6]
    counted = np.array(weights_of(store, LossWeights("trial"), quotas)) * quotas
    assert np.allclose(counted / counted[0], [1, 2, 1, 2, 1, 2])
    own = np.array([1, 2, 1, 2, 1, 2])
    # Draws of the classes: 9, 7 and 5 of 21.
    want = own * 21 / (3 * np.array([9, 9, 7, 7, 5, 9]))
    assert np.allclose(weights_of(store, LossWeights("class"), quotas), want)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "'t1' is missing"), ("-1", "'t1' is -1"), ("1e39", r"'t1' is 1e\+39"),
        ("nan", "plain number"), ("inf", "plain number"), ("0x10", "plain number"),
        ("", "''; wanted a plain"), ("9" * 60, "wanted a plain"),
    ],
)  # fmt: skip
def test_a_column_that_is_no_weight_is_refused(tmp_path, value, says):
    rows = [Known("t0", attributes={"w": "1"}), Known("t1", attributes={"w": value})]
    store = known_store(tmp_path, rows)
    with pytest.raises(InvalidSpecError, match=says):
        weights_of(store, LossWeights("column", "w"), [1, 1])


def test_weights_that_are_all_0_are_refused(tmp_path):
    rows = [Known(f"t{i}", attributes={"w": str(i)}) for i in range(2)]
    store = known_store(tmp_path, rows)
    with pytest.raises(InvalidSpecError, match="all 0"):
        weights_of(store, LossWeights("column", "w"), [3, 0])
    assert weights_of(store, LossWeights("column", "w"), [3, 1]) == [0, 1]


def test_what_has_no_classes_is_told_what_to_do(tmp_path, store):
    forecast = make_store(tmp_path / "f", [9, 9])
    value = make_store(
        tmp_path / "v", [9, 9], target=TargetSchema("per_trial", ("rul",)), labels=[1, 2]
    )
    lacking = known_store(
        tmp_path / "n", [Known("t0", label=1), Known("t1", label=None)], target=CLASSES
    )
    for other, says in ((forecast, "is forecast: c0"), (value, "a value per trial: rul")):
        with pytest.raises(InvalidSpecError, match=f"{says}.*Balance\\('attribute', column="):
            quotas_of(other, Balance("class"), [1, 1])
        with pytest.raises(InvalidSpecError, match=f"{says}.*LossWeights\\('column', column="):
            weights_of(other, LossWeights("class"), [1, 1])
    with pytest.raises(InvalidSpecError, match="1 of 2 trials have none, such as 't1'"):
        quotas_of(lacking, Balance("class"), [1, 1])
    remedy = lacking.select("trials.label IS NOT NULL")
    assert quotas_of(lacking, Balance("class"), [5], remedy) == [5]
    assert quotas_of(lacking, Balance("class"), [5, 0]) == [5, 0]
    assert weights_of(lacking, LossWeights("class"), [5, 0]) == [1, 0]


@pytest.mark.parametrize("by", ["trial", "sqrt", "class"])
def test_a_trial_of_over_2_to_the_31_windows_asks_for_balance_by_window(store, by):
    n_windows = ints([2**31 + 1, 1, 1])
    quotas = draw_quotas(store, Balance(by), np.arange(3), n_windows)
    with pytest.raises(InvalidSpecError, match="balance='window'"):
        EpochPlan(n_windows, quotas, 0, "global")
