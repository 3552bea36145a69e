"""Metrics are their definitions, computed element by element or trial by trial."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.binary import BinaryScores
from training.metrics import auroc, auroc_by_trial
from training.metrics_classes import ClassScores, balanced_accuracy
from training.metrics_quantiles import QuantileSums, central_pairs, quantile_name
from training.predict import Predictions
from training.score import ErrorSums

FEW = settings(max_examples=30, deadline=None)
# Few distinct scores, so that ties are common.
STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1]), st.booleans()),
    max_size=60,
)


def predictions(trial: Any, truth: Any, **more: Any) -> Predictions:
    """Return predictions of one column; what is not told is zero."""
    trial = np.asarray(trial, np.int64)
    zero = np.zeros(len(trial), np.int64)
    columns = {
        name: np.asarray(more.pop(name, zero), np.float64).reshape(len(trial), 1)
        for name in ("predicted", "naive")
    }
    truth = np.asarray(truth, np.float64).reshape(len(trial), 1)
    return Predictions(trial, zero, zero, truth, **columns, **more)


@FEW
@given(STEPS)
def test_auroc_by_trial_is_the_share_of_pairs_in_order_in_each(steps: list[Any]) -> None:
    trial, scores, positive = (np.array([step[k] for step in steps]) for k in range(3))
    trial, positive = trial.astype(np.int64), positive.astype(np.bool_)
    names, areas = auroc_by_trial(scores.astype(np.float64), positive, trial)
    want = {}
    for name in set(trial.tolist()):
        own = scores[trial == name], positive[trial == name]
        pairs = [(p > n) + 0.5 * (p == n) for p in own[0][own[1]] for n in own[0][~own[1]]]
        if pairs:
            want[name] = np.mean(pairs)
    assert dict(zip(names.tolist(), areas, strict=True)) == pytest.approx(want)


@FEW
@given(STEPS)
def test_auroc_of_one_trial_is_that_of_all(steps: list[Any]) -> None:
    scores = np.array([step[1] for step in steps], np.float64)
    positive = np.array([step[2] for step in steps], np.bool_)
    _, areas = auroc_by_trial(scores, positive, np.zeros(len(steps), np.int64))
    whole = [area for area in [auroc(scores, positive)] if np.isfinite(area)]
    assert areas.tolist() == pytest.approx(whole, abs=1e-6)  # torchmetrics divides in float32


@FEW
@given(STEPS, st.integers(0, 60))
def test_binary_metrics_do_not_hang_on_how_predictions_come(steps: list[Any], at: int) -> None:
    def score(*parts: list[Any]) -> dict[str, Any]:
        errors, ranks = ErrorSums(5, ["y"]), BinaryScores(["y"])
        for part in parts:
            trial, said, truth = ([step[k] for step in part] for k in range(3))
            made = predictions(trial, truth, predicted=said)
            errors.add(made)
            ranks.add(made)
        return ranks.extend(errors.summary())

    one, two = score(steps), score(steps[:at], steps[at:])
    assert one["macro"] == pytest.approx(two["macro"], nan_ok=True)
    assert one["macro"]["n_auroc"] <= one["macro"]["n_trials"]
    for name in ("auroc", "average_precision", "log_loss", "rmse"):
        assert one[name] == pytest.approx(two[name], nan_ok=True)


CODES = st.integers(0, 3)
CLASSED = st.lists(st.tuples(CODES, CODES | st.just(np.nan), CODES, CODES), max_size=60)


@FEW
@given(CLASSED, st.integers(0, 60))
def test_class_metrics_are_their_definitions(steps: list[Any], at: int) -> None:
    scores = ClassScores("abcd", 4, per_step=True)
    for part in (steps[:at], steps[at:]):
        trial, truth, said, naive = ([step[k] for step in part] for k in range(4))
        scores.add(predictions(trial, truth, predicted=said, naive=naive))
    found = scores.summary()
    rows = [step for step in steps if np.isfinite(step[1])]
    table = [[sum(r[1] == t and r[2] == p for r in rows) for p in range(4)] for t in range(4)]
    assert found["confusion"] == table
    assert found["n"] == len(rows)
    truth, said = [r[1] for r in rows], [r[2] for r in rows]
    recalls = [np.mean([p == c for t, p in zip(truth, said, strict=True) if t == c])
               for c in set(truth)]  # fmt: skip
    f1 = [2 * table[c][c] / (truth.count(c) + said.count(c)) for c in {*truth, *said}]
    by_trial: dict[int, list[bool]] = {}
    for trial, t, p, _ in rows:
        by_trial.setdefault(trial, []).append(t == p)
    wanted = {
        "accuracy": [r[1] == r[2] for r in rows],
        "naive_accuracy": [r[1] == r[3] for r in rows],
        "balanced_accuracy": recalls,
        "macro_f1": f1,
    }
    for name, parts in wanted.items():
        assert found[name] == pytest.approx(np.mean(parts) if rows else np.nan, nan_ok=True)
    macro = np.mean([np.mean(hits) for hits in by_trial.values()]) if rows else np.nan
    assert found["macro"]["accuracy"] == pytest.approx(macro, nan_ok=True)
    assert found["macro"]["n_trials"] == len(by_trial)


def test_class_scores_by_hand() -> None:
    truth, said = [0, 0, 0, 1, 1], [0, 0, 1, 1, 0]
    second = np.array([0.1, 0.4, 0.4, 0.4, 0.9])
    scores = ClassScores(["slow", "fast"], 5, per_step=False)
    made = predictions(range(5), truth, predicted=said)
    scores.add(dataclasses.replace(made, scores=np.stack([1 - second, second], axis=1)))
    found = scores.summary()
    assert found["confusion"] == [[2, 1], [1, 1]]
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    pairs = [(p > n) + 0.5 * (p == n) for p in second[3:] for n in second[:3]]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    # A class that is predicted and never there has no recall; torchmetrics would count a 0.
    assert balanced_accuracy(np.array([[2, 0, 1], [0, 2, 0], [0, 0, 0]])) == pytest.approx(5 / 6)


LEVELS = (0.1, 0.5, 0.9)
NUMBERS = st.integers(-3, 3).map(float)
SAID = st.lists(
    st.tuples(st.integers(0, 4), NUMBERS | st.just(np.nan), st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    min_size=1, max_size=40,
)  # fmt: skip


@FEW
@given(SAID)
def test_quantile_metrics_are_their_definitions(steps: list[Any]) -> None:
    trial, truth, said = ([step[k] for step in steps] for k in range(3))
    levels = np.sort(np.array(said), axis=1)[:, None]
    made = predictions(trial, truth, predicted=levels[:, 0, 1], quantiles=levels)
    errors, sums = ErrorSums(5, ["y"]), QuantileSums(["y"], LEVELS, 5)
    for part in (errors, sums):
        part.add(made)
    found = sums.extend(errors.summary())
    assert repr(found["by_column"]["y"]["quantiles"]) == repr(found["quantiles"])  # NaN or not
    rows = [(t, y, q) for t, y, q in zip(trial, truth, levels[:, 0], strict=True) if y == y]
    loss = np.array(
        [[max(a * (y - x), (a - 1) * (y - x)) for a, x in zip(LEVELS, q, strict=True)]
         for _, y, q in rows]
    ).reshape(-1, 3)  # fmt: skip
    below = np.array([y <= q for _, y, q in rows]).reshape(-1, 3)
    for k, name in enumerate(("q10", "q50", "q90")):
        got = found["quantiles"][name]
        assert got["pinball"] == pytest.approx(_mean(loss[:, k]), nan_ok=True)
        assert got["coverage"] == pytest.approx(_mean(below[:, k]), nan_ok=True)
    inside = [q[0] < y <= q[2] for _, y, q in rows]
    interval = found["intervals"]["q10_q90"]
    assert interval["wanted"] == pytest.approx(0.8)
    assert interval["coverage"] == pytest.approx(_mean(inside), nan_ok=True)
    trials = np.array([t for t, _, _ in rows])
    macro = [loss[trials == t].mean() for t in set(trials.tolist())]
    assert found["macro"]["pinball"] == pytest.approx(_mean(macro), nan_ok=True)
    assert found["macro"]["n_trials"] == len(macro)


def _mean(parts: Any) -> float:
    return float(np.mean(parts)) if len(parts) else float("nan")


def test_intervals_are_those_around_the_middle() -> None:
    assert central_pairs((0.05, 0.25, 0.5, 0.75, 0.95)) == [(0, 4), (1, 3)]
    assert central_pairs((0.1, 0.5, 0.8)) == []
    assert central_pairs((0.5,)) == []
    assert [quantile_name(level) for level in (0.1, 0.025, 0.5)] == ["q10", "q2.5", "q50"]
