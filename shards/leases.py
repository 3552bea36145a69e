"""Who uses what of a store: shared locks that end with their process, so that none goes stale.

An open version holds a shared lock on its own `dataset.json`, which works on a read-only file
system, too; forked processes share it. A builder holds one on `<store>/.writers`, because a shard
that it has written or wants to use again is not named by any version yet. Who removes things needs
the same locks alone (`shards/gc.py`). Where the file system has no locks, reading and building go
on without, and nothing is ever removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from shards.disk import open_lock, require_writable, sync_store
from shards.errors import CorruptStoreError, StoreBusyError
from shards.safety import JSON_BYTES, walk_to

WRITERS = ".writers"
"""Name of the file in the store root; never removed, or two could hold two of them."""


class Lease:
    """Keeps a version from being removed, for as long as this object or a fork of it lives.

    Attributes:
        content: `dataset.json`, read under the lock.

    Args:
        store: Store root.
        manifest: Path of `dataset.json`.

    Raises:
        FileNotFoundError: If it is not there, or was removed while the lease was being taken.
        CorruptStoreError: If it lies behind a link, or is larger than any manifest.
    """

    def __init__(self, store: Path, manifest: Path) -> None:
        if (size := walk_to(store, manifest).st_size) > JSON_BYTES:
            raise CorruptStoreError(
                f"{manifest} has {size} bytes; a manifest has at most {JSON_BYTES}. Restore it, "
                "or open another version."
            )
        # Not through a link, nor into a pipe that nobody writes to.
        descriptor = os.open(manifest, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        weakref.finalize(self, os.close, descriptor)
        with contextlib.suppress(OSError):  # no locks here: then nobody removes anything, either
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Between opening and locking, it may have been removed: then the lock protects nothing.
        if not _is_at(descriptor, manifest):
            raise FileNotFoundError(f"{manifest} was removed while it was being opened")
        with open(descriptor, "rb", closefd=False) as file:
            self.content = file.read(size + 1)  # no more: what it asks for is allocated at once


@contextlib.contextmanager
def building(store: Path) -> Iterator[None]:
    """Keep unused shards from being removed while something is built; waits for a running `gc`.

    Raises:
        StoreWriteError: If the store is read-only; said before any work is done.
    """
    require_writable(store)
    with _open(store / WRITERS) as descriptor:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        sync_store(store)  # what a killed one published, this one may find and rely on
        yield
        # Or has found since, and added nothing to: a user is told now that it is there.
        sync_store(store)


@contextlib.contextmanager
def removing(store: Path) -> Iterator[None]:
    """Keep builders out while something is removed.

    Raises:
        StoreBusyError: If one is at work, or the file system has no locks to tell by.
        StoreWriteError: If the store is read-only.
    """
    require_writable(store)
    with _open(store / WRITERS) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusyError(
                f"{store} is being built, compacted or cleaned up by another process, which may "
                "need what no version names yet. Nothing was removed; try again when it is done."
            ) from error
        except OSError as error:
            raise StoreBusyError(
                f"{store} lies on a file system without locks (flock: {error.strerror}), so nobody "
                "can tell which versions are in use. Nothing was removed. Mount it with locks, or "
                "copy the versions you need to a store elsewhere."
            ) from error
        yield


@contextlib.contextmanager
def sole_use(manifest: Path) -> Iterator[bool]:
    """Give whether nobody has a version open; nobody can open it until the end.

    Args:
        manifest: Path of its `dataset.json`.
    """
    with _open(manifest) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, or no locks here
            yield False
        else:
            yield True


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = open_lock(path, may_make=path.name == WRITERS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_link(folder: Path) -> None:
    """Refuse a folder of a store that leads out of it, before anything in it is changed.

    Raises:
        CorruptStoreError: If it is a link.
    """
    if folder.is_symlink():
        raise CorruptStoreError(
            f"{folder} is a link; wanted a folder. Copy what it points at into its place."
        )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
