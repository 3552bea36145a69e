"""Whether threads get the cores they ask for, by what Linux says of their waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

LOOK_EVERY = 64
"""Copies between two looks, which take 30 us."""
MOST_WAITING = 0.05
"""Share of the time that a thread may be kept waiting for a core."""
LEAST_REST, MOST_REST = 128, 8192
"""Copies that are not handed over where it was more; twice as many each time it is so again."""


def waited_ns(thread: int) -> int:
    """Return how long a thread of this process was ready to run and had no core; 0: not known."""
    try:
        file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)  # a quarter of a Path's
    except OSError:
        return 0
    try:
        return int(os.read(file, 64).split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        os.close(file)


class CoreWatch:
    """Says when to do without another thread because other processes have its core.

    On a busy machine a second thread takes the first one's core instead of helping.
    """

    def __init__(self) -> None:
        self._left, self._rest, self._next_rest = 0, 0, LEAST_REST
        self._seen: tuple[Sequence[int], int, int] | None = None

    def is_free(self, threads: Sequence[int]) -> bool:
        """Return whether there is a core for each thread; ask it once for each piece of work.

        Args:
            threads: Native ids.
        """
        if self._rest:
            self._rest -= 1
            return False
        self._left -= 1
        if self._left > 0:
            return True
        self._left = LOOK_EVERY
        now, waited = time.monotonic_ns(), sum(map(waited_ns, threads))
        before, self._seen = self._seen, (threads, now, waited)
        if before is None or before[0] != threads:
            return True
        if waited - before[2] <= MOST_WAITING * (now - before[1]):
            self._next_rest = max(LEAST_REST, self._next_rest // 2)
            return True
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, MOST_REST)
        self._left, self._seen = 0, None
        return False
