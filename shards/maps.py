"""Read-only maps of many files as one address range.

Gathering windows from many shards is as fast as from one only if a single base pointer reaches
all of them. So one range of addresses is reserved, and each file is mapped into it at a multiple
of the page size (POSIX `mmap` with MAP_FIXED). No descriptor stays open per map, and nothing is
read until it is touched.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from shards.errors import CorruptStoreError
from shards.localcache import LocalCache
from shards.parquetshard import shard_file
from shards.safety import check_file
from shards.schema import ShardEntry

_MAP_FIXED = 0x10  # the one constant that the mmap module lacks; the same on Linux and macOS
_HUGE = 2**21
"""Large pages of the page cache map as such only at multiples of this: a fifth off a gather."""
_FAILED = ctypes.c_void_p(-1).value


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _checked_size(path: Path, size_bytes: int) -> None:
    """A file shorter than its map kills the process (SIGBUS) when touched, so check first."""
    try:
        got = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptStoreError(
            f"{path} is missing; wanted {size_bytes} bytes. Run: trialshards verify STORE"
        ) from error
    if got != size_bytes:
        raise CorruptStoreError(
            f"{path} has {got} bytes; the manifest says {size_bytes}. Run: trialshards verify STORE"
        )


def place_files(sizes: Sequence[int]) -> tuple[npt.NDArray[np.int64], int]:
    """Return where each file begins in the range, and the end of the last, page by page."""
    offsets, end = [], 0
    for size in sizes:
        begin = _round_up(end, _HUGE if size >= _HUGE else mmap.ALLOCATIONGRANULARITY)
        offsets.append(begin)
        end = _round_up(begin + size, mmap.ALLOCATIONGRANULARITY)
    return np.array(offsets, np.int64), end


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


class _Reserved:
    """An address range as NumPy sees it: every array over it keeps it, the last one frees it."""

    def __init__(self, libc: Any, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        # Not at exit: a thread that still reads would crash, and the system frees it anyway.
        weakref.finalize(self, libc.munmap, *reserved).atexit = False
        address, size_bytes = used
        self.__array_interface__ = {
            "data": (address, True), "shape": (size_bytes,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


class FileRange:
    """Files of known size, readable as one `uint8` array.

    Attributes:
        bytes: `[total]` uint8, read-only; file i begins at `offsets[i]`, a multiple of the page
            size. At least `tail_bytes` readable bytes follow the last file.
        offsets: `[files]` int64.

    Raises:
        CorruptStoreError: If a file is missing or has another size than promised.
        OSError: If the system refuses a map.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], *, tail_bytes: int = 0) -> None:
        for path, size in files:
            _checked_size(path, size)
        self.offsets, end = place_files([size for _, size in files])
        total = _round_up(end + tail_bytes + 1, mmap.ALLOCATIONGRANULARITY)
        self.bytes = self._map(files, total)

    def _map(self, files: Sequence[tuple[Path, int]], total: int) -> npt.NDArray[np.uint8]:
        libc = _libc()
        # The anonymous base is readable zeros: the gaps and the tail may be over-read harmlessly.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = libc.mmap(None, total + _HUGE, mmap.PROT_READ, flags, -1, 0)
        if start == _FAILED:
            raise OSError(ctypes.get_errno(), f"cannot reserve {total} bytes of addresses")
        base = _round_up(start, _HUGE)
        reserved = _Reserved(libc, (start, total + _HUGE), (base, total))
        for (path, size), offset in zip(files, self.offsets.tolist(), strict=True):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                at = libc.mmap(
                    base + offset, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0
                )
            finally:
                os.close(descriptor)
            if at != base + offset:
                raise OSError(ctypes.get_errno(), f"cannot map {path}")
        return np.asarray(reserved)


def chunk_file(store: Path, digest: str, array: str) -> Path:
    """Return the file of a Zarr shard whose first bytes are the rows of one array."""
    return store / "shards" / digest / array / "c" / "0" / "0"


def shard_files(store: Path, entry: ShardEntry) -> list[tuple[Path, int]]:
    """Return the data files of a shard and their sizes in bytes."""
    if entry.file is not None:
        return [(shard_file(store, entry.digest), int(entry.file["size_bytes"]))]
    return [
        (chunk_file(store, entry.digest, name), spec.size_bytes)
        for name, spec in entry.arrays.items()
    ]


def missing_file(needed: Iterable[tuple[Path, int]]) -> str:
    """Return the first of some files that is not there, or has another size; "" without one."""
    for path, size_bytes in needed:
        try:
            if path.stat().st_size == size_bytes:
                continue
        except OSError:
            pass
        return str(path)
    return ""


def map_shards(
    store: Path, entries: Sequence[ShardEntry], array: str, *, tail_bytes: int = 0
) -> FileRange:
    """Map one array of many shards into one address range, each from its first row on.

    Compressed shards are decoded first, into the local cache, unless that holds them.

    Args:
        store: Store root.
        entries: The shards, all of one container.
        array: Array name.
        tail_bytes: Readable bytes behind the last.

    Raises:
        CorruptStoreError: If a file is missing or is not what the manifest promises.
        InvalidSpecError: If decoded they are larger than the cache may be.
    """
    if entries and entries[0].file is not None:
        return _map_decoded(store, entries, array, tail_bytes)
    files = [(chunk_file(store, e.digest, array), e.arrays[array].size_bytes) for e in entries]
    for path, _ in files:
        check_file(store, path)
    return FileRange(files, tail_bytes=tail_bytes)


def check_rows(store: Path, entries: Sequence[ShardEntry], array: str, mapped: FileRange) -> None:
    """Compare the mapped rows of shards with their digests, once per process.

    Raises:
        CorruptStoreError: Naming the shard.
    """
    for entry, offset in zip(entries, mapped.offsets.tolist(), strict=True):
        key, spec = (str(store.absolute()), entry.digest, array), entry.arrays[array]
        if key in _compared:
            continue
        rows = mapped.bytes[offset : offset + spec.data_bytes]
        if (got := xxhash.xxh3_128_hexdigest(rows.data)) != spec.xxh3_128:
            raise CorruptStoreError(
                f"{store / 'shards' / entry.digest}: its {array} have digest {got}; the manifest "
                f"says {spec.xxh3_128}. Run: trialshards verify {store}"
            )
        _compared.add(key)


_compared: set[tuple[str, str, str]] = set()


def _map_decoded(
    store: Path, entries: Sequence[ShardEntry], array: str, tail_bytes: int
) -> FileRange:
    cache = LocalCache()
    found = cache.files(entries, array)
    if found is not None:
        try:
            return FileRange(found, tail_bytes=tail_bytes)
        except CorruptStoreError:
            pass  # another process took one away just now
    with cache.decoded(store, entries):
        return FileRange(cache.files(entries, array) or [], tail_bytes=tail_bytes)
