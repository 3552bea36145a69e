"""What is known of trials from outside their files: attribute tables, and runs of trials."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl
import xxhash

from pipeline.files import RefusedError, count_of, quote
from pipeline.sections import Attribute, RunsAttribute, TableAttribute
from pipeline.sections.source import COMPRESSED
from shards.errors import InvalidSpecError

_DELIMITERS = {".tsv": "\t", ".psv": "|"}


@dataclass(frozen=True)
class JoinedTables:
    """The attribute tables of a data set, ready to be asked for a trial.

    Attributes:
        tables: Attribute -> where it comes from.
        values: Attribute -> trial id -> value, for every row that has one.
        digest: Of what the tables say of trials: equal if `values` are.
    """

    tables: Mapping[str, TableAttribute]
    values: Mapping[str, Mapping[str, str]]
    digest: str

    def lookup(self, trial_id: str) -> dict[str, str]:
        """Return the attributes of a trial.

        Raises:
            RefusedError: `no_table_row`, if a table without a default does not name the trial.
        """
        found = {}
        for name, attribute in self.tables.items():
            value = self.values[name].get(trial_id, attribute.default)
            if value is None:
                raise RefusedError(
                    "no_table_row",
                    f"{attribute.table} has no row for trial {quote(trial_id)} (attribute "
                    f"{name!r}). Add the row, or give attributes.{name}.default.",
                )
            found[name] = str(value)
        return found

    def unmatched(self, ids: Collection[str]) -> list[str]:
        """Return a sentence per attribute whose table speaks of trials that are not in `ids`."""
        known, sentences = set(ids), []
        for name, attribute in self.tables.items():
            unknown = [trial_id for trial_id in self.values[name] if trial_id not in known]
            if unknown:
                some = ", ".join(map(quote, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
                verb = "names" if len(unknown) == 1 else "name"
                sentences.append(
                    f"attributes.{name}: {count_of(len(unknown), 'row')} of {attribute.table} "
                    f"{verb} no trial, such as {some}; check attributes.{name}.trial_id."
                )
        return sentences


def read_tables(root: Path, attributes: Mapping[str, Attribute]) -> JoinedTables:
    """Read the tables that attributes come from, each file once.

    Args:
        root: Folder that paths are below.
        attributes: All attributes; those that come from no table are passed over.

    Raises:
        InvalidSpecError: If a table cannot be read, lacks a column, or names a trial twice.
    """
    tables = {name: a for name, a in attributes.items() if isinstance(a, TableAttribute)}
    read: dict[str, pl.DataFrame] = {}
    values: dict[str, dict[str, str]] = {}
    for name, attribute in tables.items():
        if attribute.table not in read:
            read[attribute.table] = _read_table(root, attribute.table, f"attributes.{name}")
        values[name] = _pick(read[attribute.table], attribute, f"attributes.{name}")
    said = json.dumps([[name, sorted(rows.items())] for name, rows in sorted(values.items())])
    return JoinedTables(tables, values, xxhash.xxh3_128_hexdigest(said.encode()))


def runs_value(attribute: RunsAttribute, file_path: str, number: int) -> str:
    """Return the run that a trial belongs to, `1` for the first.

    Args:
        attribute: How many trials each run has.
        file_path: POSIX path of the trial's file.
        number: The trial's place in its file, from 1.

    Raises:
        RefusedError: `no_runs`, if the file is not listed.
    """
    lengths = attribute.runs.get(file_path)
    if lengths is None:
        raise RefusedError(
            "no_runs",
            f"the attribute's runs do not list {quote(file_path)}; listed: "
            f"{', '.join(map(quote, sorted(attribute.runs)[:5]))}. Add the file.",
        )
    return str(1 + sum(number > end for end in itertools.accumulate(lengths)))


def _read_table(root: Path, path: str, where: str) -> pl.DataFrame:
    """Return a table as text, without blanks around its columns' names."""
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes if s.lower() not in COMPRESSED]
    suffix = suffixes[-1] if suffixes else ""
    try:
        content = (root / path).read_bytes()  # a path given to polars could be taken for a glob
        if suffix == ".parquet":
            table = pl.read_parquet(content).cast(pl.String)
        else:
            # As text: a guessed type would turn unit 0001 into 1 and the value 007 into 7.
            delimiter = _DELIMITERS.get(suffix, ",")
            table = pl.read_csv(content, separator=delimiter, infer_schema=False)
        # Some tables mark their header as a comment: "#sequence_ID, class_label".
        table.columns = [name.strip().removeprefix("#").strip() for name in table.columns]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidSpecError(
            f"{where}: cannot read {path}: {str(error).partition(chr(10))[0].rstrip('.')}. Check "
            "the path, and that the suffix says how it is written: .csv, .tsv, .psv or .parquet."
        ) from error
    return table


def _pick(table: pl.DataFrame, attribute: TableAttribute, where: str) -> dict[str, str]:
    """Return trial id -> value of one attribute."""
    if attribute.column not in table.columns:
        raise InvalidSpecError(
            f"{where}: {attribute.table} has no column {attribute.column!r}; it has: "
            f"{', '.join(table.columns)}."
        )
    # A table may have hundreds of columns; cells are made only of those that the format may name.
    named = [column for column in table.columns if column in attribute.trial_id]
    used = table.select(list(dict.fromkeys([*named, attribute.column])))
    used = used.select(pl.all().str.strip_chars().replace("", None))
    used = used.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines become null rows
    values: dict[str, str] = {}
    seen = set()
    for row in used.iter_rows(named=True):
        try:
            texts = {name: _Cell(row[name] or "") for name in named}
            trial_id = attribute.trial_id.format(**texts)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise InvalidSpecError(
                f"{where}.trial_id: {attribute.trial_id!r} cannot be filled from {attribute.table} "
                f"({type(error).__name__}: {error}); its columns: {', '.join(table.columns)}."
            ) from error
        if trial_id in seen:
            raise InvalidSpecError(f"{where}: {attribute.table} names trial {trial_id!r} twice.")
        seen.add(trial_id)
        if row[attribute.column] is not None:
            values[trial_id] = row[attribute.column]
    return values


class _Cell(str):
    """Text that also takes the format of a number, such as `04d` or `.1f`, if it is one."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        readers: tuple[Callable[[str], str | int | float], ...] = (str, int, float)
        for read in readers if spec else (str,):
            try:
                return format(read(self), spec)
            except ValueError:
                continue
        raise ValueError(f"{str(self)!r} does not take the format {spec!r}")
