"""Compressed shards decoded once into raw local files, which are mapped like any other.

The cache is bounded: the shards that nobody has asked for longest make room for new ones. To
remove a file that is mapped takes nothing from those who map it. Entries are named by the content
of their arrays and checked against its digests while they are decoded, so stores may share them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.disk import claim_folder, open_lock, remove_all, replacing, temporary_folder
from shards.errors import CorruptStoreError, InvalidSpecError
from shards.layout import shard_digest
from shards.parquetshard import decode_shard
from shards.schema import ShardEntry

PLACE, BOUND = "TRIALSHARDS_CACHE", "TRIALSHARDS_CACHE_BYTES"
MOST_BYTES = 20 * 2**30
FREE_SHARE = 4
"""By default at most this part of what the disk has free, so that the cache fills no disk."""
_ABANDONED_SECONDS = 3600


def cache_place() -> Path:
    """Return the folder of decoded shards."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(PLACE) or Path(base) / "trialshards")


def cache_bound(place: Path, used_bytes: int) -> int:
    """Return how many bytes the cache may hold.

    Args:
        place: An existing folder.
        used_bytes: What it holds: it counts as free, so that the bound does not shrink as it fills.

    Raises:
        InvalidSpecError: If the environment says anything but a number of bytes.
    """
    said = os.environ.get(BOUND)
    if said is None:
        return min(MOST_BYTES, (shutil.disk_usage(place).free + used_bytes) // FREE_SHARE)
    if not said.isdecimal():
        raise InvalidSpecError(f"{BOUND} is {said!r}; wanted a number of bytes such as {2**34}.")
    return int(said)


class LocalCache:
    """Decoded shards in one folder, shared by processes.

    Args:
        place: The folder, by default that of the environment; made when it is needed.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or cache_place()

    def files(self, entries: Sequence[ShardEntry], array: str) -> list[tuple[Path, int]] | None:
        """Return file and size of one array of each shard, or None if not all are decoded."""
        found = []
        for entry in entries:
            folder = self._folder(entry)
            if not _is_whole(folder, entry):
                return None
            with contextlib.suppress(OSError):  # another process takes it away, or may write alone
                os.utime(folder)
            found.append((folder / f"{array}.raw", entry.arrays[array].data_bytes))
        return found

    @contextlib.contextmanager
    def decoded(self, store: Path, entries: Sequence[ShardEntry]) -> Iterator[None]:
        """Decode what is missing of some shards; until the end, nobody takes any of them away.

        Raises:
            CorruptStoreError: If a shard is not what its manifest says.
            InvalidSpecError: If they are larger than the cache may be.
        """
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            wanted = {self._folder(entry): entry for entry in entries}
            missing = [folder for folder, e in wanted.items() if not _is_whole(folder, e)]
            self._make_room(store, wanted, missing)
            for folder in missing:
                self._decode(store, wanted[folder], folder)
            yield

    def _folder(self, entry: ShardEntry) -> Path:
        return self.place / shard_digest(entry.arrays)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Work alone, so that processes that start together decode a shard once between them.

        Where the file system knows no locks, several may do it: the renames agree.
        """
        descriptor = open_lock(self.place / "lock", may_make=True)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(
        self, store: Path, wanted: dict[Path, ShardEntry], missing: Sequence[Path]
    ) -> None:
        """Remove what nobody has asked for longest, until the missing shards fit.

        Raises:
            InvalidSpecError: If all wanted shards together are larger than the cache may be.
        """
        kept = sorted((used, folder, size) for folder, (used, size) in self._content().items())
        used_bytes = sum(size for _, _, size in kept)
        bound = cache_bound(self.place, used_bytes)
        asked = sum(_raw_bytes(entry) for entry in wanted.values())
        if asked > bound:
            raise InvalidSpecError(
                f"{len(wanted)} shards of {store} take {asked} bytes decoded; the cache "
                f"{self.place} may hold {bound}. Set {BOUND} to more, or {PLACE} to a folder on "
                "a larger disk, or build the store with shards.format: zarr, which needs no cache."
            )
        left = used_bytes + sum(_raw_bytes(wanted[folder]) for folder in missing)
        for _, folder, size in kept:
            if left > bound and folder not in wanted:
                remove_all([folder])
                left -= size

    def _content(self) -> dict[Path, tuple[float, int]]:
        """Return each folder's time of last use and size."""
        found = {}
        for folder in self.place.iterdir():
            with contextlib.suppress(OSError):  # another process removes it
                if not folder.is_dir():
                    continue
                used = folder.stat().st_mtime
                if folder.name.startswith(".tmp-") and time.time() - used > _ABANDONED_SECONDS:
                    remove_all([folder])  # its writer was killed
                    continue
                found[folder] = (used, sum(f.stat().st_size for f in folder.iterdir()))
        return found

    def _decode(self, store: Path, entry: ShardEntry, final: Path) -> None:
        with temporary_folder(self.place) as temporary:
            with contextlib.ExitStack() as stack:
                # Forced to the disk, else a power cut might leave zeros of the right size.
                files = {
                    name: stack.enter_context(replacing(temporary / f"{name}.raw"))
                    for name in entry.arrays
                }
                for rows in decode_shard(store, entry):
                    for name, file in files.items():
                        file.write(rows[name].data.cast("B"))
            remove_all([final])  # one that is not whole
            claim_folder(temporary, final)
        if not _is_whole(final, entry):
            raise CorruptStoreError(
                f"{final} does not hold what was decoded into it. Remove {self.place}, and do the "
                "same again."
            )


def _raw_bytes(entry: ShardEntry) -> int:
    return sum(spec.data_bytes for spec in entry.arrays.values())


def _is_whole(folder: Path, entry: ShardEntry) -> bool:
    """Return whether every array is there in its full size."""
    try:
        return all(
            (folder / f"{name}.raw").stat().st_size == spec.data_bytes
            for name, spec in entry.arrays.items()
        )
    except OSError:
        return False
