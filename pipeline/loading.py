"""Compiled arithmetic, once this process has read so much that loading it pays."""

from __future__ import annotations

import functools
import logging
import threading
from types import ModuleType

from pipeline.sources import compiled

log = logging.getLogger(__name__)
_LOCK = threading.Lock()


def loaded_kernels() -> ModuleType | None:
    """Return `pipeline.kernels`, or None where numpy does the same: the bits are the same."""
    if not compiled.is_worth_loading(0):
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
