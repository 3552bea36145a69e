"""What each column of a Parquet table is good for: channel, attribute, time, target, or nothing."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import count_of, quote
from shards.errors import InvalidSpecError

_EXPORT = b"trialshards"
"""Key of the schema metadata with which an export says what its columns are."""
_TOLD = {"columns", "name", "normalization", "per", "target", "units", "windows"}
_COLUMN = {"name", "role", "of"}
_BESIDE = ("row", "observed", "label")
"""Columns of an export that a build makes itself."""


@dataclass(frozen=True)
class TableColumns:
    """The columns of all files of a table.

    Attributes:
        types: Column -> type, of the columns that every file has.
        told: What the metadata of an export say; empty without.
        constant: Columns that have one value at most in each trial -> whether each trial has one.
        odd: Column -> why it cannot be used.
        splits: Values of the column that an export names the split in.
    """

    types: Mapping[str, pa.DataType]
    told: Mapping[str, Any] = field(default_factory=dict)
    constant: Mapping[str, bool] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)
    splits: frozenset[str] = frozenset()

    def role(self, role: str) -> dict[str, str]:
        """Return column -> what the exported store called it, of a role in an export."""
        entries = self.told.get("columns", [])
        found = {e["name"]: e["of"] for e in entries if e["role"] == role}
        return {name: of for name, of in found.items() if name in self.types}

    @property
    def beside(self) -> list[str]:
        """Columns of an export that nothing needs to be made of."""
        return [name for role in _BESIDE for name in self.role(role)]

    def is_number(self, name: str) -> bool:
        """Whether a column can be a channel."""
        kind, types = self.types[name], pa.types
        checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
        return any(check(kind) for check in checks)

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return _is_text(self.types[name])

    def check(self, option: str, name: str) -> None:
        """Refuse a column that is not there.

        Raises:
            InvalidSpecError: Naming the option.
        """
        if name in self.types:
            return
        close = difflib.get_close_matches(name, self.types, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        why = f" ({self.odd[name]})" if name in self.odd else ""
        raise InvalidSpecError(
            f"{option}: no usable column {name!r}{why}; wanted one of: "
            f"{', '.join(self.types)}.{hint}"
        )


def find_tables(table: Path, root: Path | None) -> tuple[Path, str, Sequence[Path]]:
    """Return the folder of the `dataset.yaml`, the glob below it, and the files.

    Args:
        table: A Parquet file, or a folder of them.
        root: Where the `dataset.yaml` shall be; by default the table's folder.

    Raises:
        InvalidSpecError: If there is no file, or it does not lie below `root`.
    """
    if table.is_dir():
        # Those of a Hugging Face data set lie under data/.
        for pattern in ("*.parquet", "data/*.parquet", "**/*.parquet"):
            files = [p for p in sorted(table.glob(pattern)) if "/." not in f"/{_below(p, table)}"]
            if files:
                break
        else:
            raise InvalidSpecError(f"{table} holds no .parquet file. Give a table, or its folder.")
        folder = table
    else:
        folder, pattern, files = table.parent, glob.escape(table.name), [table]
    root = folder if root is None else root
    try:
        below = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError as error:
        raise InvalidSpecError(
            f"{table} does not lie below {root}, where the dataset.yaml shall be; its paths go "
            "downwards only. Put it beside the table, or above."
        ) from error
    return root, pattern if below == "." else f"{glob.escape(below)}/{pattern}", files


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def dataset_name(wanted: str) -> str:
    """Return a data set's name: small letters, digits and `_`, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).strip("_")
    return name if name[:1].isalpha() else f"table_{name}".rstrip("_")


