"""What a build has to read: how the raw files differ from those that its base was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base import Base
from pipeline.catalog import Catalog, bucket_of, count_buckets
from pipeline.files import Refusal, SourceFile
from pipeline.paths import identifier
from pipeline.quickscan import Look
from pipeline.spec import DatasetSpec
from pipeline.tables import read_tables

TOMBSTONE = "tombstone"
"""The rule by which a file is passed over whose trial was taken out by hand."""


@dataclass(frozen=True)
class Changes:
    """How the raw files differ from those of the base, by path, for a person to read.

    Attributes:
        new: Paths that the base does not know.
        changed: Paths of another size or time, or of which an attribute table says something else.
        gone: Paths that only the base knows.
        n_same: All others.
    """

    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    n_same: int

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        """Return `3 new, 1 changed, 0 gone`."""
        return f"{len(self.new)} new, {len(self.changed)} changed, {len(self.gone)} gone"


@dataclass(frozen=True)
class Delta:
    """The raw files now, as far as they differ from those of the base.

    Attributes:
        read: New and changed files, sorted by path.
        gone: Paths whose part in the base does not hold any more: changed, deleted, refused.
        n_same: Files that are taken over from the base.
        n_files: Paths that matched the glob.
        n_buckets: Power of two.
        refusals: Paths that cannot be trials.
        ignored: Paths left out, counted by rule.
        tables: Digest of the attribute tables.
        warnings: What a user should look at, in sentences.
    """

    read: tuple[SourceFile, ...]
    gone: frozenset[str]
    n_same: int
    n_files: int
    n_buckets: int
    refusals: tuple[Refusal, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    tables: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether every file is taken over, and none went."""
        return not (self.read or self.gone)

    @property
    def changes(self) -> Changes:
        """What differs, by path."""
        read = {file.path for file in self.read}
        return Changes(
            new=tuple(sorted(read - self.gone)),
            changed=tuple(sorted(read & self.gone)),
            gone=tuple(sorted(self.gone - read)),
            n_same=self.n_same,
        )

    def files_of(self, bucket: int) -> list[SourceFile]:
        """Return the files of a bucket that are to be read, in path order."""
        return [file for file in self.read if file.bucket == bucket]


def compare_with_base(catalog: Catalog, base: Base | None, spec: DatasetSpec) -> Delta:
    """Return what of a catalog is to be read."""
    files, n_taken_out = _without_tombstones(catalog.files, base, spec)
    known = base.known if base is not None and base.reusable else {}
    taken_out = base.taken_out if base is not None else frozenset[str]()
    stale = _retold(base, files) if base is not None and _tables_differ(base, catalog) else set()
    read = tuple(
        file
        for file in files
        if known.get(file.path) != (file.size_bytes, file.mtime_ns) or file.path in stale
    )
    there, reads = {file.path for file in files}, {file.path for file in read}
    gone = {path for path in known if path not in there}
    if spec.source.holds_many:
        n_taken_out = len((taken_out & there) - reads)
    return Delta(
        read=read,
        gone=frozenset((gone - taken_out) | (reads & known.keys())),
        n_same=len(files) - len(read),
        n_files=catalog.n_files,
        n_buckets=catalog.n_buckets,
        refusals=catalog.refusals,
        ignored=dict(catalog.ignored) | ({TOMBSTONE: n_taken_out} if n_taken_out else {}),
        tables=catalog.tables,
        warnings=catalog.warnings,
    )


def _without_tombstones(
    files: Sequence[SourceFile], base: Base | None, spec: DatasetSpec
) -> tuple[Sequence[SourceFile], int]:
    """Leave out files whose only trial was taken out; of files with many, the commit does it."""
    if base is None or not base.tombstones or spec.source.holds_many:
        return files, 0
    out = {stone.id for stone in base.tombstones}
    kept = [file for file in files if file.trial_id not in out]
    return kept, len(files) - len(kept)


def _tables_differ(base: Base, catalog: Catalog) -> bool:
    return base.reusable and base.says("tables") != catalog.tables


def _retold(base: Base, files: Sequence[SourceFile]) -> set[str]:
    """Return paths of files of which the attribute tables now say something else.

    Those that were refused are among them: what the tables said then is not known.
    """
    refused = {refusal.source for refusal in base.refusals}
    cold = base.store.cold("attributes")
    if "attributes" not in cold.column_names:
        return refused
    sources = base.sources.to_pylist()
    told = dict(zip(sources, cold["attributes"].to_pylist(), strict=True))
    return refused | {
        file.path
        for file in files
        if (before := told.get(file.path)) is not None
        and any(before.get(name) != value for name, value in file.attributes.items())
    }


def delta_of_look(look: Look, base: Base, spec: DatasetSpec, root: Path) -> Delta:
    """Return what a quick look found to be read; it found nothing that the catalog refuses."""
    paths = [*look.new, *look.changed]
    read: list[SourceFile] = []
    n_buckets = count_buckets(look.n_bytes, spec.shards.buckets)
    if paths:
        identify = identifier(spec.source)
        tables = read_tables(root, {} if spec.source.holds_many else spec.attributes)
        for path in sorted(paths):
            named = identify(path)
            if named is None:
                raise AssertionError(path)  # the look gave up on such a path
            attributes = {**named[1], **tables.lookup(named[0])} if tables.tables else named[1]
            size_bytes, mtime_ns = look.found[path]
            bucket = bucket_of(path, n_buckets)
            read.append(SourceFile(path, size_bytes, mtime_ns, named[0], attributes, bucket))
    kept, n_new_taken_out = _without_tombstones(read, base, spec)
    n_taken_out = len(base.taken_out.difference(look.changed, look.gone))
    ignored = {"hidden": look.n_hidden, TOMBSTONE: n_taken_out + n_new_taken_out}
    nothing_of = base.taken_out - {file.path for file in kept}
    return Delta(
        read=tuple(kept),
        gone=frozenset((*look.changed, *look.gone)) - nothing_of,
        n_same=look.n_same - n_taken_out,
        n_files=look.n_same + len(paths) + look.n_hidden,
        n_buckets=n_buckets,
        ignored={rule: n for rule, n in ignored.items() if n},
        tables=str(base.says("tables")),
    )
