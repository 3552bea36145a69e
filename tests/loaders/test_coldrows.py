"""Stores beyond memory: the system is told what comes, reads nothing else, and keeps little."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from batches import assert_same
from stores import make_store

from loaders import TrialStream, coldrows, mapped
from loaders.coldrows import ColdRows, memory_bytes
from shards.maps import FileRange

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc/self/smaps")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("s"), [400, 300, 500], n_shards=3)


def maps_of(part: str) -> list[str]:
    """Return what the system says of each map of a file whose path has `part` in it."""
    text = Path("/proc/self/smaps").read_text()
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    return [text for text in maps if part in text.partition("\n")[0]]


def held_kb(part: str) -> int:
    return sum(int(text.partition("\nRss:")[2].split()[0]) for text in maps_of(part))


def read_at_random(stream) -> bool:
    next(iter(stream))
    flags = {"rr" in text.partition("VmFlags:")[2].split() for text in maps_of("/values/c/0/0")}
    assert len(flags) == 1
    return flags.pop()


def test_batches_beyond_memory_are_the_same(store, monkeypatch):
    within = list(TrialStream(store, batch_size=32))
    monkeypatch.setattr(mapped, "memory_bytes", lambda: 0)
    monkeypatch.setattr(coldrows, "KEPT", 50)
    for got, want in zip(TrialStream(store, batch_size=32), within, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(
    ("request_", "memory", "is_cold"),
    [
        ({}, 0, True), ({}, 10**6, False), ({"shuffle": "blocks"}, 0, False),
        ({"shuffle": "none"}, 0, False), ({"batches": "lanes"}, 0, False),
    ],
)  # fmt: skip
def test_only_windows_from_all_over_a_store_beyond_memory_are_cold(
    request_, memory, is_cold, tmp_path, monkeypatch
):
    monkeypatch.setattr(mapped, "memory_bytes", lambda: memory)
    store = make_store(tmp_path, [400, 300, 500], n_shards=3)
    assert read_at_random(TrialStream(store, batch_size=32, **request_)) is is_cold


def test_memory_is_that_of_the_machine_or_less():
    assert 0 < memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_memory(rows) -> np.ndarray:
    """Return which pages of a map are in the page cache."""
    n_pages = -(-rows.nbytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * n_pages)()
    address = ctypes.c_void_p(rows.__array_interface__["data"][0])
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(rows.nbytes), found) == 0
    return np.frombuffer(found, np.uint8) & 1


def test_the_pages_of_windows_are_read_and_no_others(tmp_path):
    path, n_pages = tmp_path / "rows", 4096
    with path.open("wb") as file:
        file.write(bytes(n_pages * mmap.PAGESIZE))
        file.flush()
        rows = FileRange([(path, n_pages * mmap.PAGESIZE)])
        rows = rows.bytes[: n_pages * mmap.PAGESIZE].view("float32")
        for _ in range(20):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not in_memory(rows).any():
                break
            time.sleep(0.05)
        else:
            pytest.skip("this file system keeps its files in memory")
    per_page = mmap.PAGESIZE // 4
    first = np.array([5, 1000, 2500, 4095]) * per_page
    first[:3] += per_page - 1  # a window from the last element of a page on
    ColdRows(rows).ask(first, per_page)
    want = [5, 6, 1000, 1001, 2500, 2501, 4095]
    deadline = time.monotonic() + 20
    while in_memory(rows).sum() < len(want) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert np.flatnonzero(in_memory(rows)).tolist() == want


def test_a_process_lets_go_of_what_it_has_read(tmp_path, monkeypatch):
    monkeypatch.setattr(coldrows, "KEPT", 100)
    path = tmp_path / "rows-let-go"
    data = np.arange(1 << 20, dtype=np.float32)
    data.tofile(path)
    rows = FileRange([(path, data.nbytes)]).bytes[: data.nbytes].view("float32")
    cold = ColdRows(rows)
    first = np.arange(60) * 1024
    cold.ask(first, 1024)
    assert rows.sum() == data.sum()
    assert held_kb("rows-let-go") == data.nbytes // 1024
    cold.ask(first, 1024)
    assert held_kb("rows-let-go") == 0
    assert np.array_equal(rows, data)
