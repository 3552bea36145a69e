"""Finished buckets that no version holds yet: one file each, written by one rename.

A staged bucket says what it was built from, so that the commit can tell whether it still fits.

The file is a sequence of Arrow IPC streams, then the XXH3-128 digest of them: the files as they
were read, with the rest in the metadata of the schema; the index rows; and the files as they were
asked for, where any of them differs. Nothing is compressed: it is written once and read once, and
to pack it would take longer than to write it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.files import Refusal, SourceFile
from pipeline.filetable import files_from_table, files_to_table
from shards.disk import remove_all, replacing
from shards.manifest import PartEntry, ShardEntry
from shards.maps import missing_file, shard_files
from shards.parts import part_path

KEPT_SECONDS = 24 * 3600
"""How long the staging of another specification is left alone: a build may be under way there."""

TRANSIENT = ("unreadable", "changed_while_read")
"""Refusals that may pass although size and time of the file stay the same."""

_NO_ROWS = pa.table({"id": pa.array([], pa.utf8())})
_DIGEST_BYTES = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BucketResult:
    """What one bucket contributes to a version.

    Attributes:
        rows: What the hot index needs of each segment, `base.INDEX_COLUMNS` (and `trial` where
            there are gaps), in the order of the part's rows; None without any.
        shards: The shards they lie in.
        refusals: Files that are not in it.
        files: What it was built from, with the sizes and times that were read.
        part: The file of their cold rows; None without any.
        reused: Whether an earlier build had staged it.
    """

    rows: pa.Table | None
    shards: tuple[ShardEntry, ...]
    refusals: tuple[Refusal, ...]
    files: tuple[SourceFile, ...] = ()
    part: PartEntry | None = None
    reused: bool = False

    def only(self, paths: Collection[str]) -> BucketResult:
        """Return what came of some of the files."""
        if all(file.path in paths for file in self.files):
            return self
        rows = self.rows
        if rows is not None:
            wanted = pa.array(sorted(paths), pa.utf8())
            rows = rows.filter(pc.is_in(rows["source"], value_set=wanted))
        return dataclasses.replace(
            self,
            rows=rows if rows is not None and rows.num_rows else None,
            refusals=tuple(refusal for refusal in self.refusals if refusal.source in paths),
            files=tuple(file for file in self.files if file.path in paths),
        )

    @property
    def n_trials(self) -> int:
        """Accepted trials."""
        return 0 if self.rows is None else int(self.rows.num_rows)

    @property
    def n_rows(self) -> int:
        """Rows of all trials."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.n_bytes for shard in self.shards)


@dataclass(frozen=True)
class Staged:
    """A staged bucket.

    Attributes:
        result: What it holds.
        asked: The files as the catalog knew them when the bucket was built; a file that was
            mended in between was read as it then was.
    """

    result: BucketResult
    asked: tuple[SourceFile, ...]

    def is_exactly(self, files: Sequence[SourceFile]) -> bool:
        """Return whether building these files again would give the same."""
        passing = any(refusal.code in TRANSIENT for refusal in self.result.refusals)
        return not passing and _are_same(self.result.files, files)

    def select(self, files: Sequence[SourceFile]) -> BucketResult | None:
        """Return what was built for, or from, exactly these files of a catalog.

        None if one of them is not among those that were read, or was another then.
        """
        if _are_same(self.asked, files):
            return self.result
        asked, read = (
            {f.path: _facts(f) for f in known} for known in (self.asked, self.result.files)
        )
        if any(_facts(f) not in (asked.get(f.path), read.get(f.path)) for f in files):
            return None
        return self.result.only({file.path for file in files})


def _facts(file: SourceFile) -> tuple[object, ...]:
    """Return what a file's part in a bucket depends on: all but the bucket's number."""
    return file.path, file.size_bytes, file.mtime_ns, file.trial_id, file.attributes


def _are_same(some: Sequence[SourceFile], others: Sequence[SourceFile]) -> bool:
    return len(some) == len(others) and all(
        a is b or _facts(a) == _facts(b) for a, b in zip(some, others, strict=True)
    )


