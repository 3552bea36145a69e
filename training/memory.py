"""How the C library keeps memory between optimizer steps."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let this process keep the memory that a step frees, for the next step to take.

    On the CPU a step frees and takes tensors of megabytes. glibc gives such memory back to the
    system and gets it back zeroed, page by page: a quarter of a small model's training time. It is
    a setting of the whole process, so the command makes it and the library does not.

    Returns:
        Whether the C library took it.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no such thing
        return False
    wanted = (
        (_M_MMAP_THRESHOLD, 2**30),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 64 * 2**20),
    )
    return all(mallopt(name, value) == 1 for name, value in wanted)
