"""The only room that changes files of a store: create, force to the disk, rename, remove.

Whatever is published gets its name by one rename, after its bytes have reached the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def temporary_name(folder: Path) -> Path:
    """Return a fresh name in `folder` that every reader ignores."""
    return folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in `folder` that every reader ignores; whatever is left of it goes at the end.

    Who is killed leaves it behind; `remove_leftovers` takes that away.
    """
    temporary = temporary_name(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        if temporary.exists():  # renamed, if all went well
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(store: Path, older_than_seconds: float) -> None:
    """Remove temporary folders that nobody has touched for so long: their writers were killed."""
    for folder in (store / "shards", store / "versions"):
        for path in folder.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, *parts: bytes | memoryview) -> None:
    """Write a new file and force it to the disk."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write to, which takes the place of `path` at the end, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path.parent)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` atomically."""
    with replacing(path) as file:
        file.write(content)


def claim_folder(temporary: Path, final: Path) -> bool:
    """Rename a finished folder to its final name; False if somebody else had it first."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary)
        return False
    sync_folder(final.parent)
    return True
