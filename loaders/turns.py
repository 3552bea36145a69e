"""Whose turn it is when several streams share the steps of an epoch: integers, no memory.

Stream i takes `quotas[i]` of the N steps, evenly spread: its step k is due at (2k + 1) / (2 q_i) of
the epoch, and steps go in the order in which they are due (ties: the lower stream first). Of equal
quotas that is round robin.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from shards.errors import InvalidSpecError


def steps_before(position: int, quotas: Sequence[int]) -> list[int]:
    """Return how many steps each stream has among the first `position` of an epoch.

    >>> [steps_before(p, [1, 2]) for p in range(4)]
    [[0, 0], [0, 1], [1, 1], [1, 2]]
    """
    total = sum(quotas)
    # All steps due by position / N: not quite as many as asked for, but none that is out of order.
    taken = [(2 * position * quota + total) // (2 * total) for quota in quotas]
    while sum(taken) < position:
        taken[_next(taken, quotas)] += 1
    while sum(taken) > position:
        taken[_last(taken, quotas)] -= 1
    return taken


def turn(position: int, quotas: Sequence[int]) -> tuple[int, int]:
    """Return which stream takes a step, and how many it took before in the epoch."""
    taken = steps_before(position, quotas)
    stream = _next(taken, quotas)
    return stream, taken[stream]


def share_steps(shares: Sequence[float], steps: Sequence[int], *, stop: str) -> list[int]:
    """Return how many steps of an epoch each stream takes, in fixed proportions.

    Args:
        shares: Positive, one per stream, in any unit.
        steps: Steps of an epoch of each stream.
        stop: `first`: the epoch is as long as the stream lasts that ends first; `cycle`: until each
            has ended once.

    Raises:
        InvalidSpecError: If the shares are not one positive number per stream.
    """
    valid = [isinstance(x, Real) and 0 < x < float("inf") for x in shares]
    if len(shares) != len(steps) or not all(valid):
        raise InvalidSpecError(
            f"proportions are {list(shares)}; wanted a positive number for each of "
            f"{len(steps)} streams."
        )
    # A float32 of NumPy would round what follows to as few digits.
    shares = [share if isinstance(share, int) else float(share) for share in shares]
    lasts = [n / share for n, share in zip(steps, shares, strict=True)]
    unit = min(lasts) if stop == "first" else max(lasts)
    return [max(1, round(share * unit)) for share in shares]


def _next(taken: Sequence[int], quotas: Sequence[int]) -> int:
    """Return the stream whose next step is due first."""
    best = -1
    for i, (k, q) in enumerate(zip(taken, quotas, strict=True)):
        if k < q and (best < 0 or (2 * k + 1) * quotas[best] < (2 * taken[best] + 1) * q):
            best = i
    return best


def _last(taken: Sequence[int], quotas: Sequence[int]) -> int:
    """Return the stream whose last step was due last."""
    best = -1
    for i, (k, q) in enumerate(zip(taken, quotas, strict=True)):
        if k and (best < 0 or (2 * k - 1) * quotas[best] >= (2 * taken[best] - 1) * q):
            best = i
    return best
