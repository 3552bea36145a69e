"""Memory that batches own: an array is handed out again only when nobody can still see it."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LINE_BYTES = 64
KEPT = 8
"""Arrays kept per shape. A consumer that holds more gets fresh memory (6 % at 2-8 MB a batch)."""


Allocate = Callable[[int], npt.NDArray[np.uint8]]


def _reference_counts(arrays: Sequence[npt.NDArray[Any]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


def plain_memory(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Return memory of the process."""
    return np.empty(size_bytes, np.uint8)


def shared_memory(shape: tuple[int, ...]) -> Tensor:
    """Return new float32 memory that a DataLoader worker's parent can map.

    It saves a copy on the way, and this process has nothing left of the batch once it is sent.
    """
    size_bytes = 4 * math.prod(shape)
    new_shared = torch.UntypedStorage._new_shared  # what torch's collate calls
    storage: torch.UntypedStorage = new_shared(size_bytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.float32).set_(storage).view(shape)


def _aligned(shape: tuple[int, ...], dtype: str, allocate: Allocate) -> npt.NDArray[Any]:
    """Return memory on a cache line border: rows copied elsewhere take 6 % longer."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = allocate(size_bytes + LINE_BYTES)
    first = -raw.ctypes.data % LINE_BYTES
    return raw[first : first + size_bytes].view(dtype).reshape(shape)


class BufferPool:
    """Arrays for batches, reused when their last user is gone.

    A tensor made by `torch.from_numpy` keeps its array alive through the storage, and so do the
    views, slices, detached tensors and `.numpy()` arrays that share this storage. The reference
    count of the array therefore says whether any of them is left. Moving a tensor to shared memory
    (DataLoader workers) copies it and lets the array go.

    Args:
        allocate: Bytes -> uint8 memory of so many.
    """

    def __init__(self, allocate: Allocate = plain_memory) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._arrays: dict[tuple[tuple[int, ...], str], list[npt.NDArray[Any]]] = {}
        # What the same code counts for an array that only its list holds (it differs by Python).
        self._idle = _reference_counts([np.empty(0)])[0]

    def take(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return an array that nobody else sees; its content is arbitrary."""
        with self._lock:  # two threads must not find the same array idle
            kept = self._arrays.setdefault((shape, dtype), [])
            for place, count in enumerate(_reference_counts(kept)):
                if count == self._idle:
                    return kept[place]
            array = _aligned(shape, dtype, self._allocate)
            if len(kept) < KEPT:
                kept.append(array)
            return array

    def take_part(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return an array that nobody else sees, of a shape that differs from call to call.

        It is a part of one up to a quarter larger, so that few sizes serve all shapes.
        """
        n_items = math.prod(shape)
        step = max(1, 1 << max(0, n_items.bit_length() - 3))
        whole = self.take((-(-n_items // step) * step,), dtype)
        # Through a tensor: NumPy's views of a view know the memory, but not the array counted here.
        part: npt.NDArray[Any] = torch.from_numpy(whole)[:n_items].view(shape).numpy()
        return part
