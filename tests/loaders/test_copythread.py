"""The second thread: what it copies is right whoever asks, gives up, forks or ends meanwhile."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import copying, copythread
from loaders.compiled import Loader
from loaders.copying import Fetch, FlatWindows
from loaders.copythread import CopyThread, copy_thread
from loaders.corewait import LOOK_EVERY, CoreWatch, waited_ns

N_ELEMENTS, WIDTH, N_WINDOWS = 100_000, 512, 400


@pytest.fixture(scope="module")
def loader() -> Loader:
    pytest.importorskip("llvmlite")
    loader = Loader()
    assert loader.load()
    return loader


@pytest.fixture(autouse=True)
def use(loader, monkeypatch):
    """Use a thread of this test alone, as if there always were a core for it."""
    monkeypatch.setattr(copying, "loader", loader)
    monkeypatch.setattr(CoreWatch, "is_free", lambda *_: True)
    thread = CopyThread(loader.loop)
    monkeypatch.setattr(copythread, "_threads", {id(loader.loop): thread})
    yield thread
    thread.end()


def windows() -> FlatWindows:
    return FlatWindows(torch.arange(N_ELEMENTS, dtype=torch.float32))


def begin(flat: FlatWindows, first: torch.Tensor, out: torch.Tensor) -> Fetch:
    fetch = flat.fetch(first, out)
    fetch.begin()
    return fetch


def starts(seed: int) -> torch.Tensor:
    start = np.random.default_rng(seed).integers(0, N_ELEMENTS - WIDTH, N_WINDOWS)
    return torch.from_numpy(start)


def wanted(first: torch.Tensor) -> torch.Tensor:
    return (first[:, None] + torch.arange(WIDTH)).float()


def wait_until(is_so) -> None:
    for _ in range(2000):
        if is_so():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to that")


def test_it_copies_all_while_nobody_waits(use):
    out = torch.zeros(N_WINDOWS, WIDTH)
    fetch = begin(windows(), starts(0), out)
    wait_until(lambda: torch.equal(out, wanted(starts(0))))
    fetch.finish()
    assert torch.equal(out, wanted(starts(0)))


def test_many_copies_one_after_the_other_are_all_right():
    flat = windows()
    rng = np.random.default_rng(0)
    for seed in range(300):
        first = starts(seed)[: rng.integers(1, N_WINDOWS)]
        out = torch.zeros(len(first), WIDTH)
        fetch = begin(flat, first, out)
        if rng.random() < 0.3:
            time.sleep(rng.random() / 2000)
        fetch.finish()
        assert torch.equal(out, wanted(first)), seed


def test_a_copy_that_finds_it_busy_is_made_by_its_owner():
    flat = windows()
    fetches = [begin(flat, starts(k), torch.zeros(N_WINDOWS, WIDTH)) for k in range(4)]
    for k in (2, 0, 3, 1):
        fetches[k].finish()
        assert torch.equal(fetches[k].out, wanted(starts(k)))


def test_one_that_is_done_but_not_taken_does_not_keep_it_busy(use):
    flat = windows()
    first, second = torch.zeros(N_WINDOWS, WIDTH), torch.zeros(N_WINDOWS, WIDTH)
    early = begin(flat, starts(1), first)
    wait_until(lambda: torch.equal(first, wanted(starts(1))))
    later = begin(flat, starts(2), second)
    wait_until(lambda: torch.equal(second, wanted(starts(2))))
    first.zero_()  # it must not be copied a second time
    early.finish()
    later.finish()
    assert not first.any()


def test_a_copy_that_nobody_wants_any_more_lets_its_memory_go():
    flat, out = windows(), torch.zeros(N_WINDOWS, WIDTH)
    left = weakref.ref(flat)
    fetch = begin(flat, starts(0), out)
    del fetch, flat
    gc.collect()
    assert left() is None
    before = out.clone()
    time.sleep(0.02)
    assert torch.equal(out, before), "somebody still writes"


def test_a_window_outside_is_refused_and_the_next_copy_works():
    flat = windows()
    with pytest.raises(IndexError, match="window 1 begins at element 100000"):
        begin(flat, torch.tensor([0, N_ELEMENTS]), torch.zeros(2, WIDTH))
    out = torch.zeros(N_WINDOWS, WIDTH)
    begin(flat, starts(3), out).finish()
    assert torch.equal(out, wanted(starts(3)))


def test_several_threads_share_it():
    flat, wrong = windows(), []

    def work(number: int) -> None:
        for turn in range(60):
            first = starts(100 * number + turn)
            out = torch.zeros(N_WINDOWS, WIDTH)
            fetch = begin(flat, first, out)
            if turn % 3 == 0:
                del fetch
                continue
            fetch.finish()
            if not torch.equal(out, wanted(first)):
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_the_copy_itself():
    flat, out = windows(), torch.zeros(N_WINDOWS, WIDTH)
    fetch = begin(flat, starts(0), out)
    want = wanted(starts(0)).numpy()
    child = os.fork()
    if child == 0:
        fetch.finish()
        os._exit(0 if np.array_equal(out.numpy(), want) else 1)  # no threads of torch's here
    assert os.waitpid(child, 0)[1] == 0
    fetch.finish()
    assert torch.equal(out, wanted(starts(0)))


def test_after_its_end_everybody_copies_alone(use):
    flat, out = windows(), torch.zeros(N_WINDOWS, WIDTH)
    begin(flat, starts(0), out).finish()
    use.end()
    for fresh in (torch.zeros_like(out), torch.zeros_like(out)):
        begin(flat, starts(0), fresh).finish()
        assert torch.equal(fresh, out)


@pytest.mark.parametrize(
    "ending", ["", "raise SystemExit(0)", "import gc; del fetch; gc.collect()"]
)
def test_a_process_ends_with_a_copy_under_way(ending):
    code = f"""
        import torch
        from loaders import copying
        assert copying.loader.load()
        flat = copying.FlatWindows(torch.zeros(50_000_000))
        first = torch.randint(0, 40_000_000, (20_000,))
        for _ in range(3):
            fetch = flat.fetch(first, torch.empty(20_000, 2_000))
            fetch.begin()
        {ending}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_there_is_none_on_a_machine_of_one_core(loader, monkeypatch):
    monkeypatch.setattr(copythread, "_threads", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert copy_thread(loader.loop) is None


class TestCoreWatch:
    @pytest.fixture(autouse=True)
    def clocks(self, monkeypatch, use):
        monkeypatch.undo()
        self.now = self.waited = 0
        monkeypatch.setattr("time.monotonic_ns", lambda: self.now)
        monkeypatch.setattr("loaders.corewait.waited_ns", lambda _: self.waited)

    def answers(self, watch: CoreWatch, share: float, n: int) -> list[bool]:
        """Ask it for n copies of 1 ms, during which threads are kept waiting for a share of it."""
        said = []
        for _ in range(n):
            said.append(watch.is_free((1, 2)))
            self.now += 1000
            self.waited += int(500 * share)  # each of two threads
        return said

    def test_it_says_yes_while_both_get_their_cores(self):
        assert all(self.answers(CoreWatch(), 0.04, 5000))

    def test_where_they_do_not_it_soon_hardly_asks_for_them_any_more(self):
        said = self.answers(CoreWatch(), 0.5, 100_000)
        assert not all(said[: LOOK_EVERY + 1])
        assert 0 < sum(said[50_000:]) < 500

    def test_it_comes_back_when_they_do(self):
        watch = CoreWatch()
        self.answers(watch, 0.5, 20_000)
        assert all(self.answers(watch, 0, 30_000)[10_000:])

    def test_other_threads_are_looked_at_anew(self):
        watch = CoreWatch()
        self.answers(watch, 0, LOOK_EVERY + 1)
        self.waited += 10**9
        assert all(watch.is_free((3, 4)) for _ in range(LOOK_EVERY))


def test_the_system_says_how_long_a_thread_waited():
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this system does not say")
    assert waited_ns(threading.get_native_id()) > 0
    assert waited_ns(2**30) == 0
