"""Where batches run: threads of this machine.

Threads and not processes: parsing and arithmetic release the interpreter lock, threads use half
the memory of spawned processes, and forking after polars has run hangs.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def default_workers() -> int:
    """Return the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_batches(
    work: Callable[[A], R], batches: Iterable[A], *, n_workers: int | None = None
) -> Iterator[R]:
    """Yield `work(batch)` in the order of `batches`.

    At most `n_workers + 1` results are held or under way, so memory is bounded by that many
    batches however many there are. The first exception of `work` is raised here, and nothing
    further is started.
    """
    n_workers = n_workers or default_workers()
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(n_workers, thread_name_prefix="trialshards") as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(work, batch))
                if len(pending) > n_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
