"""Which files there are: found, identified, and told apart, without opening one."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from pipeline.files import Refusal, RefusedError, SourceFile, quote
from pipeline.paths import find_paths, identifier
from pipeline.quickscan import tables_digest, tables_of
from pipeline.sections import SourceSpec
from pipeline.spec import DatasetSpec
from pipeline.tables import JoinedTables, read_tables
from pipeline.walk import PlainFiles, is_hidden, walk_plain
from shards.errors import InvalidSpecError

BYTES_PER_BUCKET = 256 * 2**20
_Found = tuple[Sequence[SourceFile], list[Refusal], dict[str, int]]
"""Files that claim a trial each, refusals, and paths ignored by rule."""


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
        tables: Digest of the attribute tables.
    """

    root: Path
    files: tuple[SourceFile, ...]
    refusals: tuple[Refusal, ...]
    ignored: Mapping[str, int]
    n_buckets: int
    warnings: tuple[str, ...] = ()
    tables: str = ""

    @property
    def n_files(self) -> int:
        """Paths that matched the glob."""
        return len(self.files) + len(self.refusals) + sum(self.ignored.values())


class _Inode(NamedTuple):
    """One for all paths of a file."""

    device: int
    number: int


def scan_files(root: Path, spec: DatasetSpec) -> Catalog:
    """Find the files of a data set.

    Raises:
        InvalidSpecError: If nothing matches, or an attribute table cannot be used.
    """
    plain = walk_plain(root, spec.source.files)
    if plain is None:
        claims, refusals, ignored = _look_closely(root, spec.source)
    else:
        claims, refusals, ignored = _claim_plain(plain, spec.source)
    if not claims and not refusals:
        raise InvalidSpecError(
            f"no file matches source.files {spec.source.files!r} below {root} "
            f"({ignored['hidden']} paths looked at). {_advice(spec.source)}"
        )
    ids = {claim.trial_id for claim in claims}
    kept, twice = _split_duplicates(claims) if len(ids) < len(claims) else (claims, [])
    # Where one file holds many trials, their ids are known only when it has been read.
    tables = read_tables(root, {} if spec.source.holds_many else spec.attributes)
    kept, without_row = _join_tables(kept, tables)
    n_buckets = count_buckets(sum(claim.size_bytes for claim in kept), spec.shards.buckets)
    return Catalog(
        root=root,
        files=tuple(_put_in_buckets(kept, n_buckets)),
        refusals=(*refusals, *twice, *without_row),
        ignored={rule: n for rule, n in ignored.items() if n},
        n_buckets=n_buckets,
        warnings=tuple(tables.unmatched(ids)),
        tables=tables_digest(root, tables_of(spec)),
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


def _put_in_buckets(files: Sequence[SourceFile], n_buckets: int) -> Iterable[SourceFile]:
    if n_buckets == 1:
        return files  # as they are made
    return (SourceFile(*file[:-1], bucket=bucket_of(file.path, n_buckets)) for file in files)


def _claim_plain(plain: PlainFiles, source: SourceSpec) -> _Found:
    """Name the trials of files that need no closer look."""
    claims: list[SourceFile] = []
    refusals: list[Refusal] = []
    identify = identifier(source)
    for path, (size_bytes, mtime_ns) in sorted(plain.seen.items()):
        named = identify(path)
        if named is None:
            refusals.append(_without_id(path, source, size_bytes))
        else:
            claims.append(SourceFile(path, size_bytes, mtime_ns, *named))
    return claims, refusals, {"hidden": plain.n_hidden}


def claim_files(
    root: Path, places: Mapping[str, str], spec: DatasetSpec, tables: JoinedTables
) -> tuple[tuple[SourceFile, ...], list[Refusal]]:
    """Name the trials of files that somebody names one by one, wherever they lie.

    Args:
        root: Folder that the paths are below.
        places: Path -> the path by which its trial is named: where a scan would find it.
        spec: The specification.
        tables: Attribute tables; none where one file holds many trials.
    """
    claims: list[SourceFile] = []
    refusals: list[Refusal] = []
    identify = identifier(spec.source)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, place in places.items():
            info = _look(path, folder)
            if isinstance(info, Refusal):
                refusals.append(info)
            elif (named := identify(place)) is None:
                refusals.append(_without_id(path, spec.source, info.st_size))
            else:
                claims.append(SourceFile(path, info.st_size, info.st_mtime_ns, *named))
    finally:
        os.close(folder)
    kept, twice = _split_duplicates(claims)
    kept, without_row = _join_tables(kept, tables)
    return tuple(kept), [*refusals, *twice, *without_row]


def _look_closely(root: Path, source: SourceSpec) -> _Found:
    """Look at each path by itself: is it a file, whose, and is it here by another path too?"""
    matched = find_paths(root, source.files)
    shown = sorted(path for path in matched if not is_hidden(path))
    claims: list[SourceFile] = []
    refusals: list[Refusal] = []
    inodes: dict[str, _Inode] = {}
    identify = identifier(source)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in shown:
            info = _look(path, folder)
            if isinstance(info, Refusal):
                refusals.append(info)
            elif (named := identify(path)) is None:
                refusals.append(_without_id(path, source, info.st_size))
            else:
                claims.append(SourceFile(path, info.st_size, info.st_mtime_ns, *named))
                inodes[path] = _Inode(info.st_dev, info.st_ino)
    finally:
        os.close(folder)
    kept = _drop_aliases(claims, {path for path in shown if matched[path]}, inodes)
    n_hidden = len(matched) - len(shown)
    return kept, refusals, {"hidden": n_hidden, "alias": len(claims) - len(kept)}


def _look(path: str, folder: int) -> os.stat_result | Refusal:
    """Look at a path below an open folder; say why if it is no file."""
    if (readable := _readable(path)) != path:
        return _refusal(readable, "path_not_utf8")
    try:
        info = os.stat(path, dir_fd=folder)
    except OSError as error:
        return _refusal(path, "unreadable", str(error.strerror))
    return info if stat.S_ISREG(info.st_mode) else _refusal(path, "not_a_file")


def _without_id(path: str, source: SourceSpec, size_bytes: int) -> Refusal:
    return _refusal(path, "no_trial_id", repr(source.trial_id), size_bytes=size_bytes)


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
    claims: Sequence[SourceFile], linked: Collection[str], inodes: Mapping[str, _Inode]
) -> list[SourceFile]:
    """Keep one path of every file that links lead to: its own if it is here, else the first."""
    own = {inodes[claim.path] for claim in claims if claim.path not in linked}
    kept = []
    for claim in claims:
        if claim.path in linked:
            if inodes[claim.path] in own:
                continue
            own.add(inodes[claim.path])
        kept.append(claim)
    return kept


def _split_duplicates(claims: Sequence[SourceFile]) -> tuple[Sequence[SourceFile], list[Refusal]]:
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
    claims: Sequence[SourceFile], tables: JoinedTables
) -> tuple[Sequence[SourceFile], list[Refusal]]:
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
