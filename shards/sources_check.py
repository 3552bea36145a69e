"""Whether the files that a version was built from are still what they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import xxhash

from shards.errors import InvalidSpecError
from shards.problems import SHOWN_TRIALS, Problem
from shards.reader import Store

_BLOCK_BYTES = 2**22
_COLUMNS = ("source", "size_bytes", "source_xxh3")


class _Source(NamedTuple):
    """What the cold index says of one file, and whose it is."""

    size_bytes: int | None
    xxh3: str | None
    trials: list[str]


def check_sources(store: Store, root: Path) -> Iterator[Problem]:
    """Read again the files that the trials of a version came from.

    Args:
        store: The open version.
        root: The folder that paths of sources start from.

    Raises:
        InvalidSpecError: If there is no such folder.
        CorruptStoreError: If the cold index cannot be read.
    """
    if not root.is_dir():
        raise InvalidSpecError(
            f"sources is {root}, which is no folder; wanted the one that the source files lie "
            "below, as when the store was built."
        )
    table = store.cold("id", *_COLUMNS)
    if lacking := [name for name in _COLUMNS if name not in table.column_names]:
        yield Problem(str(store.folder), f"it does not say the {', '.join(lacking)} of its trials")
        return
    for path, source in sorted(_by_file(table).items()):
        trials = tuple(source.trials[:SHOWN_TRIALS])
        for message in _differences(root, path, source):
            yield Problem(str(root / path), message, trials)


def _by_file(table: pa.Table) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    columns = (table[name].to_pylist() for name in ("id", *_COLUMNS))
    for trial, path, size, xxh3 in zip(*columns, strict=True):
        source = found.setdefault(str(path), _Source(size, xxh3, []))
        if len(source.trials) < SHOWN_TRIALS:
            source.trials.append(trial)
    return found


def _differences(root: Path, path: str, source: _Source) -> Iterator[str]:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:  # a store may say anything
        yield "the store names no path below the folder"
        return
    try:
        found = (root / path).stat()
        if not stat.S_ISREG(found.st_mode):
            yield "no regular file any more"
            return
        # Non-blocking, because a named pipe that takes its place would wait for a writer.
        descriptor = os.open(root / path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        yield "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        return
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if source.size_bytes is not None and found.st_size != source.size_bytes:
            yield f"it has {found.st_size} bytes; the store was built from {source.size_bytes}"
        elif source.xxh3 is None:
            yield "the store does not say what its bytes were"
        else:
            state = xxhash.xxh3_128()
            while block := file.read(_BLOCK_BYTES):
                state.update(block)
            if state.hexdigest() != source.xxh3:
                yield "its bytes are not those that the store was built from"
