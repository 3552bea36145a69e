"""What changed among the raw files since a version, at the cost of looking at each of them once.

A rerun over ten thousand files must not make ten thousand objects to find that nothing is new.
What is told here is what `scan_files` would tell; where that takes more than a plain look, nothing
is told, and the caller scans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import xxhash

from pipeline.walk import PlainFiles, Seen, walk_plain

if TYPE_CHECKING:
    from pipeline.sections import SourceSpec
    from pipeline.spec import DatasetSpec

FEW = 16
"""New trial ids that are cheaper to look for in all paths than to compare with all ids."""


@dataclass(frozen=True)
class KnownFiles:
    """The files of a version as they were when it was built.

    Attributes:
        files: Path -> size in bytes, modification time in nanoseconds.
    """

    files: Mapping[str, Seen]

    @classmethod
    def of(
        cls, paths: Iterable[str], sizes_bytes: Iterable[int], mtimes_ns: Iterable[int]
    ) -> KnownFiles:
        """Return known files from columns of equal length; a path may come several times."""
        return cls(dict(zip(paths, zip(sizes_bytes, mtimes_ns, strict=True), strict=True)))

    @classmethod
    def of_columns(
        cls, paths: pa.ChunkedArray, sizes_bytes: pa.ChunkedArray, mtimes_ns: pa.ChunkedArray
    ) -> KnownFiles:
        """Return known files from Arrow columns without nulls: utf8, int64, int64."""
        # Not by to_numpy, which imports pandas where that is installed.
        return cls.of(*(column.to_pylist() for column in (paths, sizes_bytes, mtimes_ns)))


@dataclass(frozen=True)
class Look:
    """How the raw files differ from known ones.

    Attributes:
        new: Paths that are not known, sorted.
        changed: Known paths with another size or modification time, sorted.
        gone: Known paths that are no more, sorted.
        found: Size and modification time of each new and changed path.
        n_same: Known paths that are as they were.
        n_hidden: Paths that match the glob and are passed over because they are hidden.
        n_bytes: Size of all files that are there.
    """

    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    found: Mapping[str, Seen]
    n_same: int
    n_hidden: int
    n_bytes: int

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.new or self.changed or self.gone)


def quick_look(root: Path, spec: DatasetSpec, known: KnownFiles) -> Look | None:
    """Compare the raw files with known ones.

    `scan_files` would find the same paths, sizes and times, ignore the same paths and refuse none.
    What attribute tables say is not looked at: compare `tables_digest`.

    Args:
        root: Folder that the glob is below.
        spec: What is built. The known files were found by the same `source` and `attributes`.
        known: The files that the catalog did not refuse.

    Returns:
        None where the full scan must be used: it would refuse a path or find none at all, there
        are symbolic links, or files come or go where tables give attributes.
    """
    found = walk_plain(root, spec.source.files)
    if found is None or not found.seen:
        return None
    look = _compare(found, known.files)
    if tables_of(spec) and not spec.source.holds_many and (look.new or look.gone):
        return None
    if look.new and not _have_own_ids(look.new, spec.source, found.seen.keys()):
        return None
    return look


def is_as_known(root: Path, pattern: str, known: KnownFiles, n_hidden: int) -> bool:
    """Return whether `quick_look` would find that nothing differs.

    Args:
        root: Folder that the glob is below.
        pattern: The glob.
        known: The files that the catalog did not refuse.
        n_hidden: Paths that match the glob and were hidden when the files became known.
    """
    found = walk_plain(root, pattern)
    if found is None or not found.seen or found.n_hidden != n_hidden:
        return False
    return found.seen == known.files


def tables_of(spec: DatasetSpec) -> set[str]:
    """Return the paths of the attribute tables."""
    from pipeline.sections import TableAttribute

    return {one.table for one in spec.attributes.values() if isinstance(one, TableAttribute)}


def tables_digest(root: Path, paths: Iterable[str]) -> str:
    """Return a digest of the attribute tables' bytes: while it stays, so does what they say."""
    digest = xxhash.xxh3_128()
    for path in sorted(paths):
        try:
            content = (root / path).read_bytes()
        except OSError:  # whoever reads the table for its values says what is wrong
            content = b""
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _compare(now: PlainFiles, known: Mapping[str, Seen]) -> Look:
    seen = now.seen
    found = {path: one for path, one in seen.items() if known.get(path) != one}
    return Look(
        new=tuple(sorted(path for path in found if path not in known)),
        changed=tuple(sorted(path for path in found if path in known)),
        gone=tuple(sorted(known.keys() - seen.keys())),
        found=found,
        n_same=len(seen) - len(found),
        n_hidden=now.n_hidden,
        n_bytes=sum(size for size, _ in seen.values()),
    )


def _have_own_ids(new: Collection[str], source: SourceSpec, paths: Collection[str]) -> bool:
    """Return whether each of the new paths has an id, and no other path has it."""
    from pipeline.paths import identifier

    identify = identifier(source)
    ids = {named[0] for named in map(identify, new) if named is not None}
    if len(ids) < len(new):
        return False
    if len(ids) <= FEW:  # an id is a part of its path
        paths = {path for one in ids for path in paths if one in path}
    rivals = map(identify, set(paths) - set(new))
    return ids.isdisjoint(named[0] for named in rivals if named is not None)
