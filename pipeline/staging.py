"""Finished buckets that no version holds yet: one Parquet file each, written by one rename.

A staged bucket says what it was built from, so that the commit can tell whether it still fits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.trials import Refusal, SourceFile
from shards.manifest import ShardEntry
from shards.version import parquet_bytes
from shards.writer import replace_file

KEPT_SECONDS = 24 * 3600
"""How long the staging of another specification is left alone: a build may be under way there."""

_TRANSIENT = ("unreadable", "changed_while_read")
"""Refusals that may pass although size and time of the file stay the same."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BucketResult:
    """What one bucket contributes to a version.

    Attributes:
        rows: Cold index rows plus `shard` (digest), `row_start`, `label` (text).
        shards: The shards they lie in.
        refusals: Files that are not in it.
        files: What it was built from, with the sizes and times that were read.
        reused: Whether an earlier build had staged it.
    """

    rows: pa.Table | None
    shards: tuple[ShardEntry, ...]
    refusals: tuple[Refusal, ...]
    files: tuple[SourceFile, ...] = ()
    reused: bool = False

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
        asked: Keys of the files as the catalog knew them when the bucket was built; a file that
            was mended in between was read as it then was.
    """

    result: BucketResult
    asked: tuple[str, ...]

    def is_exactly(self, files: Sequence[SourceFile]) -> bool:
        """Return whether building these files again would give the same."""
        passing = any(refusal.code in _TRANSIENT for refusal in self.result.refusals)
        return not passing and [f.key for f in self.result.files] == [f.key for f in files]

    def covers(self, files: Sequence[SourceFile]) -> bool:
        """Return whether it was built for, or from, exactly these files of a catalog."""
        built = {file.identity: file.key for file in self.result.files}
        return len(built) == len(files) and all(
            file.key in self.asked or built.get(file.identity) == file.key for file in files
        )


def write_staged(path: Path, asked: Sequence[SourceFile], result: BucketResult) -> None:
    """Stage a bucket that was built for the catalog's files `asked`."""
    about = {
        "asked": [file.key for file in asked],
        "files": [vars(file) for file in result.files],
        "shards": [shard.as_dict() for shard in result.shards],
        "refusals": [refusal.as_row() for refusal in result.refusals],
        "empty": result.rows is None,
    }
    table = pa.table({"id": pa.array([], pa.utf8())}) if result.rows is None else result.rows
    table = table.replace_schema_metadata({"trialshards": json.dumps(about)})
    replace_file(path, parquet_bytes(table))


def read_staged(path: Path, store: Path) -> Staged | None:
    """Return a staged bucket, or None if it is not there, damaged, or its shards are gone."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {}).get(b"trialshards", b"{}"))
        shards = tuple(ShardEntry.from_dict(entry) for entry in about["shards"])
        files = tuple(SourceFile(**file) for file in about["files"])
        refusals = tuple(Refusal(**row) for row in about["refusals"])
        asked = tuple(str(key) for key in about["asked"])
        rows = None if about["empty"] else table.replace_schema_metadata(None)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        pa.ArrowException,
    ) as error:  # damaged: build it again
        log.warning("%s cannot be used again: %s", path, error)
        return None
    if not all((store / "shards" / shard.digest).is_dir() for shard in shards):
        return None
    return Staged(BucketResult(rows, shards, refusals, files, reused=True), asked)


def refresh_files(root: Path, files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files with the size and time they have now; one that is gone keeps the old ones.

    So a file that was mended since the catalog is read as it is, and one that is gone is refused
    when it is read.
    """
    fresh = []
    for file in files:
        try:
            info = os.stat(root / file.path)  # noqa: PTH116 (a third of the time of Path.stat)
        except OSError:
            fresh.append(file)
            continue
        fresh.append(dataclasses.replace(file, size_bytes=info.st_size, mtime_ns=info.st_mtime_ns))
    return fresh


def remove_old_staging(staging: Path, *kept: Path) -> None:
    """Remove what other specifications left beside `staging` and nobody touched for a day.

    Args:
        staging: The folder in use.
        kept: Files beside it that stay.
    """
    for path in staging.parent.iterdir():
        if path == staging or path in kept:
            continue
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
            parts = (path, *path.iterdir()) if path.is_dir() else (path,)
            if time.time() - max(part.stat().st_mtime for part in parts) > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
