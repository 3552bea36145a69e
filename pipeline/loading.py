"""Compiled arithmetic, once this process has read so much that loading it pays."""

from __future__ import annotations

import functools
import logging
import threading
from types import ModuleType

log = logging.getLogger(__name__)
LOAD_BYTES = 128 * 2**20
"""Loading the compiled code takes 0.7 s, and 3 s where it is not on disk yet; it saves polars
3 ms (many digits) to 6 ms (many missing) per MB of text."""

_LOCK = threading.Lock()
_BYTES_SEEN = [0]


def is_worth_loading(n_bytes: int) -> bool:
    """Return whether bodies of `n_bytes` should be parsed by the compiled code.

    True as soon as the bodies that were asked about would have paid for loading it: whatever is
    still to come, this process then spends at most twice what it had to. The numbers are the same
    either way.
    """
    _BYTES_SEEN[0] += n_bytes  # a sum that threads get slightly wrong does no harm
    return _BYTES_SEEN[0] > LOAD_BYTES


def loaded_kernels() -> ModuleType | None:
    """Return `pipeline.kernels`, or None where numpy does the same: the bits are the same."""
    if not is_worth_loading(0):
        return None
    with _LOCK:
        return _load()


@functools.cache
def _load() -> ModuleType | None:
    try:
        from pipeline import kernels  # numba takes half a second, which small builds need not pay

        kernels.warm_up()
    except MemoryError:
        raise
    except Exception:  # numba may be missing or broken: slower is no reason to fail
        log.warning("numpy computes, for the compiled arithmetic failed", exc_info=True)
        return None
    return kernels