def read_columns(files: Sequence[Path], trial: str, probed: Sequence[str]) -> TableColumns:
    """Look at the columns of a table, and at how texts lie on its trials.

    Args:
        files: Parquet files, one at least.
        trial: Column that tells trials apart.
        probed: Further columns of which must be known whether they have one value per trial.

    Raises:
        InvalidSpecError: If a file cannot be read, or a trial lies in several of them, or rows
            name no trial.
    """
    schemas = [_schema(file) for file in files]
    names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    types, odd = {}, {}
    for name in names:
        why = _why_not(name, schemas)
        if why:
            odd[name] = why
        else:
            types[name] = schemas[0].field(name).type
    told = [(schema.metadata or {}).get(_EXPORT, b"{}") for schema in schemas]
    about = _parse_told(told[0]) if len(set(told)) == 1 else {}
    columns = TableColumns(types, about, odd=odd)
    columns.check("--trial", trial)
    texts = [name for name in types if columns.is_text(name) and name != trial]
    wanted = list(dict.fromkeys([*texts, *(name for name in probed if name in types)]))
    constant, splits = _constancy(files, trial, wanted, list(columns.role("split")))
    return TableColumns(types, about, constant, odd, splits)


def _parse_told(raw: bytes) -> Mapping[str, Any]:
    """Return what an export says of itself; nothing if it is none, or not a whole one."""
    try:
        told = json.loads(raw)
        whole = set(told) >= _TOLD and all(set(e) >= _COLUMN for e in told["columns"])
    except (ValueError, TypeError):
        return {}
    return told if whole else {}


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise InvalidSpecError(
            f"{file} cannot be read as Parquet ({type(error).__name__}: {error}). "
            "Give a Parquet file, or a folder of them."
        ) from error


def _why_not(name: str, schemas: Sequence[pa.Schema]) -> str | None:
    counts = [schema.names.count(name) for schema in schemas]
    if max(counts) > 1:
        return "named twice"
    if min(counts) == 0:
        return f"missing in {count_of(counts.count(0), 'file')}"
    kind = schemas[0].field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or not (pa.types.is_primitive(kind) or _is_flat(kind)):
        return f"type {kind}"
    return None


def _is_flat(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or pa.types.is_decimal(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        check(kind) for check in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _constancy(
    files: Sequence[Path], trial: str, names: Sequence[str], split: Sequence[str]
) -> tuple[dict[str, bool], frozenset[str]]:
    """Return which columns have at most one value in each trial, and the values of `split`."""
    key, seen = pl.col(trial).cast(pl.String), dict[str, Path]()
    constant, splits = dict.fromkeys(names, True), set[str]()
    for file in files:
        low = [pl.col(n).drop_nulls().min().alias(f"low{i}") for i, n in enumerate(names)]
        high = [pl.col(n).drop_nulls().max().alias(f"high{i}") for i, n in enumerate(names)]
        # Categories compare by the order they came in, where they are not read as texts.
        frame = pl.scan_parquet(file, glob=False).with_columns(
            pl.col(pl.Categorical).cast(pl.String)
        )
        found = frame.group_by(key.alias("")).agg(*low, *high).collect()
        _check_trials(found[""], trial, file, seen)
        for i, name in enumerate(names):
            first, last = found[f"low{i}"], found[f"high{i}"]
            if name in constant and (first.is_null() | (first == last)).all():
                constant[name] &= not first.null_count()
            else:
                constant.pop(name, None)
        for name in split:
            splits |= set(found[f"low{names.index(name)}"].drop_nulls().to_list())
    return constant, frozenset(splits)


def _check_trials(trials: pl.Series, column: str, file: Path, seen: dict[str, Path]) -> None:
    """Refuse what would cut a trial in two, or make one of two."""
    if trials.null_count():
        raise InvalidSpecError(
            f"{file}: rows have no value in the trial column {column!r}. Fill it in, or drop them."
        )
    blank = trials.filter(trials != trials.str.strip_chars(" \t"))
    if len(blank):
        raise InvalidSpecError(
            f"{file}: trial {quote(blank[0])} has blanks around it, which an id cannot have. "
            "Strip them."
        )
    for value in trials.to_list():
        if value in seen:
            raise InvalidSpecError(
                f"trial {quote(value)} lies in {seen[value]} and in {file}, and would become two "
                "trials. Write each trial into one file, or all of them into one."
            )
        seen[value] = file
