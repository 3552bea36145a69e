"""Streams that draw classes alike: no trial of a large one is left out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from batches import rows_of
from knownstores import Known, known_store

from loaders import Balance, LaneBatches, TrialStream, WindowBatches
from loaders.balance import loss_weights
from loaders.choices import LossWeights
from shards.manifest import TargetSchema

CLASSES = TargetSchema("per_trial", ("fault",), ("none", "slip"))


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """90 trials of class 0 and 10 of class 1, of 3 to 12 rows."""
    rows = [
        Known(f"t{i:03}", n_rows=3 + i % 10, label=int(i % 10 == 0), attributes={"n": str(i // 10)})
        for i in range(100)
    ]
    return known_store(tmp_path_factory.mktemp("lopsided"), rows, n_shards=2, target=CLASSES)


WHOLE = {"trials": "trials", "lanes": LaneBatches(chunk=5)}


def passes_of(stream):
    """Return how often each trial begins in an epoch."""
    counts = Counter(trial for trial, start in rows_of(list(stream)) if start == 0)
    return np.array([counts[i] for i in range(100)])


@pytest.mark.parametrize("batches", WHOLE)
@pytest.mark.parametrize("balance", ["class", Balance("attribute", "label")], ids=str)
def test_all_trials_of_a_large_class_come_within_two_epochs(lopsided, batches, balance):
    stream = TrialStream(
        lopsided, batch_size=8, seed=2, balance=balance, batches=WHOLE[batches], shuffle="global"
    )
    rare = np.arange(100) % 10 == 0
    sums = np.zeros(100, int)
    for epoch in range(9):  # 9 epochs of 50 draws are 5 turns of 90
        got = passes_of(stream)
        assert got[rare].tolist() == [5] * 10
        assert got[~rare].sum() == 50
        sums += got
        assert np.ptp(sums[~rare]) <= 1
        assert epoch == 0 or (sums > 0).all()
    assert (sums[~rare] == 5).all()


@pytest.mark.parametrize("shuffle", ["blocks", "none"])
def test_other_orders_keep_a_quota_per_trial_and_tell_of_it(lopsided, shuffle, caplog):
    stream = TrialStream(
        lopsided, batch_size=8, seed=2, balance="class", batches="trials", shuffle=shuffle
    )
    first, second = passes_of(stream), passes_of(stream)
    assert first.tolist() == second.tolist()
    assert np.count_nonzero(first == 0) == 40
    assert "40 of 100 trials" in caplog.text
    assert "shuffle='global'" in caplog.text


def test_the_order_by_group_tells_of_nothing(lopsided, caplog):
    TrialStream(lopsided, batch_size=8, seed=2, balance="class", batches="trials")
    assert not caplog.text


@pytest.mark.parametrize(
    "batches", [*WHOLE.values(), LaneBatches(5, 2), WindowBatches(length=3, stride=2)], ids=str
)
@pytest.mark.parametrize("by", ["trial", "class"])
def test_weighed_alike_they_count_alike_over_whole_turns(lopsided, batches, by):
    """After 9 epochs, or 25 of windows, each window came as often as the others of its class."""
    stream = TrialStream(
        lopsided, batch_size=8, seed=2, balance="class", batches=batches, weights=by
    )
    plan = stream._selection.plan
    windows_of, quotas = plan._units.n_windows.tolist(), plan.quotas.tolist()
    n_epochs = math.lcm(*(n // math.gcd(n, q) for n, q in zip(windows_of, quotas, strict=True)))
    assert n_epochs <= 25
    sums = Counter()
    for _ in range(n_epochs):
        for batch in stream:
            for trial, weight in zip(batch.trial.tolist(), batch.weights.tolist(), strict=True):
                sums[trial] += weight
    counted = np.array([sums[i] for i in range(100)])
    if by == "trial":
        there = counted > 0  # a trial that burns in to its end counts nothing
        assert there.all() or isinstance(batches, LaneBatches)
        assert np.allclose(counted[there], counted[there][0], rtol=1e-5)
    else:
        rare = np.arange(100) % 10 == 0
        assert np.isclose(counted[rare].sum(), counted[~rare].sum(), rtol=1e-5)


def test_shares_below_one_draw_weigh_as_they_are_drawn(lopsided):
    """A mean of 0.5 draws is no whole one: its weight is twice that of 1 draw."""
    trials, means = np.arange(3), np.array([0.5, 1.0, 2.0])
    weights = loss_weights(lopsided, LossWeights("trial"), trials, means)
    assert (weights / weights[2]).tolist() == [4, 2, 1]
    assert math.isclose(float(weights @ means), 3.5, rel_tol=1e-6)
    alike = loss_weights(lopsided, LossWeights("class"), trials, means)
    assert alike.tolist() == np.array([3.5, 3.5 / 6, 3.5 / 6]).astype(np.float32).tolist()
