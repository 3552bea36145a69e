"""How much of a file lies in memory, and how fast the rest comes from the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
_PIECE = 2**28
"""Bytes that are looked at with one call: their answer takes 64 KiB."""
_NONE = np.zeros(0, np.bool_)
_TRIED_BYTES = 64 * 2**20
_TRIED_SECONDS = 0.5


def resident_pages(path: Path, most_bytes: int | None = None) -> npt.NDArray[np.bool_] | None:
    """Return for each page of a file whether it is in memory, by `mincore`; touches none of them.

    Args:
        path: The file.
        most_bytes: Look at its first bytes alone.

    Returns:
        `[ceil(size / page)]` bool, or None where the system does not tell.

    Raises:
        OSError: If the file cannot be opened.
    """
    pieces = list(_pieces(path, most_bytes))
    known = [piece for piece in pieces if piece is not None]
    return np.concatenate([_NONE, *known]) if len(known) == len(pieces) else None


def _pieces(path: Path, most_bytes: int | None = None) -> Iterator[npt.NDArray[np.bool_] | None]:
    """Yield the pages of a file piece by piece, or None where the system does not tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        size = size if most_bytes is None else min(size, most_bytes)
        # Linux tells it of files alone that the caller might write; of others all pages "are".
        may_write = os.access(path, os.W_OK)
        for first in range(0, size, _PIECE):
            yield _resident(descriptor, first, min(_PIECE, size - first)) if may_write else None
    finally:
        os.close(descriptor)


def _resident(descriptor: int, first: int, size: int) -> npt.NDArray[np.bool_] | None:
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except AttributeError:
        return None
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    told = np.zeros(-(-size // PAGE), np.uint8)
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, offset=first) as mapped:
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        failed = mincore(address, size, told.ctypes.data)
    return None if failed else (told & 1).astype(np.bool_)


class Residency(NamedTuple):
    """How much of some files is in memory."""

    n_bytes: int
    resident_bytes: int

    @property
    def share(self) -> float:
        """Share of the bytes that is in memory."""
        return self.resident_bytes / self.n_bytes if self.n_bytes else 1.0


def residency(files: Sequence[tuple[Path, int]]) -> Residency | None:
    """Return how much of the files is in memory, or None where the system does not tell.

    Args:
        files: Each with its size in bytes.

    Raises:
        OSError: If one cannot be opened.
    """
    held = 0
    for path, size in files:
        n_pages = 0
        for pages in _pieces(path):
            if pages is None:
                return None
            n_pages += int(np.count_nonzero(pages))
        held += min(size, n_pages * PAGE)
    return Residency(sum(size for _, size in files), held)


class DiskSpeed(NamedTuple):
    """Bytes per second of what was not in memory, read in order and at random places."""

    in_order: float
    at_random: float


def measure_disk(path: Path, read_bytes: int) -> DiskSpeed | None:
    """Let the system forget up to 64 MiB of a file, and read them again.

    What was in memory before is there again afterwards. Of pages that another process maps, the
    system forgets none.

    Args:
        path: The file, of some pages at least.
        read_bytes: Bytes of one random read.

    Returns:
        None where nothing can be forgotten: on a file system in memory, say, or while another
        process uses it.

    Raises:
        OSError: If it cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    size = min(path.stat().st_size, _TRIED_BYTES)
    before = resident_pages(path, size)
    half = size // 2 // PAGE * PAGE
    if before is None or half < 4 * PAGE:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
        left = resident_pages(path, size)
        if left is None or left.mean() > 0.5:
            return None
        in_order = _read_in_order(descriptor, half)
        # What was read ahead of the first half must not count as fast.
        os.posix_fadvise(descriptor, half, size - half, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, half, size - half, os.POSIX_FADV_RANDOM)
        at_random = _read_at_random(descriptor, half, size, max(PAGE, read_bytes))
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_NORMAL)
        if before.mean() > 0.5:
            _read_in_order(descriptor, size)
    finally:
        os.close(descriptor)
    # What was still in memory took no time of the disk.
    away = 1 - float(left.mean())
    return DiskSpeed(in_order * away, at_random * away)


def _read_in_order(descriptor: int, last: int) -> float:
    begin, block = time.perf_counter(), 2**20
    for first in range(0, last, block):
        os.pread(descriptor, min(block, last - first), first)
    return last / (time.perf_counter() - begin)


def _read_at_random(descriptor: int, first: int, last: int, n_bytes: int) -> float:
    """Read pieces that lie apart, none twice, in a random order."""
    n_bytes = min(n_bytes, last - first)
    pieces = np.random.default_rng(0).permutation((last - first) // n_bytes)
    begin, done = time.perf_counter(), 0
    for piece in pieces.tolist():
        done += len(os.pread(descriptor, n_bytes, first + piece * n_bytes))
        if time.perf_counter() - begin > _TRIED_SECONDS:
            break
    return done / (time.perf_counter() - begin)
