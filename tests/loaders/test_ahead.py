"""A thread that works ahead: the same items, and an end to it however the loop ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.ahead import Ahead
from shards import InvalidSpecError

PATIENCE_SECONDS = 30


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "trialshards-ahead"]


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert until(lambda: not threads())


def endless(log: list[str | int]) -> Iterator[int]:
    """Count up; log what was made, and the end."""
    try:
        n = 0
        while True:
            log.append(n)
            yield n
            n += 1
    finally:
        log.append("closed")


@given(n=st.integers(0, 30), depth=st.integers(1, 5))
def test_it_yields_the_same_items_in_the_same_order(n, depth):
    ahead = Ahead(iter(range(n)), depth)
    assert list(ahead) == list(range(n))
    assert next(ahead, "over") == "over"


@pytest.mark.parametrize("depth", [1, 3])
def test_it_makes_so_many_early_and_no_more(depth):
    log: list[str | int] = []
    ahead = Ahead(endless(log), depth)
    assert next(ahead) == 0
    assert until(lambda: len(log) == 1 + depth)
    time.sleep(0.05)
    assert len(log) == 1 + depth
    ahead.close()


def test_no_thread_runs_before_the_first_item_is_asked_for():
    log: list[str | int] = []
    ahead = Ahead(endless(log), 2)
    assert iter(ahead) is ahead
    assert not threads()
    ahead.close()
    assert list(ahead) == []
    assert log == []


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_of_nothing_is_refused(depth):
    with pytest.raises(InvalidSpecError, match="depth"):
        Ahead(iter(()), depth)


def test_an_error_comes_behind_the_items_before_it_with_its_traceback():
    def fail_at_two() -> Iterator[int]:
        yield from range(2)
        raise LookupError("two")

    ahead = Ahead(fail_at_two(), 5)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(LookupError, match="two") as caught:
        next(ahead)
    assert "fail_at_two" in {
        frame.name for frame in traceback.extract_tb(caught.value.__traceback__)
    }
    assert list(ahead) == []


def test_an_error_that_is_no_exception_arrives_as_well():
    def stop() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Ahead(stop(), 1))


def test_an_error_while_closing_is_not_lost():
    class Bad(Iterator[int]):
        def __next__(self) -> int:
            raise StopIteration

        def close(self) -> None:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"):
        next(Ahead(Bad(), 1))


@pytest.mark.parametrize("ending", ["close", "forget", "break", "error in the loop"])
def test_a_loop_that_ends_early_ends_the_thread(ending):
    log: list[str | int] = []
    ahead = Ahead(endless(log), 2)
    if ending == "break":
        for _ in ahead:
            break
    elif ending == "error in the loop":
        with pytest.raises(ZeroDivisionError):
            [1 // item for item in ahead]
    else:
        next(ahead)
    if ending == "close":
        ahead.close()
        assert not threads()
        assert list(ahead) == []
    del ahead
    gc.collect()
    assert until(lambda: log[-1] == "closed" and not threads())


def test_a_generator_around_it_closes_it():
    log: list[str | int] = []

    def loop() -> Iterator[int]:
        ahead = Ahead(endless(log), 2)
        try:
            yield from ahead
        finally:
            ahead.close()

    around = loop()
    next(around)
    around.close()
    assert log[-1] == "closed"
    assert not threads()


def test_closing_waits_for_the_item_in_the_making():
    busy, done = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        busy.set()
        time.sleep(0.1)
        done.set()
        yield 1

    ahead = Ahead(slow(), 1)
    next(ahead)
    assert busy.wait(PATIENCE_SECONDS)
    ahead.close()
    assert done.is_set()


def test_the_thread_keeps_no_item_that_was_taken():
    import weakref

    class Item:
        pass

    ahead = Ahead((Item() for _ in range(5)), 1)
    item = next(ahead)
    seen = weakref.ref(item)
    del item
    assert until(lambda: seen() is None)
    ahead.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_instead_of_waiting_for_ever():
    ahead = Ahead(iter(range(10)), 2)
    assert next(ahead) == 0
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_SECONDS)
        code = 1
        try:
            next(ahead)
        except RuntimeError:
            ahead.close()
            code = 0 if list(Ahead(iter(range(3)), 1)) == [0, 1, 2] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(ahead) == list(range(1, 10))


AT_THE_END = """
import sys, time, itertools
from loaders.ahead import Ahead
import torch

def work():
    for i in itertools.count():
        torch.randn(200, 200) @ torch.randn(200, 200)
        yield i

ahead = Ahead(work(), 2)
for i in ahead:
    if i == 3:
        {ending}
print("still here")
"""


@pytest.mark.parametrize(
    ("ending", "said", "code"),
    [
        ("break", "still here\n", 0),
        ("del ahead; break", "still here\n", 0),
        ("sys.exit(3)", "", 3),
        ("raise SystemError", "", 1),
    ],
)
def test_the_process_ends_as_it_wants_to(ending, said, code):
    program = AT_THE_END.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == (said, code), done.stderr


@pytest.mark.parametrize("state", ["waiting for an item", "between items"])
def test_ctrl_c_ends_the_loop_and_the_process(state):
    wait = "print('ready', flush=True); time.sleep(600)"
    program = AT_THE_END.format(ending=wait)
    if state == "waiting for an item":
        program = program.replace(
            "yield i", f"yield i\n        if i == 2: {wait.replace('600', '2')}"
        )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert "still here" not in out
    assert "KeyboardInterrupt" in err
    assert process.returncode in (-signal.SIGINT, 130)
