"""Copies of windows: the same bits from torch and from the compiled loop, and nothing beyond."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loaders import compiled, copying
from loaders.compiled import Loader
from loaders.copying import FlatWindows, Picks

DTYPES = ("float32", "float64", "uint8", "uint16", "int16")
N_ELEMENTS = 5000
WAYS = ("torch", "compiled", "early")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    use(request.param, monkeypatch)
    return request.param


def use(way: str, monkeypatch) -> None:
    monkeypatch.setattr(copying, "loader", make_loader(way == "torch"))
    if way == "early":
        monkeypatch.setattr(FlatWindows, "fetch", begin(FlatWindows.fetch))


def begin(fetch):
    @functools.wraps(fetch)
    def early(*args):
        fetched = fetch(*args)
        fetched.begin()
        return fetched

    return early


@functools.cache
def make_loader(without: bool) -> Loader:
    loader = Loader()
    if without:
        loader.unload()
    else:
        pytest.importorskip("llvmlite")
        assert loader.load()
    return loader


def copy_windows(flat: torch.Tensor, first: np.ndarray, out: torch.Tensor) -> None:
    FlatWindows(flat).fetch(torch.from_numpy(first), out).finish()


def any_bits(dtype: str, seed: int = 0) -> np.ndarray:
    """Random bits: among the floats are NaNs of all payloads, infinities and subnormals."""
    size = N_ELEMENTS * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(dtype)


def bytes_of(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@given(data=st.data(), dtype=st.sampled_from(DTYPES), width=st.integers(0, 700))
def test_every_row_is_what_follows_its_element(data, dtype, width):
    starts = st.integers(0, N_ELEMENTS - width)
    first = np.array(data.draw(st.lists(starts, max_size=20)), np.int64)
    array = any_bits(dtype)
    want = b"".join(bytes_of(array[at : at + width]) for at in first.tolist())
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            use(way, patch)
            room = torch.zeros(len(first) + 2, width, dtype=torch.from_numpy(array).dtype)
            copy_windows(torch.from_numpy(array), first, room[1:-1])
        assert bytes_of(room[1:-1].numpy()) == want, way
        assert not room[0].any(), way
        assert not room[-1].any(), way


@given(data=st.data(), width=st.integers(1, 300), n_offsets=st.integers(1, 5))
def test_elements_beside_windows_and_ones_come_with_them(data, width, n_offsets):
    n = data.draw(st.integers(1, 40))
    first = np.array(
        data.draw(st.lists(st.integers(0, N_ELEMENTS - width), min_size=n, max_size=n))
    )
    offsets = np.array(
        data.draw(st.lists(st.integers(-9, 9), min_size=n_offsets, max_size=n_offsets))
    )
    origin = np.array(data.draw(st.lists(st.integers(9, N_ELEMENTS - 10), min_size=n, max_size=n)))
    array = any_bits("float32")
    flat = torch.from_numpy(array)
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            use(way, patch)
            room, ones = torch.zeros(n + 2, width), torch.zeros(n + 2, 3, dtype=torch.bool)
            picked = torch.zeros(n + 2, n_offsets)
            reach = (int(offsets.min()), int(offsets.max()))
            of = [torch.from_numpy(array) for array in (first, origin, offsets)]
            picks = Picks(*of[1:], reach, picked[1:-1])
            FlatWindows(flat).fetch(of[0], room[1:-1], picks, ones[1:-1]).finish()
        want = np.stack([array[at : at + width] for at in first.tolist()])
        assert bytes_of(room[1:-1].numpy()) == bytes_of(want), way
        assert bytes_of(picked[1:-1].numpy()) == bytes_of(array[origin[:, None] + offsets]), way
        assert ones[1:-1].all(), way
        assert not any(part[[0, -1]].any() for part in (room, picked, ones)), way


@pytest.mark.parametrize("bad", [-3, N_ELEMENTS - 2, 2**62])
def test_an_element_that_is_not_inside_is_refused(way, bad):
    if way == "torch" and bad < 0:
        pytest.skip("NumPy counts from the end; plans have no such element")
    offsets = torch.tensor([0, 2])
    picks = Picks(torch.tensor([5, bad]), offsets, (0, 2), torch.zeros(2, 2))
    windows = FlatWindows(torch.zeros(N_ELEMENTS))
    with pytest.raises(IndexError):
        windows.fetch(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4), picks).finish()


def test_signalling_nans_keep_their_bits(way):
    patterns = np.array([0x7F800001, 0xFFBFFFFF, 0x7FC00001, 0x80000000, 1], np.uint32)
    out = torch.zeros(2, 3)
    copy_windows(torch.from_numpy(patterns.view(np.float32)), np.array([0, 2]), out)
    assert out.numpy().view(np.uint32).tolist() == [patterns[:3].tolist(), patterns[2:].tolist()]


@pytest.mark.parametrize("width", [1, 128, 129, 4096])
def test_the_last_window_ends_with_the_last_element(way, width):
    flat = torch.arange(N_ELEMENTS, dtype=torch.float32)
    out = torch.zeros(1, width)
    copy_windows(flat, np.array([N_ELEMENTS - width]), out)
    assert torch.equal(out[0], flat[-width:])


@pytest.mark.parametrize("bad", [-1, N_ELEMENTS - 99, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_window_that_is_not_inside_is_refused(way, bad, place):
    first = np.zeros(7, np.int64)
    first[place] = bad
    with pytest.raises(IndexError):
        copy_windows(torch.zeros(N_ELEMENTS), first, torch.zeros(7, 100))


def test_a_window_longer_than_all_is_refused(way):
    with pytest.raises(IndexError):
        copy_windows(torch.zeros(10), np.zeros(1, np.int64), torch.zeros(1, 11))


@pytest.mark.parametrize(
    ("first", "out"),
    [
        (np.zeros(2, np.int64), torch.zeros(3, 4)),
        (np.zeros(3, np.int64), torch.zeros(3, 4, dtype=torch.float64)),
        (np.zeros(3, np.int64), torch.zeros(4, 3).t()),
    ],
)
def test_memory_that_does_not_fit_is_refused(way, first, out):
    with pytest.raises(ValueError, match="wanted contiguous rows"):
        copy_windows(torch.zeros(100), first, out)


def test_torch_copies_in_one_thread_and_keeps_its_own_number(monkeypatch):
    if copying._set_threads is None:
        pytest.skip("this torch has threads of another kind")
    use("torch", monkeypatch)
    seen, select = [], torch.index_select

    def spy(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return select(*args, **kwargs)

    def copy() -> None:
        copy_windows(torch.zeros(N_ELEMENTS), np.zeros(4, np.int64), torch.zeros(4, 100))
        after.append(torch.get_num_threads())

    before, after = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "index_select", spy)
    torch.set_num_threads(3)
    try:
        copy()
        thread = threading.Thread(target=copy)
        thread.start()
        thread.join()
        with pytest.raises(IndexError):
            copy_windows(torch.zeros(9), np.full(1, 9), torch.zeros(1, 2))
        after.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]
    assert after == [3, 3, 3]


def test_the_compiled_loop_comes_when_enough_was_copied(monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(compiled, "LOAD_AFTER_BYTES", 1000)
    loader = Loader()
    there = [loader.ready(size) is not None for size in (500, 499, 1, 1)]
    assert there == [False, False, True, True]


@pytest.mark.parametrize("reason", ["switched off", "not installed", "broken"])
def test_without_it_torch_copies(monkeypatch, reason):
    loader = Loader()
    if reason == "switched off":
        monkeypatch.setenv(compiled.SWITCH, "0")
    elif reason == "not installed":
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    else:
        monkeypatch.setattr(compiled, "_source", lambda: "nonsense")
    assert not loader.load()
    assert not loader.ready(2**60)
    monkeypatch.setattr(copying, "loader", loader)
    assert not copying.copies_early()
    out = torch.zeros(1, 2)
    copy_windows(torch.arange(9.0), np.array([3]), out)
    assert out.tolist() == [[3, 4]]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_the_loop_is_sound_for_other_machines_too(monkeypatch, machine):
    llvm = pytest.importorskip("llvmlite.binding")
    monkeypatch.setattr("platform.machine", lambda: machine)
    llvm.parse_assembly(compiled._source()).verify()


def test_importing_loads_no_compiler():
    code = "import loaders.copying, sys; assert not {'llvmlite', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