def write_staged(path: Path, asked: Sequence[SourceFile], result: BucketResult) -> None:
    """Stage a bucket that was built for the catalog's files `asked`."""
    about = {
        "shards": [shard.as_dict() for shard in result.shards],
        "refusals": [refusal.as_row() for refusal in result.refusals],
        "part": None if result.part is None else result.part.as_dict(),
    }
    files = files_to_table(result.files)
    tables = [files.replace_schema_metadata({"trialshards": json.dumps(about)})]
    tables.append(_NO_ROWS if result.rows is None else result.rows)
    if not _are_same(asked, result.files):
        tables.append(files_to_table(asked))
    with replacing(path) as file:
        write_tables(file, tables)


def write_tables(file: BinaryIO, tables: Sequence[pa.Table]) -> None:
    """Write tables as the content of a staged file."""
    digest = xxhash.xxh3_128()

    def write(part: bytes) -> None:
        digest.update(part)
        file.write(part)

    # Through to the file: joined in memory first, they would take their size once more.
    sink = pa.PythonFile(_Writing(write), mode="w")
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    file.write(digest.digest())


class _Writing(io.RawIOBase):
    """A file that passes on what is written to it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, part: Any) -> int:
        """Pass a part on."""
        self._write(part)
        return len(part)


def _split_tables(content: bytes) -> list[pa.Table]:
    """Undo `write_tables`.

    Raises:
        ValueError: If the content is not what was written: Arrow itself trusts what it reads.
    """
    body = memoryview(content)[:-_DIGEST_BYTES]
    if xxhash.xxh3_128_digest(body) != content[-_DIGEST_BYTES:]:
        raise ValueError("its bytes are not those that were written")
    source = pa.BufferReader(pa.py_buffer(body))
    tables = []
    while source.tell() < len(body):
        with pa.ipc.open_stream(source) as stream:
            tables.append(stream.read_all())
    return tables


def read_staged(path: Path, store: Path) -> Staged | None:
    """Return a staged bucket, or None if it is not there, damaged, or its shards are gone."""
    if not path.is_file():
        return None
    try:
        known, rows, *asked = _split_tables(path.read_bytes())
        about = json.loads((known.schema.metadata or {}).get(b"trialshards", b"{}"))
        shards = tuple(ShardEntry.from_dict(entry) for entry in about["shards"])
        refusals = tuple(Refusal(**row) for row in about["refusals"])
        part = about["part"] and PartEntry.from_dict(about["part"])
        files = files_from_table(known)
        result = BucketResult(
            rows if part else None, shards, refusals, files, part=part or None, reused=True
        )
        staged = Staged(result, files_from_table(asked[0]) if asked else files)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        pa.ArrowException,
    ) as error:  # damaged: build it again
        log.warning("%s cannot be used again: %s", path, error)
        return None
    needed = [place for shard in shards for place in shard_files(store, shard)]
    needed += [(part_path(store, part.digest), part.size_bytes)] if part else []
    return None if missing_file(needed) else staged


def refresh_files(root: Path, files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files with the size and time they have now; one that is gone keeps the old ones.

    So a file that was mended since the catalog is read as it is, and one that is gone is refused
    when it is read.
    """
    fresh = []
    for file in files:
        try:
            info = os.stat(f"{root}/{file.path}")  # noqa: PTH116 (a third of the time of Path.stat)
        except OSError:
            fresh.append(file)
            continue
        size_bytes, mtime_ns = info.st_size, info.st_mtime_ns
        if (size_bytes, mtime_ns) != (file.size_bytes, file.mtime_ns):
            file = file._replace(size_bytes=size_bytes, mtime_ns=mtime_ns)
        fresh.append(file)
    return fresh


def remove_old_staging(root: Path, plan: str, *kept: Path) -> None:
    """Remove what other specifications left in `staging` and nobody touched for a day.

    Args:
        root: The staging folder of the store.
        plan: Names of folders in use begin so.
        kept: Files beside them that stay.
    """
    if not root.is_dir():
        return
    for path in root.iterdir():
        if path.name.startswith((plan, ".")) or path in kept:
            continue
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
            parts = (path, *path.iterdir()) if path.is_dir() else (path,)
            if time.time() - max(part.stat().st_mtime for part in parts) > KEPT_SECONDS:
                remove_all([path])
