"""The only room that changes files of a store: create, write, force to the disk, rename, remove.

Whatever is published gets its name by one rename, after its bytes have reached the disk; whatever
is removed loses that name by one rename first. Each change is one call of `os`, none of which is
made anywhere else, so it is here that one sees what a crash can come between.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import StoreWriteError

BUFFER_BYTES = 2**20
"""What `replacing` gathers before it writes: Arrow hands over many small parts."""

_FOLDERS = ("shards", "parts", "versions", "tags", "staging")
_FULL = "Free some space there and run the same again."
_DENIED = "Make it writable, or name another place."
_FAULTS = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EFBIG: ("the file system allows no file of that size", "Set shards.target_bytes lower."),
    errno.EROFS: ("it cannot be written to", _DENIED),
    errno.EACCES: ("it cannot be written to", _DENIED),
    errno.EPERM: ("it cannot be written to", _DENIED),
    errno.EIO: ("the disk failed", "Look at the system's log, mend the disk and run it again."),
}
"""What a user can do something about; every other error of the system is passed on as it is."""


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the disk says of a change of `path` into an error with a next step."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        raise _write_error(path, error.errno) from error


def _write_error(path: Path, code: int) -> StoreWriteError:
    what, advice = _FAULTS[code]
    names = [name.startswith(".tmp-") for name in path.parts]
    if True in names:  # a name that nobody has seen or will see
        path = Path(*path.parts[: names.index(True)])
    error = StoreWriteError(
        f"{path}: {what} ({os.strerror(code)}). Committed versions are whole. {advice}"
    )
    error.errno = code
    return error


def require_writable(store: Path) -> None:
    """Say at once that a store cannot be written to, before an hour of work ends with it.

    Raises:
        StoreWriteError: If it, or the folder it would be made in, is read-only.
    """
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    for path in (folder, *(folder / name for name in _FOLDERS)):
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            read_only = os.statvfs(path).f_flag & os.ST_RDONLY
            raise _write_error(path, errno.EROFS if read_only else errno.EACCES)


def open_lock(path: Path, *, may_make: bool) -> int:
    """Return a descriptor of a file to put locks on, which may be made empty if it is absent."""
    if may_make:
        make_folder(path.parent)
    with _explained(path):
        # For writing if possible: network file systems give an exclusive lock to writers alone.
        try:
            new = os.O_CREAT if may_make else 0
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | new, 0o666)
        except PermissionError:
            if not path.exists():
                raise
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # somebody else's


def temporary_name(folder: Path) -> Path:
    """Return a fresh name in `folder` that every reader ignores."""
    return folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, whose names survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with _explained(folder):
        try:
            os.mkdir(folder)
        except FileExistsError:  # somebody else made it, too
            if not folder.is_dir():
                raise
    sync_folder(folder.parent)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in `folder` that every reader ignores, and remove it if it is left there."""
    make_folder(folder)
    temporary = temporary_name(folder)
    with _explained(temporary):
        os.mkdir(temporary)
    try:
        yield temporary
    finally:
        if temporary.exists():  # renamed, if all went well
            _discard(temporary)


def remove_leftovers(store: Path, older_than_seconds: float) -> None:
    """Remove temporary names that nobody has touched for so long: their writers were killed."""
    folders = (*(store / name for name in _FOLDERS), *(store / "staging").glob("[!.]*/"))
    for folder in (store, *folders):
        for path in folder.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
                if time.time() - path.lstat().st_mtime > older_than_seconds:
                    _discard(path)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    with _explained(folder):
        _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _NewFile(io.RawIOBase):
    """A file that was not there before; the disk's errors name it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _explained(path):
            self._descriptor = os.open(path, flags, 0o666)
        self._path = path

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, part: Any) -> int:
        """Write as much of a part as the system takes at once; return how many bytes."""
        with _explained(self._path):
            return os.write(self._descriptor, part)

    def sync(self) -> None:
        """Force what was written to the disk."""
        with _explained(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the descriptor back."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def write_synced(path: Path, *parts: bytes | memoryview) -> None:
    """Write a new file and force it to the disk."""
    with _NewFile(path) as file:
        for part in parts:
            left = memoryview(part).cast("B")
            while len(left):
                left = left[file.write(left) :]
        file.sync()


def write_files(folder: Path, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
    """Write new files, each in parts, below a new folder; they and their names reach the disk.

    Args:
        folder: It must be there.
        files: Content by path below it, in the order of writing; folders are made.
    """
    known = {folder}
    for name, parts in files.items():
        path = folder / name
        inside = path.parents[: len(Path(name).parents)]
        for parent in reversed([parent for parent in inside if parent not in known]):
            with _explained(parent):
                os.mkdir(parent)
            known.add(parent)
        write_synced(path, *parts)
    for parent in sorted(known, reverse=True):
        sync_folder(parent)


def sync_store(store: Path) -> None:
    """Make every name that a version may rely on survive a power cut.

    Who wrote a shard has done so already, unless it was killed between the rename and that.
    """
    with _explained(store):
        for folder in (store / "shards", store / "parts", store / "versions", store, store.parent):
            if folder.is_dir() and os.access(folder, os.R_OK):
                _sync(folder)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write to, which takes the place of `path` at the end, atomically."""
    make_folder(path.parent)
    temporary = temporary_name(path.parent)
    try:
        with _NewFile(temporary) as raw:
            # Closed with `raw`, and not by itself: after an error nothing more shall be written.
            file = io.BufferedWriter(raw, BUFFER_BYTES)
            yield file
            file.flush()
            raw.sync()
        with _explained(path):
            os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` atomically."""
    with replacing(path) as file:
        file.write(content)


def claim_folder(temporary: Path, final: Path) -> bool:
    """Rename a finished folder to its final name; False if somebody else had it first."""
    try:
        with _explained(final):
            os.rename(temporary, final)
    except OSError:
        if not final.is_dir():
            raise
        _discard(temporary)
        return False
    sync_folder(final.parent)
    return True


def remove_all(paths: Iterable[Path]) -> None:
    """Remove published folders and files; whoever is killed meanwhile leaves none of them in part.

    A folder loses its name first: half of one must not be taken for the whole.
    """
    nameless: list[Path] = []
    parents: set[Path] = set()
    for path in paths:
        with _explained(path), contextlib.suppress(FileNotFoundError):  # somebody else did it
            if not path.is_dir():
                os.unlink(path)
            elif path.name.startswith(".tmp-"):
                nameless.append(path)
            else:
                temporary = temporary_name(path.parent)
                os.rename(path, temporary)
                nameless.append(temporary)
            parents.add(path.parent)
    for folder in parents:  # else a power cut could bring names back, but not what was in them
        sync_folder(folder)
    for path in nameless:
        _discard(path)


def _discard(path: Path) -> None:
    """Remove a temporary file or folder, or as much of it as can be: nobody reads what is left."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            os.unlink(path)


def _remove_tree(folder: Path) -> None:
    with os.scandir(folder) as entries:
        inside = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_folder in inside:
        if is_folder:
            _remove_tree(Path(path))
        else:
            os.unlink(path)
    os.rmdir(folder)
