"""Balanced and weighted streams end to end: what is delivered is what the quotas say."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from batches import assert_same, rows_of
from knownstores import Known, known_store
from torch.utils.data import DataLoader

from loaders import Balance, LaneBatches, LossWeights, TrialStream, WindowBatches
from loaders.balance import GROUPED
from shards import InvalidSpecError
from shards.errors import ResumeError
from shards.manifest import TargetSchema

CLASSES = TargetSchema("per_trial", ("fault",), ("none", "slip", "crash"))
LABELS = [0, 0, 0, 1, 2, 0, 1, 0]
QUOTAS = [3, 0, 7, 1, 12, 2, 5, 40]
BALANCES = [
    Balance(), Balance("trial"), Balance("sqrt"), Balance("class"), Balance("attribute", "subject"),
    Balance("quota", "quota"), Balance("quota", quotas=np.array(QUOTAS)),
]  # fmt: skip
WEIGHTS = [LossWeights(), LossWeights("trial"), LossWeights("class"), LossWeights("column", "w")]


def groups_of(balance):
    """Return `(group, its trials)` of those that a balance draws alike."""
    key = LABELS if balance.by == "class" else [i % 3 if i < 7 else None for i in range(8)]
    return [(group, [i for i in range(8) if key[i] == group]) for group in dict.fromkeys(key)]


def name(option):
    return f"{option.by} {option.column or ''}"


def faults(path, **changes):
    """Return a store whose trial 1 is too short for a window, and whose last has no subject."""
    rows = [
        Known(
            f"t{i}", n_rows=3 if i == 1 else 8 + 5 * i, label=label, weight=1 + i % 2,
            attributes={"quota": str(QUOTAS[i]), "w": str(i / 4)}
            | ({"subject": f"s{i % 3}"} if i < 7 else {}),
        )
        for i, label in enumerate(LABELS)
    ]  # fmt: skip
    return known_store(path, rows, n_shards=2, target=CLASSES, **changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return faults(tmp_path_factory.mktemp("faults"))


def stream_of(store, **request):
    drop = WindowBatches(stride=1, short="drop")
    return TrialStream(store, **{"batch_size": 16, "seed": 5, "batches": drop, **request})


def drawn(batches):
    """Return the draws of each trial."""
    counts = Counter(trial for trial, _ in rows_of(batches))
    return [counts[i] for i in range(len(LABELS))]


def wanted(balance, n_windows):
    """Return what each trial should get, worked out another way than the code does."""
    total = sum(n_windows)
    if balance.by == "quota":
        return QUOTAS
    if balance.by == "window":
        return n_windows
    share = [math.sqrt(n) if balance.by == "sqrt" else min(n, 1) for n in n_windows]
    return [total * s / sum(share) for s in share]


@pytest.mark.parametrize("shuffle", ["global", "none", "blocks"])
@pytest.mark.parametrize("balance", BALANCES, ids=name)
def test_an_epoch_delivers_the_quotas_to_the_last_draw(store, balance, shuffle):
    n_windows = drawn(list(stream_of(store)))
    assert min(n_windows) == n_windows[1] == 0
    stream = stream_of(store, balance=balance, shuffle=shuffle)
    epochs = [drawn(list(stream)) for _ in range(3)]
    for got in epochs:
        assert sum(got) == (sum(QUOTAS) if balance.by == "quota" else sum(n_windows))
        if balance.by not in GROUPED:
            want = wanted(balance, n_windows)
            assert all(abs(g - w) < 1 for g, w in zip(got, want, strict=True))
            continue
        of_group = {group: sum(got[i] for i in mine) for group, mine in groups_of(balance)}
        assert max(of_group.values()) - min(of_group.values()) <= 1
        for group, mine in groups_of(balance):
            share = of_group[group] / sum(n_windows[i] for i in mine)
            # In turn an epoch gives a trial some windows more or less than its share.
            near = 3 if shuffle == "global" else 1
            assert all(abs(got[i] - n_windows[i] * share) < near for i in mine)
    if balance.by not in GROUPED or shuffle != "global":
        assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize("shuffle", ["global", "none", "blocks"])
@pytest.mark.parametrize("balance", BALANCES[1:], ids=name)
def test_no_window_comes_again_before_the_others_of_its_trial_or_group(store, balance, shuffle):
    windows = set(rows_of(list(stream_of(store))))
    grouped = balance.by in GROUPED and shuffle == "global"
    parts = [mine for _, mine in groups_of(balance)] if grouped else [[i] for i in range(8)]
    stream = stream_of(store, balance=balance, shuffle=shuffle)
    seen = Counter()
    for _ in range(4):
        seen.update(rows_of(list(stream)))
        for mine in parts:
            often = [seen[window] for window in windows if window[0] in mine]
            assert not often or max(often) - min(often) <= 1


@pytest.mark.parametrize("batches", ["trials", "lanes"])
@pytest.mark.parametrize("balance", [*BALANCES[3:4], *BALANCES[5:]], ids=name)
def test_whole_trials_come_as_often_as_their_quotas(store, balance, batches):
    batches = LaneBatches(chunk=8) if batches == "lanes" else batches
    stream = stream_of(store, balance=balance, batches=batches, batch_size=4)
    passes = Counter(trial for trial, start in rows_of(list(stream)) if start == 0)
    got = [passes[i] for i in range(8)]
    if balance.by == "quota":
        assert got == QUOTAS
    else:  # 8 passes: 3 of class 0, 3 of class 1, 2 of class 2
        assert [sum(got[i] for i in range(8) if LABELS[i] == c) for c in range(3)] == [3, 3, 2]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("weights", WEIGHTS, ids=name)
@pytest.mark.parametrize("batches", [WindowBatches(stride=1), "trials", LaneBatches(8, 3)], ids=str)
def test_global_weight_is_the_sum_over_all_ranks(store, batches, weights, world_size):
    ranks = [
        list(stream_of(
            store, batches=batches, weights=weights, balance=BALANCES[5], batch_size=7,
            rank=r, world_size=world_size,
        ))
        for r in range(world_size)
    ]  # fmt: skip
    for parts in zip(*ranks, strict=True):
        want = math.fsum(w for part in parts for w in part.weights.tolist())
        assert [part.global_weight for part in parts] == [want] * world_size


def counted(stream, n_epochs=1):
    """Return the sum of weights of each trial over some epochs."""
    sums = Counter()
    for _ in range(n_epochs):
        for batch in stream:
            for trial, weight in zip(batch.trial.tolist(), batch.weights.tolist(), strict=True):
                sums[trial] += weight
    assert sums[-1] == 0
    return np.array([sums[i] for i in range(8)])


def many_epochs(balance, batches):
    """Return epochs over which the mean draws of each trial are met, and how nearly."""
    if balance.by not in GROUPED:
        return 1, 1e-5
    if isinstance(batches, WindowBatches):
        return 40, 0.04  # of 87 windows 55 are drawn per epoch: too many for all to come alike
    return 30, 1e-5  # 3 of 5 trials, 3 of 2, 2 of 3, 3 of 3 or 2 of 1


SHAPES = [WindowBatches(stride=1), "trials", LaneBatches(8), LaneBatches(8, 3)]


@pytest.mark.parametrize("balance", BALANCES, ids=name)
@pytest.mark.parametrize("batches", SHAPES, ids=str)
def test_series_weighed_alike_count_alike_whatever_is_drawn(store, batches, balance):
    n_epochs, near = many_epochs(balance, batches)
    plain = counted(stream_of(store, batches=batches, balance=balance), n_epochs)
    sums = counted(stream_of(store, batches=batches, balance=balance, weights="trial"), n_epochs)
    own = store.index.weight
    assert np.isclose(sums.sum(), plain.sum(), rtol=near)
    there = plain > 0
    assert np.allclose(sums[there] / own[there], (sums[there] / own[there])[0], rtol=near)
    assert not sums[~there].any()


@pytest.mark.parametrize("balance", BALANCES, ids=name)
@pytest.mark.parametrize("batches", SHAPES, ids=str)
def test_classes_weighed_alike_count_alike_whatever_is_drawn(tmp_path, batches, balance):
    rows = [
        Known(f"t{i}", n_rows=8 + 5 * i, label=label, attributes={
            "quota": str(QUOTAS[i]), "subject": f"s{i % 3}",
        })
        for i, label in enumerate(LABELS)
    ]  # fmt: skip
    store = known_store(tmp_path, rows, target=CLASSES)
    n_epochs, near = many_epochs(balance, batches)
    plain = counted(stream_of(store, batches=batches, balance=balance), n_epochs)
    sums = counted(stream_of(store, batches=batches, balance=balance, weights="class"), n_epochs)
    of_class = [sums[np.array(LABELS) == c].sum() for c in range(3)]
    assert np.allclose(of_class, plain.sum() / 3, rtol=near)


def test_weights_of_a_column_are_delivered(store):
    for batch in stream_of(store, weights=LossWeights("column", "w"), where="n_rows > 3"):
        want = np.where(batch.trial >= 0, batch.trial / 4, 0)
        assert batch.weights.tolist() == want.tolist()


def test_a_filter_leaves_quotas_with_their_trials(store):
    for balance in BALANCES[5:]:
        stream = stream_of(store, balance=balance, where="n_rows > 20", weights=WEIGHTS[3])
        assert drawn(list(stream)) == [0] * 3 + QUOTAS[3:]
    stream = stream_of(store, balance=Balance("quota", quotas={"t4": 9, "t0": 1}), trials=["t4"])
    assert drawn(list(stream)) == [0] * 4 + [9] + [0] * 3


@pytest.mark.parametrize("balance", BALANCES, ids=name)
def test_a_stream_goes_on_where_a_state_was_taken(store, balance):
    request = {"balance": balance, "weights": "trial"}
    stream = stream_of(store, **request)
    epochs = [list(stream) for _ in range(3)]
    for epoch, at in ((0, 0), (1, 1), (2, len(epochs[2]) - 2)):
        again = stream_of(store, **request)
        again.load_state_dict(stream.state_dict(epochs[epoch][at]))
        for got, want in zip(again, epochs[epoch][at + 1 :], strict=True):
            assert_same(got, want)


def test_a_state_of_other_quotas_or_weights_is_refused(store):
    other = np.array(QUOTAS)[::-1].copy()
    other[[1, 6]] = 0, other[1]
    requests = [
        *({"balance": balance} for balance in BALANCES[:6]),
        {"balance": Balance("quota", quotas=other)},
        *({"weights": weights} for weights in WEIGHTS[1:]),
    ]
    streams = [stream_of(store, **request) for request in requests]
    for stream in streams:
        for another in streams:
            if another is stream:
                another.load_state_dict(stream.state_dict())
            else:
                with pytest.raises(ResumeError):
                    another.load_state_dict(stream.state_dict())


def test_the_same_quotas_said_in_two_ways_are_the_same_stream(store):
    column, array = (stream_of(store, balance=balance) for balance in BALANCES[5:])
    array.load_state_dict(column.state_dict())
    for got, want in zip(array, column, strict=True):
        assert_same(got, want)


def test_workers_and_pickles_draw_the_same(store):
    by_id = {f"t{i}": quota for i, quota in enumerate(QUOTAS)}
    request = {"balance": Balance("quota", quotas=by_id), "weights": "class"}
    want = list(stream_of(store, **request))
    workers = DataLoader(
        stream_of(store, **request), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    pickled = pickle.loads(pickle.dumps(stream_of(store, **request)))
    for batches in (workers, pickled):
        for got, batch in zip(batches, want, strict=True):
            assert_same(got, batch)


def test_a_quota_may_be_more_than_a_trial_has(store):
    stream = stream_of(
        store, balance=Balance("quota", quotas=np.array([0, 0, 0, 0, 0, 0, 0, 9999]))
    )
    assert drawn(list(stream)) == [0] * 7 + [9999]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"balance": Balance("attribute", "nobody")}, "subject"),
        ({"balance": Balance("quota", quotas=np.ones(8, int))}, "trials without windows"),
        ({"weights": LossWeights("column", "subject")}, "wanted a plain number"),
    ],
)
def test_a_bad_request_is_refused_when_the_stream_is_made(store, request_, says):
    with pytest.raises(InvalidSpecError, match=says):
        stream_of(store, **request_)


def test_classes_of_the_store_balance_a_stream_with_another_target(store):
    forecast = TargetSchema("forecast", ("u",))
    ahead = WindowBatches(stride=1, steps=1, short="drop")
    got = drawn(list(stream_of(store, balance="class", target=forecast, batches=ahead)))
    of_class = [sum(got[i] for i in range(8) if LABELS[i] == c) for c in range(3)]
    assert max(of_class) - min(of_class) <= 1
