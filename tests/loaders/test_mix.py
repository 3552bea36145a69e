"""Mixtures: what they deliver, how far epochs go, ranks, workers and resume."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from batches import LENGTHS, assert_same, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store
from torch.utils.data import DataLoader

from loaders import LaneBatches, TrialStream, mix
from shards import InvalidSpecError
from shards.errors import ResumeError

WAYS = [
    {"by": "proportional"},
    {"by": "round_robin", "stop": "first"},
    {"by": "round_robin", "stop": "cycle"},
    {"by": (3.0, 1.0, 1.0), "stop": "first"},
    {"by": (1, 5, 2), "stop": "cycle"},
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    return [
        make_store(root / "a", LENGTHS, n_shards=2, missing=True),
        make_store(root / "b", [30, 9, 12]),
        make_store(root / "c", [8, 50, 7, 7, 20]),
    ]


def parts(stores, **ranks):
    return [
        TrialStream(stores[0], batch_size=8, seed=1, **ranks),
        TrialStream(stores[1], batch_size=4, batches="trials", balance="sqrt", **ranks),
        TrialStream(stores[2], batch_size=5, batches=LaneBatches(chunk=3), **ranks),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_every_stream_gives_its_own_batches_in_its_own_order(stores, way):
    mixed = mix(parts(stores), **way)
    got = [batch for _ in range(4) for batch in mixed]
    for source, stream in enumerate(parts(stores)):
        mine = [batch for batch in got if batch.source == source]
        own = (batch for _ in itertools.count() for batch in stream)
        for batch in mine:
            want = next(own)
            for name, tensor in tensors(want).items():
                assert torch.equal(getattr(batch, name).nan_to_num(7.0), tensor.nan_to_num(7.0)), (
                    name
                )
            assert batch.global_weight == want.global_weight


@pytest.mark.parametrize("way", WAYS)
def test_epochs_are_as_long_as_they_should_be(stores, way):
    mixed = mix(parts(stores), **way)
    steps = [stream.n_steps(0) for stream in mixed.streams]
    quotas = mixed.quotas(0)
    assert len(mixed) == sum(quotas) == len(list(mixed))
    if way["by"] == "proportional":
        assert quotas == steps
    elif way["stop"] == "first":
        assert any(q == n for q, n in zip(quotas, steps, strict=True))
        assert all(q <= n for q, n in zip(quotas, steps, strict=True))
    else:
        assert all(q >= n for q, n in zip(quotas, steps, strict=True))


@given(stop=st.integers(0, 200), way=st.sampled_from(WAYS))
@settings(max_examples=15)
def test_resume_equals_the_uninterrupted_run(stores, stop, way):
    run = [batch for mixed in [mix(parts(stores), **way)] for _ in range(3) for batch in mixed]
    stop %= len(run)
    state = mix(parts(stores), **way).state_dict(run[stop])
    again = mix(parts(stores), **way)
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    rest = [batch for _ in range(3) for batch in again]
    for got, want in zip(rest, run[stop + 1 :], strict=False):
        assert (got.source, got.step, got.epoch) == (want.source, want.step, want.epoch)
        assert_same(got, want)
    assert len(rest) >= len(run) - stop - 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_split_the_same_steps(stores, world_size):
    whole = list(mix(parts(stores)))
    ranks = [
        list(mix(parts(stores, rank=rank, world_size=world_size))) for rank in range(world_size)
    ]
    for step, want in enumerate(whole):
        for name, tensor in tensors(want).items():
            joined = torch.cat([getattr(rank[step], name) for rank in ranks])
            assert joined.numpy().tobytes() == tensor.numpy().tobytes(), name
        assert {rank[step].global_weight for rank in ranks} == {want.global_weight}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(stores, method):
    want = list(mix(parts(stores)))
    loader = DataLoader(
        mix(parts(stores)), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    for got, batch in zip(loader, want, strict=True):
        assert_same(got, batch)
        assert got.source == batch.source


def test_other_mixtures_are_refused(stores):
    state = mix(parts(stores)).state_dict()
    for other in (mix(parts(stores), "round_robin"), mix(parts(stores)[::-1])):
        with pytest.raises(ResumeError, match="plan: got"):
            other.load_state_dict(state)
    cases = {
        "streams are": lambda: mix([]),
        "by is 'even'": lambda: mix(parts(stores), "even"),
        "stop is 'last'": lambda: mix(parts(stores), stop="last"),
        "positive number for each of 3": lambda: mix(parts(stores), (1.0, 2.0)),
        "ranks of the streams are": lambda: mix(
            [*parts(stores), TrialStream(stores[0], rank=0, world_size=2)]
        ),
    }
    for message, ask in cases.items():
        with pytest.raises(InvalidSpecError, match=message):
            ask()


def test_units_are_those_of_the_batch(stores):
    mixed = mix(parts(stores))
    for batch in mixed:
        own = mixed.streams[batch.source]
        got = mixed.to_physical(batch.values[..., :1], batch, ["c0"])
        assert torch.equal(got, own.to_physical(batch.values[..., :1], batch, ["c0"]))
