"""Which files there are: found, identified, and told apart, without opening one."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl
import xxhash

from pipeline.sections import SourceSpec, TableAttribute
from pipeline.spec import DatasetSpec
from pipeline.trials import Refusal, SourceFile, quote
from shards.errors import InvalidSpecError

BYTES_PER_BUCKET = 256 * 2**20


@dataclass(frozen=True)
class Catalog:
    """What a scan found. Every matched path is in `files`, `refusals` or `ignored`.

    Attributes:
        root: Folder that the paths are below.
        files: Candidates for trials, sorted by path.
        refusals: Paths that cannot be trials.
        ignored: Paths left out, counted by rule.
        n_buckets: Power of two.
    """

    root: Path
    files: tuple[SourceFile, ...]
    refusals: tuple[Refusal, ...]
    ignored: Mapping[str, int]
    n_buckets: int

    @property
    def n_files(self) -> int:
        """Paths that matched the glob."""
        return len(self.files) + len(self.refusals) + sum(self.ignored.values())


def scan_files(root: Path, spec: DatasetSpec) -> Catalog:
    """Find the files of a data set.

    Raises:
        InvalidSpecError: If nothing matches, or an attribute table cannot be used.
    """
    found_paths = glob.iglob(  # noqa: PTH207 (Path.glob cannot tell hidden files)
        spec.source.files, root_dir=root, recursive=True, include_hidden=True
    )
    matched = sorted(set(found_paths))  # a pattern such as **/** finds files twice
    hidden = {path for path in matched if any(p.startswith(".") for p in Path(path).parts)}
    found = [_stat_file(root, path, spec.source) for path in matched if path not in hidden]
    files = [entry for entry in found if isinstance(entry, SourceFile)]
    if not found:
        raise InvalidSpecError(
            f"no file matches source.files {spec.source.files!r} below {root} ({len(matched)} "
            f"paths looked at). {_advice(spec.source)}"
        )
    refusals = [entry for entry in found if isinstance(entry, Refusal)]
    files, twice = _split_duplicates(files)
    files, unmatched = _join_tables(root, files, spec)
    n_buckets = count_buckets(sum(f.size_bytes for f in files), spec.shards.buckets)
    return Catalog(
        root=root,
        files=tuple(dataclasses.replace(f, bucket=bucket_of(f.path, n_buckets)) for f in files),
        refusals=(*refusals, *twice, *unmatched),
        ignored={"hidden": len(hidden)} if hidden else {},
        n_buckets=n_buckets,
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
    return xxhash.xxh3_64_intdigest(path.encode()) & (n_buckets - 1)


def _stat_file(root: Path, path: str, source: SourceSpec) -> SourceFile | Refusal:
    posix = Path(path).as_posix()
    readable = posix.encode("utf-8", "backslashreplace").decode()
    if readable != posix:
        message = "the path is not UTF-8, so it can be no id. Rename the file."
        return Refusal(readable, "catalog", "path_not_utf8", message)
    try:
        info = os.stat(root / path)  # noqa: PTH116 (a third of the time of Path.stat)
    except OSError as error:
        message = f"cannot look at the file: {error.strerror}. Mend its permissions or its link."
        return Refusal(posix, "catalog", "unreadable", message)
    if not stat.S_ISREG(info.st_mode):
        message = "not a regular file. Rename it, or narrow source.files."
        return Refusal(posix, "catalog", "not_a_file", message)
    named = identify_trial(posix, source)
    if named is None:
        message = (
            f"the path does not match source.trial_id {source.trial_id!r}. "
            "Widen the pattern, or narrow source.files."
        )
        return Refusal(posix, "catalog", "no_trial_id", message, size_bytes=info.st_size)
    trial_id, attributes = named
    return SourceFile(posix, info.st_size, info.st_mtime_ns, trial_id, attributes)


def identify_trial(path: str, source: SourceSpec) -> tuple[str, dict[str, str]] | None:
    """Return `(trial id, attributes)` of a path, or None if the pattern does not match."""
    if source.trial_id is None:
        fixed = len(list(_fixed_parts(source.files)))
        below = PurePosixPath(*PurePosixPath(path).parts[fixed:])
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
    root: Path, files: Sequence[SourceFile], spec: DatasetSpec
) -> tuple[list[SourceFile], list[Refusal]]:
    joined, refusals = list(files), []
    for name, attribute in spec.attributes.items():
        if not isinstance(attribute, TableAttribute):
            continue
        values = read_attribute_table(root, name, attribute)
        kept = []
        for file in joined:
            value = values.get(file.trial_id, attribute.default)
            if value is None:
                message = (
                    f"{attribute.table} has no row for trial {quote(file.trial_id)} (attribute "
                    f"{name!r}). Add the row, or give attributes.{name}.default."
                )
                refusals.append(
                    Refusal(file.path, "catalog", "no_table_row", message,
                            size_bytes=file.size_bytes)
                )  # fmt: skip
                continue
            attributes = {**file.attributes, name: str(value)}
            kept.append(dataclasses.replace(file, attributes=attributes))
        joined = kept
    return joined, refusals


def read_attribute_table(root: Path, name: str, attribute: TableAttribute) -> dict[str, str]:
    """Return trial id -> value of one attribute.

    Raises:
        InvalidSpecError: If the table cannot be read, lacks a column, or names a trial twice.
    """
    where = f"attributes.{name}"
    try:
        # As text: a guessed type would turn unit 0001 into 1 and the value 007 into 7.
        table = pl.read_csv(root / attribute.table, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidSpecError(f"{where}: cannot read {attribute.table}: {error}.") from error
    if attribute.column not in table.columns:
        raise InvalidSpecError(
            f"{where}: {attribute.table} has no column {attribute.column!r}; it has: "
            f"{', '.join(table.columns)}."
        )
    values: dict[str, str] = {}
    for row in table.iter_rows(named=True):
        try:
            trial_id = attribute.trial_id.format(**{key: _Cell(v or "") for key, v in row.items()})
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise InvalidSpecError(
                f"{where}.trial_id: {attribute.trial_id!r} cannot be filled from {attribute.table} "
                f"({type(error).__name__}: {error}); its columns: {', '.join(table.columns)}."
            ) from error
        if trial_id in values:
            raise InvalidSpecError(f"{where}: {attribute.table} names trial {trial_id!r} twice.")
        if row[attribute.column] is not None:
            values[trial_id] = row[attribute.column]
    return values


class _Cell(str):
    """Text that also takes the format of a number, such as `04d` or `.1f`, if it is one."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        for read in (str, int, float) if spec else (str,):
            try:
                return format(read(self), spec)
            except ValueError:
                continue
        raise ValueError(f"{str(self)!r} does not take the format {spec!r}")
