"""Runs an iterator in a thread of its own, some items ahead of who takes them."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from shards import InvalidSpecError

T = TypeVar("T")

EXIT_SECONDS = 10.0
"""How long the end of the process waits for a thread to finish its item."""


class _Outcome(NamedTuple, Generic[T]):
    """An item, or how it ended: without error, by running out."""

    items: tuple[T, ...]
    error: BaseException | None = None


class Ahead(Iterator[T]):
    """Yields what `produce` yields, made up to `depth` items early.

    The thread starts with the first item asked for, or at `start`. It ends when `produce` does, at
    `close`, when nobody holds this object any more, and with the process. What was made and not
    taken is lost, so whatever counts items has to count those taken here. An error of `produce` is
    raised here, behind the items before it, with its own traceback.

    Args:
        produce: Iterator; only the thread calls it, and it closes it if it is a generator.
        depth: Items that may wait to be taken; 1 or more.

    Raises:
        InvalidSpecError: If `depth` is below 1.
        RuntimeError: From `next`, in a process forked after the thread started.
    """

    def __init__(self, produce: Iterator[T], depth: int) -> None:
        if depth < 1:
            raise InvalidSpecError(f"depth is {depth!r}; wanted an integer >= 1.")
        self._produce: Iterator[T] | None = produce
        self._depth = depth
        self._worker: _Worker[T] | None = None
        self._pid = 0

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        """Return the next item; waits for it if need be."""
        self.start()
        worker = self._worker
        if worker is None:
            raise StopIteration
        if self._pid != os.getpid():
            raise RuntimeError(
                "this loop runs in the process that started it; start a new one in a forked child."
            )
        outcome = worker.made.get()
        if outcome.items:
            worker.room.put(None)
            return outcome.items[0]
        self.close()
        error = outcome.error
        del outcome
        if error is None:
            raise StopIteration
        try:
            raise error
        finally:
            del error  # it holds this frame, which would hold it

    def close(self) -> None:
        """Stop the thread and wait until it has; nothing more is yielded."""
        worker, self._worker, self._produce = self._worker, None, None
        if worker is not None and self._pid == os.getpid():
            worker.stop()
            # One that Ctrl-C caught at its start cannot be joined; it ends by itself.
            if threading.current_thread() is not worker.thread and worker.thread.is_alive():
                worker.thread.join()

    def start(self) -> None:
        """Start the thread, unless it has been started or closed."""
        if self._worker is not None or self._produce is None:
            return
        worker = _Worker(self._produce, self._depth)
        self._worker, self._produce, self._pid = worker, None, os.getpid()
        # Not to wait for it: whoever lets go may hold a lock that the item needs.
        weakref.finalize(self, worker.stop).atexit = False
        worker.start()


class _Worker(Generic[T]):
    """The thread and what passes between: it must not hold the `Ahead`, or nobody lets go."""

    def __init__(self, produce: Iterator[T], depth: int) -> None:
        self.made: SimpleQueue[_Outcome[T]] = SimpleQueue()
        self.room: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self.room.put(None)
        self._produce: Iterator[T] | None = produce
        self._stopped = False
        # A daemon, so that threading does not wait for it before `_stop_all` has told it to stop.
        self.thread = threading.Thread(target=self._run, name="trialshards-ahead", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        _watch_the_end()
        _running.add(self)
        try:
            self.thread.start()
        except BaseException:
            _running.discard(self)
            raise

    def stop(self) -> None:
        """Tell the thread to end; it does when its item is done."""
        self._stopped = True
        self.room.put(None)

    def _run(self) -> None:
        produce, self._produce = self._produce, None
        assert produce is not None
        end: _Outcome[T] = _Outcome(())
        try:
            while True:
                self.room.get()
                if self._stopped:
                    break
                self.made.put(_Outcome((next(produce),)))
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - the other side raises it
            end = _Outcome((), error)
        finally:
            close = getattr(produce, "close", None)
            try:
                if close is not None:
                    close()
            except BaseException as error:  # noqa: BLE001
                end = _Outcome((), end.error or error)
            self.made.put(end)
            _running.discard(self)


_running: set[_Worker[Any]] = set()


@cache
def _watch_the_end() -> None:
    atexit.register(_stop_all)
    os.register_at_fork(after_in_child=_running.clear)  # their threads are the parent's


def _stop_all() -> None:
    """End all threads: one that is inside of torch when the interpreter goes takes it down."""
    running = list(_running)
    for worker in running:
        worker.stop()
    for worker in running:
        worker.thread.join(EXIT_SECONDS)


def take_turns(sources: Sequence[Ahead[T]]) -> Iterator[T]:
    """Yield the first item of each source, then the second of each, until one has no more.

    All sources have begun before the first item is waited for, and are closed at the end.
    """
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        for source in sources:
            source.start()
        for source in itertools.cycle(sources):
            try:
                item = next(source)
            except StopIteration:
                return
            yield item
            del item  # or its memory is in use while the next one is waited for
