"""Lets streams be opened before workers are forked, so that all share the memory of the tables."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Opens(Protocol):
    """What can be opened."""

    def open(self) -> None:
        """Open what its forked children will read."""


_waiting: weakref.WeakSet[Opens] = weakref.WeakSet()


def open_before_forks(stream: Opens) -> None:
    """Let `stream` be opened whenever this process forks, as long as somebody holds it."""
    _waiting.add(stream)


def _open_all() -> None:
    for stream in list(_waiting):
        with contextlib.suppress(Exception):  # whoever reads it is told
            stream.open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_open_all)
