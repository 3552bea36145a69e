"""The engine: results in order, a bounded number in flight, the first error and nothing more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import default_workers, map_batches


class Watch:
    """Count what is under way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most_running = self.started = 0

    def __enter__(self) -> None:
        with self.lock:
            self.started += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.running -= 1


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_results_come_in_order_under_random_sleeps(n: int, n_workers: int, seed: int):
    sleeps = np.random.default_rng(seed).exponential(0.0005, n)

    def work(i: int) -> int:
        time.sleep(sleeps[i])
        return i * i

    assert list(map_batches(work, range(n), n_workers=n_workers)) == [i * i for i in range(n)]


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_no_more_than_the_workers_run_and_one_more_result_is_held(n_workers: int):
    watch, drawn = Watch(), 0

    def work(i: int) -> int:
        with watch:
            time.sleep(0.001)
        return i

    def batches() -> Iterator[int]:
        nonlocal drawn
        for i in range(40):
            drawn += 1
            yield i

    for n_taken, _ in enumerate(map_batches(work, batches(), n_workers=n_workers), start=1):
        assert drawn - n_taken <= n_workers  # and this one: n_workers + 1 results in all
    assert watch.most_running <= n_workers
    assert watch.started == drawn == 40


def test_a_slow_consumer_holds_the_work_back():
    watch = Watch()

    def work(i: int) -> int:
        with watch:
            return i

    results = map_batches(work, range(1000), n_workers=3)
    next(results)
    time.sleep(0.05)
    assert watch.started <= 4
    results.close()
    assert watch.started <= 4


def test_workers_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    assert list(map_batches(lambda i: meeting.wait() >= 0, range(3), n_workers=3)) == [True] * 3


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("bad", [0, 1, 7, 19])
def test_the_first_error_is_raised_and_nothing_more_is_started(bad: int, n_workers: int):
    watch, results = Watch(), []

    def work(i: int) -> int:
        with watch:
            if i >= bad:
                raise ValueError(f"batch {i}")
            time.sleep(0.001)
            return i

    with pytest.raises(ValueError, match=f"^batch {bad}$"):
        # Extending from an iterator keeps what came before the error.
        results.extend(map_batches(work, range(200), n_workers=n_workers))
    assert results == list(range(bad))
    assert watch.started <= bad + n_workers + 1
    started = watch.started
    time.sleep(0.02)
    assert (watch.started, watch.running) == (started, 0)


def test_an_early_error_that_comes_late_is_still_the_one_raised():
    def work(i: int) -> int:
        time.sleep(0.05 if i == 0 else 0)
        raise ValueError(f"batch {i}")

    with pytest.raises(ValueError, match=r"^batch 0$"):
        list(map_batches(work, range(5), n_workers=4))


def test_an_error_of_the_batches_themselves_passes_through():
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("the list is gone")

    results = map_batches(lambda i: i, batches(), n_workers=4)
    with pytest.raises(OSError, match="the list is gone"):
        list(results)


def test_no_thread_stays_behind():
    before = threading.active_count()
    list(map_batches(lambda i: i, range(10), n_workers=4))
    assert threading.active_count() == before
    assert default_workers() >= 1
