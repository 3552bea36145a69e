"""A second thread that copies the next windows while those before are used.

It runs compiled code alone and never asks for Python's lock: handing a copy over costs a system
call at most, and none while the thread still looks for its next one. Both threads share a copy that
is waited for, so a second thread that comes late delays nobody.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import sys
import threading
from typing import Any

from loaders.compiled import Loop
from loaders.corewait import CoreWatch

STATE_BYTES = 64 * 8
LINE_BYTES = 64
EXIT_SECONDS = 10.0
"""How long the end of the process waits for the thread."""


class Ticket:
    """A copy that was handed over. Letting go of it calls the copy off.

    Attributes:
        number: Of this ticket in its thread.
    """

    def __init__(self, thread: CopyThread, number: int) -> None:
        self.number = number
        self._thread, self._pid = thread, os.getpid()

    def finish(self) -> bool:
        """Help with what is left; return whether all of it is done, which a fork prevents."""
        return self._pid == os.getpid() and self._thread.finish(self.number)

    def __del__(self) -> None:
        """Call it off."""
        if self._pid == os.getpid():
            self._thread.drop(self.number)


class CopyThread:
    """The thread; it starts with the first copy and ends with the process.

    It has one copy at a time, of whoever comes first.

    Args:
        loop: The compiled loop.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop, self._pid = loop, os.getpid()
        self._memory = ctypes.create_string_buffer(STATE_BYTES + LINE_BYTES)
        self._state = ctypes.addressof(self._memory)
        self._state += -self._state % LINE_BYTES
        loop.cancel(self._state)  # nothing to give out yet
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._numbers = itertools.count(1)
        self._owner = 0  # number of the ticket whose copy it is; 0: nobody's
        self._kept: Any = None
        self._done: set[int] = set()  # done before anybody asked
        self._cores = CoreWatch()

    def begin(self, job: bytes, kept: object) -> tuple[int, Ticket | None]:
        """Begin a copy.

        Args:
            job: Of `pack_job`.
            kept: Holds all memory of the job.

        Returns:
            The first window that is not inside of the map, or -1; and a ticket, or None where the
            thread is at another copy or gone.
        """
        # Never waits: its holder may be this very thread, which collects garbage in between.
        if not self._lock.acquire(blocking=False):
            return -1, None
        try:
            if self._is_over or (self._owner and self._loop.is_open(self._state)):
                return -1, None
            if not self._cores.is_free(self._pair()):
                return -1, None
            self._settle()
            if self._thread is None:
                self._start()
            bad: int = self._loop.begin(self._state, job)
            if bad >= 0:
                return bad, None
            self._owner, self._kept = next(self._numbers), kept
            return -1, Ticket(self, self._owner)
        except RuntimeError:  # no thread could be started
            self._is_over = True
            return -1, None
        finally:
            self._lock.release()

    def finish(self, number: int) -> bool:
        """Return whether the copy of a ticket is done, after helping with it."""
        with self._lock:
            if self._owner == number:
                self._loop.finish(self._state)
                self._owner, self._kept = 0, None
                return True
            is_done = number in self._done
            self._done.discard(number)
            return is_done

    def drop(self, number: int) -> None:
        """Call the copy of a ticket off, unless that would wait for something else than a row."""
        if self._owner != number and number not in self._done:
            return
        if self._lock.acquire(blocking=False):
            try:
                self._done.discard(number)
                if self._owner == number:
                    self._loop.cancel(self._state)
                    self._owner, self._kept = 0, None
            finally:
                self._lock.release()

    def end(self) -> None:
        """Stop the thread for good: memory goes before threads do when the interpreter ends."""
        if self._pid != os.getpid() or self._thread is None:
            return
        with self._lock:
            self._is_over = True
            self._loop.cancel(self._state)
            self._owner, self._kept = 0, None
        self._loop.stop(self._state)
        self._thread.join(EXIT_SECONDS)

    def _pair(self) -> tuple[int, ...]:
        second = self._thread.native_id if self._thread is not None else None
        return () if second is None else (threading.get_native_id(), second)

    def _settle(self) -> None:
        """Note that the copy before is done; its owner may still come for it."""
        if self._owner:
            self._loop.cancel(self._state)  # waits for rows that are being copied
            self._done.add(self._owner)
            self._owner, self._kept = 0, None

    def _start(self) -> None:
        thread = threading.Thread(
            target=self._loop.serve, args=(self._state,), name="trialshards-copies", daemon=True
        )
        thread.start()
        self._thread = thread
        atexit.register(self.end)


_threads: dict[int, CopyThread] = {}


def copy_thread(loop: Loop) -> CopyThread | None:
    """Return the thread of this process, or None where there is no core for it."""
    found = _threads.get(id(loop))
    if found is None and sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1:
        found = _threads.setdefault(id(loop), CopyThread(loop))
    return found


os.register_at_fork(after_in_child=_threads.clear)  # it is the parent's
