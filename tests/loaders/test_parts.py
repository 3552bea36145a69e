"""Whole trials, lanes and load-time overrides, number by number, on self-naming stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import LENGTHS, PER_STEP
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import coded_values, make_store

from loaders import BlockShuffle, LaneBatches, TrialBatches, TrialStream, WindowBatches
from shards import InvalidSpecError, WindowSpec
from shards.manifest import TargetSchema

SHUFFLES = st.sampled_from(["global", "none", "blocks", BlockShuffle(200, 600)])
TWO = TargetSchema("forecast", ("c2", "c0"))
REQUEST = {
    "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=8),
    "horizon": st.integers(1, 4),
    "steps": st.integers(1, 4),
    "shuffle": SHUFFLES,
    "batch_size": st.integers(1, 6),
    "balance": st.sampled_from(["window", "sqrt"]),
}


def ahead_of(rows, start, length, windows):
    """Return `[L, steps, 2]`: what follows each step, NaN behind the end."""
    want = np.full((length, windows.steps, 2), np.nan, np.float32)
    for t in range(length):
        for j in range(windows.steps):
            at = start + t + windows.horizon + j
            if at < len(rows):
                want[t, j] = rows[at, [2, 0]]
    return want


def check_row(batch, row, lengths, windows):
    """Compare one row of a batch with what its trial and start say; return its rows."""
    trial, start, n = (int(x[row]) for x in (batch.trial, batch.start, batch.lengths))
    length = batch.values.shape[1]
    want = np.zeros((length, 3), np.float32)
    ahead = np.full((length, windows.steps, 2), np.nan, np.float32)
    if trial >= 0:
        rows = coded_values(trial, lengths[trial], 3)
        want[:n] = rows[start : start + n]
        ahead[:n] = ahead_of(rows, start, n, windows)
    else:
        assert (n, start, float(batch.weights[row])) == (0, 0, 0.0)
    assert np.array_equal(batch.values[row].numpy(), want)
    assert np.array_equal(batch.targets[row].numpy(), ahead, equal_nan=True)
    assert batch.valid[row].tolist() == [i < n for i in range(length)]
    return [(trial, r) for r in range(start, start + n)]


def make(tmp_path_factory, lengths, horizon, steps):
    windows = WindowSpec(5, 2, horizon=horizon, steps=steps)
    root = tmp_path_factory.mktemp("s")
    return make_store(root, lengths, n_shards=3, target=TWO, windows=windows), windows


@settings(max_examples=30)
@given(
    **REQUEST,
    max_length=st.one_of(st.none(), st.integers(1, 30)),
    truncate=st.sampled_from(["end", "start"]),
)
def test_whole_trials(
    tmp_path_factory, lengths, horizon, steps, shuffle, batch_size, balance, max_length, truncate
):
    store, windows = make(tmp_path_factory, lengths, horizon, steps)
    batches = TrialBatches(max_length, truncate)
    usable = {i for i, n in enumerate(lengths) if n > windows.ahead}
    if not usable:
        with pytest.raises(InvalidSpecError, match="has no windows"):
            TrialStream(store, batches=batches)
        return
    stream = TrialStream(
        store, batches=batches, batch_size=batch_size, shuffle=shuffle, balance=balance
    )
    seen = []
    for batch in stream:
        assert batch.values.shape[1] == int(batch.lengths.max())
        for row in range(batch_size):
            got = check_row(batch, row, lengths, windows)
            if not got:
                continue
            trial = got[0][0]
            n = lengths[trial] if max_length is None else min(max_length, lengths[trial])
            first = lengths[trial] - n if truncate == "start" else 0
            assert got == [(trial, r) for r in range(first, first + n)]
            seen.append(trial)
        assert batch.global_weight == float(batch.weights.sum())
        assert batch.reset is None
        assert batch.counts is None
    assert sorted(seen) == sorted(usable)


@settings(max_examples=30)
@given(**REQUEST, chunk=st.integers(1, 12), burn_in=st.integers(0, 15))
def test_lanes(
    tmp_path_factory, lengths, horizon, steps, shuffle, batch_size, balance, chunk, burn_in
):
    """Each lane walks whole trials from their first row to their last, one after the other."""
    store, windows = make(tmp_path_factory, lengths, horizon, steps)
    batches = LaneBatches(chunk, burn_in)
    usable = {i for i, n in enumerate(lengths) if n > windows.ahead}
    if not usable:
        return
    if burn_in >= max(lengths[i] for i in usable):
        with pytest.raises(InvalidSpecError, match="no step would count in the loss"):
            TrialStream(store, batches=batches)
        return
    stream = TrialStream(
        store, batches=batches, batch_size=batch_size, shuffle=shuffle, balance=balance
    )
    walked: list[list[tuple[int, int]]] = [[] for _ in range(batch_size)]
    for batch in stream:
        assert batch.values.shape[1] == chunk
        for lane in range(batch_size):
            got = check_row(batch, lane, lengths, windows)
            walked[lane] += got
            assert bool(batch.reset[lane]) == (bool(got) and got[0][1] == 0)
            counting = [r >= burn_in for _, r in got]
            if batch.counts is not None:
                assert batch.counts[lane].tolist()[: len(got)] == counting
                assert not batch.counts[lane][len(got) :].any()
            assert float(batch.weights[lane]) == np.float32(sum(counting) / chunk)
        assert (batch.counts is None) == (burn_in == 0)
        assert batch.global_weight == pytest.approx(float(batch.weights.sum()), rel=1e-6)
    trials = []
    for lane in walked:
        while lane:
            trial, _ = lane[0]
            rows, lane = lane[: lengths[trial]], lane[lengths[trial] :]
            assert rows == [(trial, r) for r in range(lengths[trial])]
            trials.append(trial)
    assert sorted(trials) == sorted(usable)


@settings(max_examples=30)
@given(
    lengths=REQUEST["lengths"],
    length=st.integers(1, 9),
    stride=st.integers(1, 7),
    steps=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_random_offsets_stay_in_their_trial(tmp_path_factory, lengths, length, stride, steps, seed):
    store, _ = make(tmp_path_factory, lengths, 1, steps)
    asked = WindowBatches(length, stride, steps=steps, random_offset=True)
    try:
        stream = TrialStream(store, batches=asked, batch_size=4, seed=seed)
    except InvalidSpecError:
        assert max(lengths) <= steps
        return
    plain = TrialStream(
        store, batches=WindowBatches(length, stride, steps=steps), batch_size=4, seed=seed
    )
    for got, want in zip(stream, plain, strict=True):
        assert torch.equal(got.trial, want.trial)
        shift = got.start - want.start
        assert ((shift >= 0) & (shift < stride)).all()
        for row, trial in enumerate(got.trial.tolist()):
            if trial < 0:
                continue
            start, n = int(got.start[row]), int(got.lengths[row])
            assert start + n + steps <= lengths[trial]
            rows = coded_values(trial, lengths[trial], 3)
            assert np.array_equal(got.values[row, :n].numpy(), rows[start : start + n])
            ahead = rows[start + n : start + n + steps][:, [2, 0]]
            assert np.array_equal(got.targets[row].numpy(), ahead)


def test_random_offsets_reach_every_row_and_change_with_the_epoch(tmp_path):
    store = make_store(tmp_path, [400], windows=WindowSpec(4, steps=1))
    stream = TrialStream(store, batches=WindowBatches(stride=8, random_offset=True), batch_size=8)
    epochs = [[int(s) for batch in stream for s in batch.start] for _ in range(60)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 60
    counts = np.bincount(np.concatenate(epochs), minlength=396)[:392]
    assert (counts > 0).mean() > 0.99


def test_a_target_may_be_chosen_at_load_time(tmp_path):
    store = make_store(tmp_path, LENGTHS, target=PER_STEP, windows=WindowSpec(4, 2))
    stream = TrialStream(store, target=TWO, batch_size=4, shuffle="none")
    assert (stream.target, stream.n_targets, stream.windows.steps) == (TWO, 2, 1)
    for batch in stream:
        assert batch.targets.shape == (4, 1, 2)
        for row, trial in enumerate(batch.trial.tolist()):
            if trial >= 0:
                at = int(batch.start[row]) + int(batch.lengths[row])
                want = coded_values(trial, LENGTHS[trial], 3)[at, [2, 0]]
                assert batch.targets[row, 0].tolist() == want.tolist()
    own = TrialStream(store, target=PER_STEP, batch_size=4)
    assert own.state_dict() == TrialStream(store, batch_size=4).state_dict()
    assert own.state_dict()["plan"] != stream.state_dict()["plan"]
    cases = {
        "of kind 'per_trial'": {"target": TargetSchema("per_trial", ("label",))},
        r"forecasts \['c9'\]; wanted channels": {"target": TargetSchema("forecast", ("c9",))},
        "target is 'c0'; wanted a TargetSchema": {"target": "c0"},
    }
    for message, request in cases.items():
        with pytest.raises(InvalidSpecError, match=message):
            TrialStream(store, **request)


@pytest.mark.parametrize("batches", ["trials", "lanes", WindowBatches(random_offset=True)])
def test_stored_windows_serve_windows_alone(tmp_path, batches):
    store = make_store(tmp_path, LENGTHS, layout="windows")
    with pytest.raises(InvalidSpecError, match="has layout 'windows'"):
        TrialStream(store, batches=batches)


def test_a_scope_of_windows_does_not_go_with_lanes(tmp_path):
    store = make_store(tmp_path, LENGTHS, normalize={"method": "zscore", "scope": "window"})
    with pytest.raises(InvalidSpecError, match="scope window"):
        TrialStream(store, batches="lanes")


def test_per_step_targets_and_missing_values_in_whole_trials(tmp_path):
    store = make_store(tmp_path, LENGTHS, target=PER_STEP, missing=True, scale=(3.0, 7.0))
    windows = TrialStream(store, batch_size=1, shuffle="none", windows=WindowSpec(64, 64))
    whole = {int(batch.trial[0]): batch for batch in windows}
    for batch in TrialStream(store, batch_size=3, batches="trials"):
        for row, trial in enumerate(batch.trial.tolist()):
            n, want = int(batch.lengths[row]), whole[trial]
            for name in ("values", "targets", "observed"):
                got = getattr(batch, name)[row]
                assert torch.equal(got[:n].nan_to_num(9), getattr(want, name)[0, :n].nan_to_num(9))
                padding = got[n:]
                assert padding.isnan().all() if name == "targets" else not padding.any()


def test_whole_trials_pack_without_their_filler(tmp_path):
    store = make_store(tmp_path, LENGTHS)
    lstm = torch.nn.LSTM(3, 4, batch_first=True)
    for batch in TrialStream(store, batch_size=4, batches=TrialBatches(max_padding=1.0)):
        packed = batch.packed()
        assert int(packed.batch_sizes.sum()) == int(batch.valid.sum())
        rows, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        present = batch.lengths > 0
        assert torch.equal(rows, batch.values[present])
        assert torch.equal(lengths, batch.lengths[present])
        _, (last, _) = lstm(packed)
        for row, got in zip(present.nonzero().flatten().tolist(), last[0], strict=True):
            alone, _ = lstm(batch.values[row, : batch.lengths[row]])
            torch.testing.assert_close(got, alone[-1])
