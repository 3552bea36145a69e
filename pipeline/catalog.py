"""Which files there are: found, identified, and told apart, without opening one."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from pipeline.paths import find_paths, identifier
from pipeline.sections import SourceSpec
from pipeline.spec import DatasetSpec
from pipeline.tables import JoinedTables, read_tables
from pipeline.trials import Refusal, RefusedError, SourceFile, quote
from shards.errors import InvalidSpecError

BYTES_PER_BUCKET = 256 * 2**20
Inode = tuple[int, int]
"""Device and number: one for all paths of a file."""
NO_INODE = (0, 0)


@dataclass(frozen=True)
class Catalog:
    """What a scan found. Every matched path is in `files`, `refusals` or `ignored`.

    Attributes:
        root: Folder that the paths are below.
        files: Candidates for trials, sorted by path.
        refusals: Paths that cannot be trials.
        ignored: Paths left out, counted by rule: `hidden`; `alias`, a symbolic link to a file that
            is here by another path.
        n_buckets: Power of two.
        warnings: What a user should look at, in sentences.
    """

    root: Path
    files: tuple[SourceFile, ...]
    refusals: tuple[Refusal, ...]
    ignored: Mapping[str, int]
    n_buckets: int
    warnings: tuple[str, ...] = ()

    @property
    def n_files(self) -> int:
        """Paths that matched the glob."""
        return len(self.files) + len(self.refusals) + sum(self.ignored.values())


class _Claim(NamedTuple):
    """A file that claims to hold a trial."""

    path: str
    size_bytes: int
    mtime_ns: int
    trial_id: str
    attributes: Mapping[str, str]
    inode: Inode


def scan_files(root: Path, spec: DatasetSpec) -> Catalog:
    """Find the files of a data set.

    Raises:
        InvalidSpecError: If nothing matches, or an attribute table cannot be used.
    """
    matched = find_paths(root, spec.source.files)
    shown = [path for path in matched if path[:1] != "." and "/." not in path]
    if not shown:
        raise InvalidSpecError(
            f"no file matches source.files {spec.source.files!r} below {root} ({len(matched)} "
            f"paths looked at). {_advice(spec.source)}"
        )
    linked = {path for path, is_linked in matched.items() if is_linked}
    claims, refusals = _look(root, sorted(shown), spec.source, linked=bool(linked))
    kept, n_aliases = _drop_aliases(claims, linked)
    ids = {claim.trial_id for claim in kept}
    kept, twice = _split_duplicates(kept) if len(ids) < len(kept) else (kept, [])
    # Where one file holds many trials, their ids are known only when it has been read.
    tables = read_tables(root, {} if spec.source.holds_many else spec.attributes)
    kept, without_row = _join_tables(kept, tables)
    n_buckets = count_buckets(sum(claim.size_bytes for claim in kept), spec.shards.buckets)
    ignored = {"hidden": len(matched) - len(shown), "alias": n_aliases}
    return Catalog(
        root=root,
        files=tuple(SourceFile(*c[:5], bucket=bucket_of(c.path, n_buckets)) for c in kept),
        refusals=(*refusals, *twice, *without_row),
        ignored={rule: n for rule, n in ignored.items() if n},
        n_buckets=n_buckets,
        warnings=tuple(tables.unmatched(ids)),
    )


def _advice(source: SourceSpec) -> str:
    if source.obtain:
        return f"How to get them: {source.obtain}"
    return "Mend the glob, or put the raw files there."


def count_buckets(n_bytes: int, wanted: int | str) -> int:
    """Return the number of buckets: a power of two, so that doubling splits each in two."""
    if wanted == "auto":
        wanted = -(-n_bytes // BYTES_PER_BUCKET)
    return 1 << max(0, int(wanted) - 1).bit_length()


def bucket_of(path: str, n_buckets: int) -> int:
    """Return the bucket of a source unit."""
    if n_buckets == 1:
        return 0
    return xxhash.xxh3_64_intdigest(path.encode()) & (n_buckets - 1)


def _look(
    root: Path, paths: Sequence[str], source: SourceSpec, *, linked: bool
) -> tuple[list[_Claim], list[Refusal]]:
    """Look at each path: is it a file, and whose?

    Args:
        root: Folder that paths are below.
        paths: Where to look.
        source: How files name trials.
        linked: Whether links lead to any of them.
    """
    claims: list[_Claim] = []
    refusals: list[Refusal] = []
    identify = identifier(source)
    # Relative to an open folder, a path is short, and the system finds the file in half the time.
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            if not path.isascii() and (readable := _readable(path)) != path:
                refusals.append(_refusal(readable, "path_not_utf8"))
                continue
            try:
                info = os.stat(path, dir_fd=folder)
            except OSError as error:
                refusals.append(_refusal(path, "unreadable", str(error.strerror)))
                continue
            if not stat.S_ISREG(info.st_mode):
                refusals.append(_refusal(path, "not_a_file"))
                continue
            named = identify(path)
            if named is None:
                what = repr(source.trial_id)
                refusals.append(_refusal(path, "no_trial_id", what, size_bytes=info.st_size))
                continue
            inode = (info.st_dev, info.st_ino) if linked else NO_INODE
            claims.append(_Claim(path, info.st_size, info.st_mtime_ns, *named, inode))
    finally:
        os.close(folder)
    return claims, refusals


def _readable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


_MESSAGES = {
    "path_not_utf8": "the path is not UTF-8, so it can be no id. Rename the file.",
    "unreadable": "cannot look at the file: {}. Mend its permissions or its link.",
    "not_a_file": "not a regular file. Rename it, or narrow source.files.",
    "no_trial_id": (
        "the path does not match source.trial_id {}. Widen the pattern, or narrow source.files."
    ),
}


def _refusal(path: str, code: str, what: str = "", *, size_bytes: int = 0) -> Refusal:
    return Refusal(path, "catalog", code, _MESSAGES[code].format(what), size_bytes=size_bytes)


def _drop_aliases(
    claims: Sequence[_Claim], linked: Collection[str]
) -> tuple[Sequence[_Claim], int]:
    """Keep one path of every file that links lead to: its own if it is here, else the first."""
    if not linked:
        return claims, 0
    own = {claim.inode for claim in claims if claim.path not in linked}
    kept = []
    for claim in claims:
        if claim.path in linked:
            if claim.inode in own:
                continue
            own.add(claim.inode)
        kept.append(claim)
    return kept, len(claims) - len(kept)


def _split_duplicates(claims: Sequence[_Claim]) -> tuple[Sequence[_Claim], list[Refusal]]:
    """Two files that claim one id are both refused: nothing here says which is right."""
    counts = Counter(claim.trial_id for claim in claims)
    kept = [claim for claim in claims if counts[claim.trial_id] == 1]
    refused = [
        Refusal(
            claim.path, "catalog", "duplicate_id",
            f"{counts[claim.trial_id]} files have the trial id {quote(claim.trial_id)}. Remove the "
            "copies, or make source.trial_id tell them apart.",
            size_bytes=claim.size_bytes,
        )
        for claim in claims
        if counts[claim.trial_id] > 1
    ]  # fmt: skip
    return kept, refused


def _join_tables(
    claims: Sequence[_Claim], tables: JoinedTables
) -> tuple[Sequence[_Claim], list[Refusal]]:
    if not tables.tables:
        return claims, []
    joined, refusals = [], []
    for claim in claims:
        try:
            attributes = {**claim.attributes, **tables.lookup(claim.trial_id)}
        except RefusedError as error:
            refusals.append(
                Refusal(claim.path, "catalog", error.code, str(error), size_bytes=claim.size_bytes)
            )
            continue
        joined.append(claim._replace(attributes=attributes))
    return joined, refusals
