"""Which files there are: found, identified, and told apart, without opening one."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from pipeline.sections import SourceSpec
from pipeline.sections.source import COMPRESSED
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


def scan_files(root: Path, spec: DatasetSpec) -> Catalog:
    """Find the files of a data set.

    Raises:
        InvalidSpecError: If nothing matches, or an attribute table cannot be used.
    """
    matched = find_paths(root, spec.source.files)
    hidden = {path for path in matched if path.startswith(".") or "/." in path}
    looked = [_stat_file(root, path, spec.source) for path in sorted(matched.keys() - hidden)]
    if not looked:
        raise InvalidSpecError(
            f"no file matches source.files {spec.source.files!r} below {root} ({len(matched)} "
            f"paths looked at). {_advice(spec.source)}"
        )
    refusals = [entry for entry, _ in looked if isinstance(entry, Refusal)]
    claims = [(entry, inode) for entry, inode in looked if isinstance(entry, SourceFile)]
    files, n_aliases = _drop_aliases(claims, {path for path, linked in matched.items() if linked})
    ids = {file.trial_id for file in files}
    files, twice = _split_duplicates(files)
    # Where one file holds many trials, their ids are known only when it has been read.
    joined = {} if spec.source.holds_many else spec.attributes
    tables = read_tables(root, joined)
    files, without_row = _join_tables(files, tables)
    n_buckets = count_buckets(sum(f.size_bytes for f in files), spec.shards.buckets)
    ignored = {"hidden": len(hidden), "alias": n_aliases}
    return Catalog(
        root=root,
        files=tuple(dataclasses.replace(f, bucket=bucket_of(f.path, n_buckets)) for f in files),
        refusals=(*refusals, *twice, *without_row),
        ignored={rule: n for rule, n in ignored.items() if n},
        n_buckets=n_buckets,
        warnings=tuple(tables.unmatched(ids)),
    )


def find_paths(root: Path, pattern: str) -> dict[str, bool]:
    """Return every path that matches a glob -> whether a symbolic link after its fixed part leads.

    Hidden files and folders match too. Links in a circle end the search: `**` passes over a link
    to a folder that holds the link, and inside of linked folders it follows a link only to a
    folder that it has not entered by a link before.
    """
    fixed = list(_fixed_parts(pattern))
    parts = list(PurePosixPath(pattern).parts[len(fixed) :])
    if parts[-1:] == ["**"]:
        parts.append("*")
    found = {"/".join(fixed): False} if parts else {}
    for part in parts:
        found = dict(_step(root, found, part))
    return found


def _step(root: Path, found: Mapping[str, bool], part: str) -> Iterator[tuple[str, bool]]:
    """Yield what one part of a glob leads to from each folder."""
    matches = re.compile(fnmatch.translate(part)).match
    for folder, linked in found.items():
        if part == "**":
            yield from _walk(root, folder, linked)
        elif glob.has_magic(part):
            for entry in _entries(root, folder):
                if matches(entry.name):
                    yield _join(folder, entry.name), linked or entry.is_symlink()
        else:
            path = f"{root}/{_join(folder, part)}"
            if os.path.lexists(path):
                yield _join(folder, part), linked or os.path.islink(path)  # noqa: PTH114 (fast)


def _walk(root: Path, base: str, linked: bool) -> Iterator[tuple[str, bool]]:
    """Yield a folder and all folders below it, those behind links last."""
    waiting, entered = deque([(base, 0)]), set()
    while waiting:
        start, n_links = waiting.popleft()
        real = os.path.realpath(f"{root}/{start}")
        if n_links > 1 and real in entered:
            continue
        entered.add(real)
        folders, links = [(start, real)], []
        while folders:
            folder, place = folders.pop()
            yield folder, linked or n_links > 0
            for entry in _entries(root, folder):
                if not _is_folder(entry):
                    continue
                if not entry.is_symlink():
                    folders.append((_join(folder, entry.name), f"{place}/{entry.name}"))
                elif not PurePosixPath(place).is_relative_to(os.path.realpath(entry.path)):
                    links.append(_join(folder, entry.name))
        waiting.extend((link, n_links + 1) for link in sorted(links))


def _entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            return list(entries)
    except OSError:  # no folder, or none that may be read
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


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
    return xxhash.xxh3_64_intdigest(path.encode()) & (n_buckets - 1)


def _stat_file(root: Path, path: str, source: SourceSpec) -> tuple[SourceFile | Refusal, Inode]:
    readable = path.encode("utf-8", "backslashreplace").decode()
    if readable != path:
        message = "the path is not UTF-8, so it can be no id. Rename the file."
        return Refusal(readable, "catalog", "path_not_utf8", message), NO_INODE
    try:
        info = os.stat(root / path)  # noqa: PTH116 (a third of the time of Path.stat)
    except OSError as error:
        message = f"cannot look at the file: {error.strerror}. Mend its permissions or its link."
        return Refusal(path, "catalog", "unreadable", message), NO_INODE
    inode = (info.st_dev, info.st_ino)
    if not stat.S_ISREG(info.st_mode):
        message = "not a regular file. Rename it, or narrow source.files."
        return Refusal(path, "catalog", "not_a_file", message), inode
    named = identify_trial(path, source)
    if named is None:
        message = (
            f"the path does not match source.trial_id {source.trial_id!r}. "
            "Widen the pattern, or narrow source.files."
        )
        return Refusal(path, "catalog", "no_trial_id", message, size_bytes=info.st_size), inode
    trial_id, attributes = named
    return SourceFile(path, info.st_size, info.st_mtime_ns, trial_id, attributes), inode


def identify_trial(path: str, source: SourceSpec) -> tuple[str, dict[str, str]] | None:
    """Return `(trial id, attributes)` of a path, or None if the pattern does not match."""
    if source.trial_id is None:
        fixed = len(list(_fixed_parts(source.files)))
        below = PurePosixPath(*PurePosixPath(path).parts[fixed:])
        while below.suffix.lower() in COMPRESSED:
            below = below.with_suffix("")
        return below.with_suffix("").as_posix(), {}
    match = re.search(source.trial_id, path)
    if match is None or not match[0]:
        return None
    groups = {name: text for name, text in match.groupdict().items() if text is not None}
    return groups.pop("id", match[0]), groups


def _fixed_parts(pattern: str) -> Iterator[str]:
    """Yield the leading folders of a glob that hold no wildcard."""
    for part in PurePosixPath(pattern).parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _drop_aliases(
    claims: Sequence[tuple[SourceFile, Inode]], linked: Collection[str]
) -> tuple[list[SourceFile], int]:
    """Keep one path of every file that links lead to: its own if it is here, else the first."""
    own = {inode for file, inode in claims if file.path not in linked} if linked else set()
    kept = []
    for file, inode in claims:
        if file.path in linked:
            if inode in own:
                continue
            own.add(inode)
        kept.append(file)
    return kept, len(claims) - len(kept)


def _split_duplicates(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[Refusal]]:
    """Two files that claim one id are both refused: nothing here says which is right."""
    counts = Counter(file.trial_id for file in files)
    kept = [file for file in files if counts[file.trial_id] == 1]
    refused = [
        Refusal(
            file.path, "catalog", "duplicate_id",
            f"{counts[file.trial_id]} files have the trial id {quote(file.trial_id)}. Remove the "
            "copies, or make source.trial_id tell them apart.",
            size_bytes=file.size_bytes,
        )
        for file in files
        if counts[file.trial_id] > 1
    ]  # fmt: skip
    return kept, refused


def _join_tables(
    files: Sequence[SourceFile], tables: JoinedTables
) -> tuple[list[SourceFile], list[Refusal]]:
    joined, refusals = [], []
    for file in files:
        try:
            attributes = {**file.attributes, **tables.lookup(file.trial_id)}
        except RefusedError as error:
            refusals.append(
                Refusal(file.path, "catalog", error.code, str(error), size_bytes=file.size_bytes)
            )
            continue
        joined.append(dataclasses.replace(file, attributes=attributes))
    return joined, refusals
