"""The place where the next epoch starts, shared between a process and its DataLoader workers."""

from __future__ import annotations

import os
import weakref

import torch
from torch.utils.data import get_worker_info

from shards.errors import InvalidSpecError

MOST_WORKERS = 256
"""More hurt; and each takes 8 bytes of a stream's pickle."""


class SharedCursor:
    """(epoch, step) in anonymous shared memory, moved on when an epoch has been read to its end.

    With workers, the last one to finish moves it. A worker that starts late therefore still finds
    the start of its own epoch, however fast the others are. Workers mark their end with the
    token of their DataLoader iteration, so marks of an abandoned one do not count.
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self._pid = os.getpid()
        _cursors.add(self)
        self._memory = torch.zeros(2 + MOST_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._turns = (0, 0)
        self.move(epoch, step)

    def __getstate__(self) -> dict[str, torch.Tensor]:
        """Return the memory; spawned workers get the same memory, a plain pickle copies it."""
        self.part()
        return {"memory": self._memory}

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        """Take the memory over."""
        self._memory = state["memory"].share_memory_()  # type: ignore[no-untyped-call]
        self._turns = (0, 0)
        self._pid = 0  # not known yet whether a worker's
        _cursors.add(self)

    def part(self) -> None:
        """Go on alone in a process that is no worker, as a rank that was given the stream."""
        if get_worker_info() is None and self._pid != os.getpid():
            self._memory = self._memory.clone().share_memory_()
            self._pid = os.getpid()

    @property
    def position(self) -> tuple[int, int]:
        """The next start, (epoch, step)."""
        self.part()
        epoch, step = self._memory[:2].tolist()
        return epoch, step

    def move(self, epoch: int, step: int) -> None:
        """Set the next start."""
        self.part()
        self._memory[0], self._memory[1] = epoch, step

    def begin(self) -> tuple[tuple[int, int], int]:
        """Return the start of this iteration and its token."""
        info = get_worker_info()
        if info is None:
            return self.position, 0
        if info.num_workers > MOST_WORKERS:
            raise InvalidSpecError(
                f"num_workers is {info.num_workers}; wanted at most {MOST_WORKERS}."
            )
        pid, turn = self._turns
        self._turns = (os.getpid(), turn + 1 if pid == os.getpid() else 1)
        # The seed without the worker's number is one random value per DataLoader iterator;
        # persistent workers keep it, but count their turns alike.
        token = (info.seed - info.id + (self._turns[1] << 40)) % (1 << 62) + 1
        self._memory[2 + info.id] = 0
        return self.position, token

    def finish(self, start: tuple[int, int], token: int) -> None:
        """Say that this process has read the epoch from `start` to its end."""
        info = get_worker_info()
        if info is not None:
            marks = self._memory[2 : 2 + info.num_workers]
            marks[info.id] = token
            if not bool((marks == token).all()):
                return
            marks.zero_()  # a user may seed torch alike for each epoch: the same token again
        if self.position == start:  # else somebody called set_epoch meanwhile
            self.move(start[0] + 1, 0)


_cursors: weakref.WeakSet[SharedCursor] = weakref.WeakSet()


def _part_all() -> None:
    """Before a rank forks workers: they shall share its memory, not that of its parent."""
    for cursor in list(_cursors):
        cursor.part()


os.register_at_fork(before=_part_all)
