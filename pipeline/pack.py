"""How work and trials are grouped: batches of files, and shards of whole trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def plan_batches(sizes: Sequence[int], target_bytes: int) -> list[range]:
    """Cut a sequence into runs of about `target_bytes`, keeping the order.

    Every item is in exactly one run; a run is full as soon as it reaches the target.

    >>> plan_batches([4, 4, 4, 20, 1], 8)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    cuts, filled = [0], 0
    for position, size in enumerate(sizes):
        filled += size
        if filled >= target_bytes:
            cuts.append(position + 1)
            filled = 0
    if cuts[-1] != len(sizes):
        cuts.append(len(sizes))
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def pack_trials(
    trials: Iterable[T], size_of: Callable[[T], int], target_bytes: int
) -> Iterator[list[T]]:
    """Yield shards of whole trials, in order; only one shard is held at a time.

    A shard is closed before the trial that would lift it over the target, so that shards depend
    on the order of trials alone, not on how files were batched. A trial larger than the target
    has a shard of its own.

    >>> list(pack_trials([5, 3, 9, 2, 2], lambda size: size, 8))
    [[5, 3], [9], [2, 2]]
    """
    shard: list[T] = []
    filled = 0
    for trial in trials:
        size = size_of(trial)
        if shard and filled + size > target_bytes:
            yield shard
            shard, filled = [], 0
        shard.append(trial)
        filled += size
    if shard:
        yield shard
