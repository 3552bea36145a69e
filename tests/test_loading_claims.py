"""What docs/loading.md says of batches, windows, balance, weights and mixtures is so."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armstores import build_arm_stores
from stores import make_store

from loaders import Balance, LaneBatches, LossWeights, TrialBatches, TrialStream, WindowBatches, mix
from shards import InvalidSpecError, Store
from shards.manifest import TargetSchema


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    build_arm_stores(folder, 48)
    return folder


def draws(stream: TrialStream) -> Counter[int]:
    return Counter(n for batch in stream for n in batch.trial.tolist() if n >= 0)


def test_a_loop_is_an_epoch_and_a_break_starts_it_again(folder):
    stream = TrialStream(folder / "arm", batch_size=64)
    first, again = ([b.trial.tolist() for b in stream] for _ in range(2))
    assert len(first) == len(stream)
    assert first != again
    for batch in stream:
        assert batch.epoch == 2
        if batch.step == 3:
            break
    assert (next(iter(stream)).epoch, next(iter(stream)).step) == (2, 0)
    assert (batch.values[~batch.valid] == 0).all()
    *_, last = stream
    filler = last.trial < 0
    assert filler.any()
    assert not last.weights[filler].any()
    assert last.targets[filler].isnan().all()


def test_windows_are_what_they_are_asked_for(folder):
    longer = TrialStream(folder / "arm", batches=WindowBatches(length=128, stride=16, short="drop"))
    got = (longer.windows.length, longer.windows.stride, longer.windows.horizon)
    assert got == (128, 16, longer.store.manifest.windows.horizon)
    target = TargetSchema("forecast", ("q1", "q2"))
    ahead = WindowBatches(horizon=5, steps=2)
    joints = TrialStream(folder / "payloads", target=target, batches=ahead)
    batch = next(iter(joints))
    physical = joints.store.physical_rows(int(batch.trial[0]))
    at = int(batch.start[0]) + 63 + 5
    delivered = joints.to_physical(batch.targets, batch)[0].numpy()
    seen = ~np.isnan(delivered)
    np.testing.assert_allclose(delivered[seen], physical[at : at + 2, :2][seen], rtol=1e-5)


def test_shifted_windows_have_every_phase_and_another_one_in_each_epoch(folder):
    shifted = TrialStream(folder / "arm", batches=WindowBatches(random_offset=True))
    stride, n_rows = shifted.windows.stride, shifted.store.index.n_rows
    epochs = [list(shifted) for _ in range(2)]
    phases = [[int(start) % stride for batch in epoch for start in batch.start] for epoch in epochs]
    assert set(phases[0]) == set(range(stride))
    assert phases[0] != phases[1]
    for batch in epochs[0]:
        real = (batch.trial >= 0).numpy()
        ends = (batch.start + batch.lengths).numpy() + shifted.windows.ahead
        assert (ends <= n_rows[batch.trial.numpy()])[real].all()


@pytest.mark.parametrize(
    "asked",
    [
        {"batches": WindowBatches(stride=1)}, {"batches": WindowBatches(random_offset=True)},
        {"batches": "trials"}, {"batches": "lanes"},
        {"target": TargetSchema("forecast", ("c1",))},
    ],
)  # fmt: skip
def test_a_store_of_windows_refuses_others(tmp_path, asked):
    make_store(tmp_path, [20, 30], layout="windows")
    with pytest.raises(InvalidSpecError, match="layout 'windows'"):
        TrialStream(tmp_path, **asked)


def test_whole_trials_come_once_and_are_padded_little(folder):
    asked = TrialBatches(max_length=500, max_padding=0.05)
    whole = TrialStream(folder / "arm", batches=asked, batch_size=4)
    batches = list(whole)
    assert set(draws(whole).values()) == {1}
    slots = sum(int((b.trial >= 0).sum()) * b.values.shape[1] for b in batches)
    assert 0.95 * slots <= sum(int(b.lengths.sum()) for b in batches) < slots
    longest = [b.values.shape[1] for b in batches]
    assert max(longest) == 500
    assert longest != sorted(longest)
    *_, last = whole
    assert len(last.packed().data) == int(last.lengths.sum())


@pytest.mark.parametrize("end", ["start", "end"])
def test_the_end_that_is_named_is_cut_off(folder, end):
    whole = TrialStream(folder / "arm", batches=TrialBatches(200, end), batch_size=4)
    for batch in whole:
        n_rows = torch.from_numpy(whole.store.index.n_rows[batch.trial.numpy()])
        wanted = torch.clamp(n_rows - 200, min=0) if end == "start" else torch.zeros(4)
        assert (batch.start == wanted)[batch.trial >= 0].all()


def test_targets_of_whole_trials_are_dense(folder):
    stream = TrialStream(folder / "arm", batches="trials", batch_size=4, shuffle="none")
    names = [channel.name for channel in stream.store.manifest.channels]
    chosen, horizon = [names.index(c) for c in stream.target.columns], stream.windows.horizon
    batch = next(iter(stream))
    n = int(batch.lengths[0])
    said, values = batch.targets[0, :, 0], batch.values[0][:, chosen]
    seen = ~said[: n - horizon].isnan()
    assert seen.float().mean() > 0.9
    assert torch.equal(said[: n - horizon][seen], values[horizon:n][seen])
    assert said[n - horizon :].isnan().all()


def test_a_step_in_which_nothing_counts_has_weight_0(folder):
    stream = TrialStream(folder / "arm", batches=LaneBatches(chunk=16, burn_in=32), batch_size=4)
    weight = [batch.global_weight for batch in stream]
    assert weight[:3] == [0.0, 0.0, 4.0]


@pytest.mark.parametrize("by", ["window", "trial", "sqrt", "class", "attribute"])
def test_draws_are_those_of_the_table(folder, by):
    store = Store(folder / "payloads")
    wanted = TrialStream(store, batch_size=32)
    n = dict(draws(wanted))
    total = sum(n.values())
    balance = Balance("attribute", column="subject") if by == "attribute" else by
    got = draws(TrialStream(store, balance=balance, batch_size=32))
    assert sum(got.values()) == total
    roots = sum(math.sqrt(count) for count in n.values())
    if by in ("class", "attribute"):
        column = "payload" if by == "class" else "subject"
        group = store.trials(column)[column].to_pylist()
        of_group = Counter()
        for trial, count in got.items():
            of_group[group[trial]] += count
        share = total / len({group[trial] for trial in n})
        assert all(abs(count - share) < 1 for count in of_group.values())
        return
    share = {
        "window": n, "trial": dict.fromkeys(n, total / len(n)),
        "sqrt": {trial: total * math.sqrt(count) / roots for trial, count in n.items()},
    }[by]  # fmt: skip
    assert all(abs(got[trial] - share[trial]) < 1 for trial in n)


@pytest.mark.parametrize("balance", ["window", "sqrt"])
def test_loss_weights_are_those_of_the_table(folder, balance):
    def summed(weights: Any) -> dict[int, float]:
        sums: Counter[Any] = Counter()
        stream = TrialStream(folder / "payloads", balance=balance, weights=weights, batch_size=32)
        for batch in stream:
            assert batch.global_weight == pytest.approx(float(batch.weights.sum()), rel=1e-5)
            for trial, weight in zip(batch.trial.tolist(), batch.weights.tolist(), strict=True):
                sums[trial] += weight
        del sums[-1]
        return sums

    own, trial, classes = (summed(by) for by in ("own", "trial", "class"))
    store = Store(folder / "payloads")
    total = sum(own.values())
    assert own == draws(TrialStream(store, balance=balance, batch_size=32))
    assert np.allclose(list(trial.values()), total / len(trial))
    label = store.index.label
    by_class = [sum(w for t, w in classes.items() if label[t] == c) for c in (0, 1)]
    assert np.allclose(by_class, total / 2)
    rows = summed(LossWeights("column", column="n_rows"))
    assert all(rows[t] == pytest.approx(own[t] * store.index.n_rows[t]) for t in own)


def test_mixtures_have_the_steps_of_the_table(folder):
    a = TrialStream(folder / "arm", batch_size=64)
    b = TrialStream(folder / "payloads", batches="trials", batch_size=8)
    n, m = len(a), len(b)

    def steps(by: Any, stop: str) -> list[int]:
        found = Counter(batch.source for batch in mix([a, b], by, stop=stop))
        return [found[0], found[1]]

    assert steps("proportional", "first") == [n, m]
    assert steps("round_robin", "first") == [min(n, m)] * 2
    assert steps("round_robin", "cycle") == [max(n, m)] * 2
    assert steps([3, 1], "first") == [3 * m, m]
    assert steps([1000, 1], "first") == [n, 1]
