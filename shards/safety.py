"""The door for files of a store: nothing outside it is read, and nothing of a size not looked at.

A store may come from anywhere. Its names, numbers and sizes are therefore checked before a file is
opened, mapped or parsed, so that a hostile one can neither point elsewhere nor exhaust the memory.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from shards.errors import CorruptStoreError

JSON_BYTES = 64 * 2**20
"""Largest `dataset.json` or `fit.json` that is read; the entries of 100,000 shards fit in."""
_JSON_ITEMS = 4 * 2**20
"""Most commas and brackets of a document: a parsed item takes up to 30 times its bytes."""
LARGEST_FILE = 2**50


def check_file(root: Path, path: Path) -> os.stat_result:
    """Return the status of a regular file that lies in a store, not only by its name.

    Args:
        root: Store root, which may itself be reached through a link.
        path: The file, below the root.

    Raises:
        CorruptStoreError: If it or a folder above it is missing, a link, or of another kind.
    """
    try:
        return walk_to(root, path)
    except OSError as error:
        if isinstance(error, CorruptStoreError):
            raise
        raise CorruptStoreError(
            f"{path} is missing or cannot be reached ({error.strerror}). "
            f"Run: trialshards verify {root}"
        ) from error


def walk_to(root: Path, path: Path) -> os.stat_result:
    """Do what `check_file` does, but leave it to the caller what a missing file means.

    Raises:
        CorruptStoreError: If it or a folder above it is a link, or it is no regular file.
        OSError: If it is missing, or out of reach.
    """
    names = path.relative_to(root).parts
    if not names or ".." in names:
        raise CorruptStoreError(f"{path} does not lie in {root}. Restore the store from a copy.")
    at = str(root)
    for name in names:
        at = f"{at}/{name}"
        found = os.lstat(at)
        if stat.S_ISLNK(found.st_mode):
            raise CorruptStoreError(
                f"{at} is a link to {_target(at)}; wanted a file or folder of its own, because a "
                "link may lead out of the store. Copy what it points at into its place."
            )
    if not stat.S_ISREG(found.st_mode):
        raise CorruptStoreError(f"{path} is no regular file. Restore it from a copy.")
    return found


def _target(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return "somewhere"


def read_inside(root: Path, path: Path, *, most_bytes: int = JSON_BYTES) -> bytes:
    """Return the bytes of a small file of a store.

    Raises:
        CorruptStoreError: If it is missing, larger than `most_bytes`, no file, or behind a link.
    """
    size = check_file(root, path).st_size
    if size > most_bytes:
        raise CorruptStoreError(
            f"{path} has {size} bytes; such a file has at most {most_bytes}. Restore it, or open "
            "another version."
        )
    try:
        with open_inside(path) as file:
            raw = file.read(size + 1)  # no more: what is asked for is allocated at once
    except OSError as error:
        raise CorruptStoreError(
            f"{path} cannot be read ({error}). Mend its permissions."
        ) from error
    if len(raw) > size:
        raise CorruptStoreError(f"{path} grows while it is read. Restore it from a copy.")
    return raw


def open_inside(path: Path) -> BinaryIO:
    """Open a checked file for reading; a link or pipe that took its place is not followed."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def parse_json(raw: bytes, *, unique: bool = True) -> dict[str, Any]:
    """Return a JSON object of bounded size, with finite numbers and texts that UTF-8 can spell.

    Args:
        raw: The document.
        unique: Refuse a key that comes twice; needless where the bytes are compared with those
            that follow from the document.

    Raises:
        ValueError: If it is none.
    """
    if (items := sum(raw.count(mark) for mark in (b",", b"[", b"{"))) > _JSON_ITEMS:
        raise ValueError(f"{items} items; wanted at most {_JSON_ITEMS}")
    hook = _unique_keys if unique else None
    try:
        document = json.loads(raw.decode(), object_pairs_hook=hook, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():
            json.dumps(document, ensure_ascii=False).encode()
        json.dumps(document, allow_nan=False) if b"e" in raw.lower() else None
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - what a document says is a value
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def whole(value: Any, what: str, least: int = 0, most: int = LARGEST_FILE) -> int:
    """Return an integer of a document, which a float, a truth value or a text is not.

    Raises:
        ValueError: If it is none, or out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {str(value)[:40]}; wanted an integer of {least} to {most}")
    return value


def text(value: Any, what: str) -> str:
    """Return a text of a document.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is not str:
        raise ValueError(f"{what} is {str(value)[:40]}; wanted a text")
    return value


def truth(value: Any, what: str) -> bool:
    """Return a truth value of a document.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is not bool:
        raise ValueError(f"{what} is {str(value)[:40]}; wanted true or false")
    return value


def check_bytes(raw: bytes, promise: Mapping[str, Any]) -> None:
    """Refuse bytes that are not those of a promised file.

    Raises:
        ValueError: If they are others.
    """
    if (len(raw), xxhash.xxh3_128_hexdigest(raw)) != (promise["size_bytes"], promise["xxh3_128"]):
        raise ValueError(f"its bytes are not those the manifest promises: {dict(promise)}")


def check_promise(promise: Mapping[str, Any], what: str) -> None:
    """Refuse what does not promise a file: its size and digest.

    Raises:
        ValueError: If it is none.
    """
    whole(promise["size_bytes"], f"size_bytes of {what}")
    text(promise["xxh3_128"], f"xxh3_128 of {what}")


class OncePerProcess:
    """Remembers which files were found to be as promised, so that each is hashed once.

    A file is known by its inode, size and time of change: one that took its place is looked at.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[tuple[Any, ...]] = set()

    def check(self, found: os.stat_result, promise: str, check: Callable[[], None]) -> None:
        """Call `check`, which raises, unless it passed for this file and promise before."""
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, promise)
        with self._lock:
            if key in self._known:
                return
        check()
        with self._lock:
            self._known.add(key)
