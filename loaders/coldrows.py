"""Windows of a map that is larger than memory: their pages are asked for before they are copied.

The system reads ahead of what is touched, by as much as the disk is set to (128 KiB to 8 MiB), and
waits for it. Of windows from all over a file it reads a thousand times what they need. Told which
pages come next it reads those alone, and the disk works on all of them at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

KEPT = 16_384
"""Windows after which the process lets go of what it has mapped; the page cache keeps it. Each may
be the only one in its 2 MiB, for which the system keeps a table of 4 KiB: 64 MiB of them."""


def memory_bytes() -> int:
    """Return the memory of this machine, or what its control group may use of it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no group, or "max"
        return total


class ColdRows:
    """Asks the system for parts of a map; from then on it reads nothing else ahead there.

    Args:
        mapped: The whole map, C order, from the beginning of a page.
    """

    def __init__(self, mapped: npt.NDArray[Any]) -> None:
        self._address = mapped.__array_interface__["data"][0]
        self._size_bytes, self._item_bytes = mapped.nbytes, mapped.itemsize
        self._advise = ctypes.CDLL(None).madvise
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._advise(self._address, self._size_bytes, mmap.MADV_RANDOM)
        self._left = KEPT

    def ask(self, first: Int64, width: int) -> None:
        """Ask for `width` elements from each of `first` on. What it says is advice: none fails."""
        self._left -= len(first)
        if self._left < 0:
            self._left = KEPT
            self._advise(self._address, self._size_bytes, mmap.MADV_DONTNEED)
        pages = ~(mmap.PAGESIZE - 1)
        begin = self._address + first * self._item_bytes
        size_bytes = begin + width * self._item_bytes - (begin & pages)
        advise, wanted = self._advise, mmap.MADV_WILLNEED
        for address, size in zip((begin & pages).tolist(), size_bytes.tolist(), strict=True):
            advise(address, size, wanted)
