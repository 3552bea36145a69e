"""Batches made on a device have the bits of those made on the host (law 5), whatever is asked."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from batches import LENGTHS, PER_STEP, assert_same, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store
from streams import ask, digest, join, requests, stores
from test_inverse import MIXED, TARGET
from test_shapes import CLASSES, Case, cases, store_of

from loaders import (
    Batch,
    BlockShuffle,
    LaneBatches,
    TrialBatches,
    TrialStream,
    WindowBatches,
    mix,
)
from loaders.devicegather import DeviceGather
from loaders.gather import RowGather
from loaders.resident import choose_place
from shards import InvalidSpecError, WindowSpec

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=no_cuda)]
BLOCKS = BlockShuffle(300, 900)
KINDS = ["windows", TrialBatches(), TrialBatches(9, "start"), LaneBatches(5), LaneBatches(4, 3)]


def assert_same_epochs(got: TrialStream, want: TrialStream, n_epochs: int = 2) -> None:
    for _ in range(n_epochs):
        for mine, other in zip(got, want, strict=True):
            assert {x.device for x in tensors(mine).values()} == {got.device}
            assert_same(mine.to("cpu"), other)


def make_pair(store, device="cpu", resident=True, **request) -> tuple[TrialStream, TrialStream]:
    return TrialStream(store, device=device, resident=resident, **request), TrialStream(
        store, **request
    )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(
    case=cases(),
    batches=st.sampled_from(KINDS),
    split=st.sampled_from(["train", "test"]),
    shuffle=st.sampled_from(["global", "none", BLOCKS]),
    resident=st.sampled_from([True, "blocks"]),
    batch_size=st.integers(1, 9),
)
def test_every_field_has_the_same_bits(
    tmp_path_factory, device, case, batches, split, shuffle, resident, batch_size
):
    """Short windows, masks, codes, statics, every kind of target, of normalization, of batches."""
    store = store_of(case, tmp_path_factory.mktemp("s"), "rows", "zarr")
    if shuffle is not BLOCKS or batches != "windows":
        resident = True
    request = {"split": split, "shuffle": shuffle, "batch_size": batch_size, "batches": batches}
    try:
        want = TrialStream(store, **request)
    except InvalidSpecError:  # no windows, or lanes of scope window
        return
    assert_same_epochs(TrialStream(store, device=device, resident=resident, **request), want)


def test_the_comparison_sees_every_kind_of_tensor(tmp_path):
    """The one above would say little if these were not there."""
    case = Case((30, 5, 12, 9), 3, 2, WindowSpec(6, 2), PER_STEP, "window", True, True, 1)
    got, _ = make_pair(store_of(case, tmp_path, "rows", "zarr"), shuffle="none", batch_size=5)
    batch = next(iter(got))
    assert isinstance(got._gather, DeviceGather)
    assert tensors(batch).keys() >= {
        "values", "targets", "observed", "codes", "static_codes", "window_offset",
    }  # fmt: skip
    assert torch.isnan(batch.targets).any()
    assert not all(bool(batch.valid.all()) for batch in got)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batches", ["windows", TrialBatches()])
@pytest.mark.parametrize("shuffle", ["global", BLOCKS])
def test_regimes_and_mixed_scopes(tmp_path, device, batches, shuffle):
    windows = WindowSpec(6, 2, horizon=2, steps=3)
    store = make_store(
        tmp_path, LENGTHS, target=TARGET, windows=windows, normalize=MIXED, n_shards=2, missing=True
    )
    for resident in (True, "blocks") if (batches, shuffle) == ("windows", BLOCKS) else (True,):
        pair = make_pair(store, device, resident, batch_size=4, batches=batches, shuffle=shuffle)
        assert_same_epochs(*pair)
        assert next(iter(pair[0])).regimes is not None


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25)
@given(asked=requests(), world_size=st.integers(1, 3))
def test_balance_filters_mixtures_and_ranks(tmp_path_factory, device, asked, world_size):
    made = stores(tmp_path_factory.mktemp("s"))
    want = list(ask(made, asked))
    there = [
        list(ask(made, asked, rank=r, world_size=world_size, device=device, resident=True))
        for r in range(world_size)
    ]
    got = [join([part.to("cpu") for part in parts]) for parts in zip(*there, strict=True)]
    assert [digest(batch) for batch in got] == [digest(batch) for batch in want]


@pytest.mark.parametrize("target", [CLASSES, PER_STEP])
@pytest.mark.parametrize("resident", [True, "blocks"])
def test_padding_rows_of_trials_that_lie_elsewhere_do_not_show(tmp_path, target, resident):
    case = Case((2, 7, 1, 3, 40), 2, 1, WindowSpec(8, 3), target, "window", True, True, 5)
    store = store_of(case, tmp_path, "rows", "zarr")
    assert_same_epochs(*make_pair(store, resident=resident, batch_size=64, shuffle=BLOCKS))


# --- where batches are made -----------------------------------------------------------------------


def place_of(store, resident, free, monkeypatch, **request) -> str:
    """Return where batches would be made on a CUDA device with so much free memory."""
    stream = TrialStream(store, **request)
    cuda = torch.device("cuda", 0)
    options = dataclasses.replace(stream.options, device=cuda, resident=resident)
    monkeypatch.setattr("loaders.resident.free_bytes", lambda device: free)
    return choose_place(store, stream._selection, options)


def test_the_free_memory_decides(tmp_path, monkeypatch):
    store = make_store(tmp_path / "a", [40] * 12)
    size = 12 * 40 * 12
    assert place_of(store, "auto", 2 * size, monkeypatch) == "device"
    assert place_of(store, "auto", 2 * size - 1, monkeypatch) == "host"
    assert place_of(store, False, 2 * size, monkeypatch) == "host"
    assert place_of(store, True, size, monkeypatch) == "device"
    small = BlockShuffle(480, 960)
    assert place_of(store, "auto", 2 * size, monkeypatch, shuffle=small) == "device"
    assert place_of(store, "auto", 2 * size - 1, monkeypatch, shuffle=small) == "pools"
    assert place_of(store, "blocks", 2 * size, monkeypatch, shuffle=small) == "pools"
    assert place_of(store, "auto", 960, monkeypatch, shuffle=small) == "host"
    assert place_of(store, "auto", size, monkeypatch, shuffle=small, batches="trials") == "host"
    with pytest.raises(InvalidSpecError, match=r"take 5,760 bytes, cuda:0 has 5,759 free. Use"):
        place_of(store, True, size - 1, monkeypatch)
    windows = make_store(tmp_path / "b", [40] * 3, layout="windows")
    assert place_of(windows, "auto", 10 * size, monkeypatch) == "host"


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_cpu_keeps_no_rows_unless_it_is_told_to(tmp_path, ahead):
    store = make_store(tmp_path, LENGTHS)
    stream = TrialStream(store, device="cpu", batch_size=4, ahead=ahead)
    assert_same_epochs(stream, TrialStream(store, batch_size=4))
    assert isinstance(stream._gather, RowGather)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"resident": True}, r"resident is True and device is None; wanted device='cuda'"),
        ({"resident": "blocks", "device": "mps"}, r"resident is 'blocks' and device is 'mps'"),
        ({"resident": "often"}, r"resident is 'often'; wanted 'auto', True, False or 'blocks'"),
        ({"resident": 1}, r"resident is 1; wanted"),
        ({"device": "gpu"}, r"device is 'gpu' \(.*\); wanted one such as 'cuda', or None"),
        ({"device": "cuda:99"}, r"device is 'cuda:99', but this PyTorch .* sees \d+ CUDA devices"),
        ({"resident": "blocks", "device": "cpu"}, r"wanted shuffle='blocks' and batches of window"),
        (
            {"resident": "blocks", "device": "cpu", "shuffle": "blocks", "batches": "trials"},
            r"resident is 'blocks', shuffle is 'blocks' and batches is TrialBatches",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_when_the_stream_is_made(tmp_path, request_, says):
    store = make_store(tmp_path, LENGTHS)
    with pytest.raises(InvalidSpecError, match=says):
        TrialStream(store, **request_)


def test_stored_windows_lie_on_no_device(tmp_path):
    store = make_store(tmp_path, LENGTHS, layout="windows")
    with pytest.raises(InvalidSpecError, match=r"resident is True.*layout 'windows'.*layout: rows"):
        TrialStream(store, device="cpu", resident=True)
    assert_same_epochs(TrialStream(store, device="cpu"), TrialStream(store))


def test_streams_of_a_mixture_share_a_device(tmp_path):
    store = make_store(tmp_path, LENGTHS)
    streams = [TrialStream(store, device="cpu"), TrialStream(store)]
    with pytest.raises(InvalidSpecError, match=r"devices of the streams are \['cpu', 'None'\]"):
        mix(streams)


def test_a_state_goes_from_device_to_host_and_back(tmp_path):
    store = make_store(tmp_path, LENGTHS)
    there, here = make_pair(store, batch_size=4)
    want = list(TrialStream(store, batch_size=4))
    batch = next(b for b in there if b.step == 2)
    here.load_state_dict(there.state_dict(batch))
    batch = next(b for b in here if b.step == 4)
    there.load_state_dict(here.state_dict(batch))
    for got, other in zip(there, want[5:], strict=True):
        assert_same(got, other)


def test_a_pickle_leaves_the_rows_behind(tmp_path):
    store = make_store(tmp_path, [3000] * 9)
    stream, want = make_pair(store, batch_size=4, batches=WindowBatches(stride=500))
    list(stream)
    pickled = pickle.dumps(stream)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    again.set_epoch(0)
    assert_same_epochs(again, want, n_epochs=1)


@pytest.mark.parametrize("resident", [True, "blocks"])
def test_a_first_batch_in_inference_mode_spoils_nothing(tmp_path, resident):
    store = make_store(tmp_path, [40] * 12, missing=True)
    blocks = BlockShuffle(500, 1000)
    got, want = make_pair(store, resident=resident, shuffle=blocks, batch_size=8)
    with torch.inference_mode():
        for batch in got:
            assert batch.values.is_inference()
    got.set_epoch(0)
    for mine, other in zip(got, want, strict=True):
        assert not mine.values.is_inference()
        assert_same(mine, other)
        mine.values.requires_grad_().square().sum().backward()


def test_units_are_told_on_any_device(tmp_path):
    store = make_store(tmp_path, LENGTHS, scale=(3.0, 7.0))
    there, here = make_pair(store, batch_size=4)
    for mine, other in zip(there, here, strict=True):
        got = there.to_physical(mine.targets, mine)
        assert torch.equal(got.isnan(), other.targets.isnan())
        assert got.nan_to_num().equal(here.to_physical(other.targets, other).nan_to_num())


@pytest.mark.parametrize("batches", ["windows", "trials", LaneBatches(5, 2)])
def test_a_batch_shares_nothing_with_the_rows_or_another_batch(tmp_path, batches):
    store = make_store(tmp_path, LENGTHS, missing=True, target=PER_STEP)
    stream, want = make_pair(store, batch_size=4, shuffle="none", batches=batches)
    others: list[Batch] = list(want)
    for got in stream:
        for tensor in tensors(got).values():
            tensor.fill_(1)
    stream.set_epoch(0)
    for got, other in zip(stream, others, strict=True):
        assert_same(got, other)
