"""Choose trials by an SQL expression: `subject = 's07' and n_rows > 500`.

The expression is SQLite's, evaluated in memory over the columns it names, and may only read: it
knows two tables, `trials` (columns of the index) and `attributes`, side by side. A name that both
have is ambiguous, and says so: write `attributes.split` or `trials.split`. Names with blanks, dots
or the sense of a keyword go in double quotes, texts in single ones: `"group" = 'control'`. Names
that differ in case alone are no columns here; `Store.trials` has them.

Attributes are text. One whose every value is a plain number (no leading zeros, which make a code
of it: `007`) compares as a number; comparing another one with a number is refused. A trial for
which the expression is NULL is not chosen. What would choose otherwise next time (`random()`,
dates of today) is no function here, for a stream must choose the same trials when it is resumed.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import InvalidSpecError
from shards.expression import Expression, shown
from shards.lazy import pc
from shards.trialcolumns import ATTRIBUTES, TRIALS, TrialColumns

if TYPE_CHECKING:
    from shards.reader import Store

Int64 = npt.NDArray[np.int64]
Column = tuple[str, str]
"""Table and name."""

BLOCK = 32_768
"""Trials in SQLite at once, so that memory does not grow with the store."""
LIMIT_S = 60
"""Longest that one query may take: a query over each pair of a million trials never ends."""
_UNIQUE = {(TRIALS, name) for name in ("number", "id", "digest")}
_LONGEST = 1 << 20
_KEY = "\x01"  # joins attributes to trials; no specification lets an attribute be called that
_PLAIN = r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
_FUNCTIONS = frozenset(
    (
        "abs", "avg", "char", "coalesce", "count", "format", "glob", "group_concat", "hex",
        "ifnull", "iif", "instr", "length", "like", "likelihood", "likely", "lower", "ltrim",
        "max", "min", "nullif", "printf", "quote", "replace", "round", "rtrim", "sign", "substr",
        "substring", "sum", "total", "trim", "typeof", "unicode", "unlikely", "upper",
    )
)  # fmt: skip


def select_trials(store: Store, where: str) -> Int64:
    """Return the numbers of the trials for which an expression is true, in order; may be none.

    Args:
        store: The open version.
        where: SQL expression.

    Raises:
        InvalidSpecError: If it is no such expression, names what is no column, or takes too long.
        CorruptStoreError: If the cold index cannot be read.
    """
    columns = TrialColumns(store)
    expression = Expression(where)
    with closing(_Sandbox(where, columns)) as sandbox:
        expression.check_names(_searchable(columns), columns.listing())
        needed, has_queries = sandbox.needs(where)
        loaded = {column: columns.load(*column) for column in needed}
        kinds = {column: _affinity(column, values) for column, values in loaded.items()}
        expression.check_numbers(kinds, {c: _example(v) for c, v in loaded.items()})
        sandbox.create(kinds)
        kind_of, n = None, len(store.index)
        if not has_queries and not set(needed) & _UNIQUE:
            kind_of, first = _distinct(list(loaded.values()), n)
            loaded, n = {name: c.take(pa.array(first)) for name, c in loaded.items()}, len(first)
        step = max(1, n) if has_queries else BLOCK
        found = [sandbox.choose(where, loaded, i, min(n, i + step)) for i in range(0, n, step)]
    chosen = np.concatenate([np.empty(0, np.int64), *found])
    return chosen if kind_of is None else np.flatnonzero(np.isin(kind_of, chosen))


def _distinct(columns: Sequence[pa.Array], n: int) -> tuple[Int64, Int64]:
    """Return which kind each trial is of, and one trial of each kind.

    Trials that agree in all columns are of a kind. Mostly they are few, and an expression is true
    for all of them or none: SQLite takes 2 us per row, this 0.1.

    Args:
        columns: Equally long.
        n: Their length.
    """
    kinds: Int64 = np.zeros(n, np.int64)
    for column in columns:
        codes, n_values = _numbered(column)
        kinds, _ = _numbered(pa.array(kinds * (n_values + 1) + codes))
    first: Int64 = np.zeros(int(kinds.max(initial=-1)) + 1, np.int64)
    first[kinds[::-1]] = np.arange(n)[::-1]
    return kinds, first


def _numbered(column: pa.Array) -> tuple[Int64, int]:
    """Return a number below n for each of n different values, n for a null; and n."""
    words = column.dictionary_encode()
    n = len(words.dictionary)
    codes: Int64 = words.indices.fill_null(n).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, n


class _Sandbox:
    """A database in memory in which the user's statement may read two tables, and nothing else."""

    def __init__(self, where: str, columns: TrialColumns) -> None:
        self._where, self._columns = where, columns
        self._locked = False
        self._reads: dict[Column, None] = {}
        self._n_selects = 0
        self._end = 0.0
        self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 256)
        self._db.set_authorizer(self._authorize)
        self._db.set_progress_handler(lambda: self._locked and time.monotonic() > self._end, 10_000)

    def close(self) -> None:
        self._db.close()

    def needs(self, where: str) -> tuple[list[Column], bool]:
        """Return the columns an expression reads, and whether it holds queries of its own."""
        names = _searchable(self._columns)
        self.create({(kind, name): "TEXT" for kind in names for name in names[kind]})
        self._query(f"SELECT 1 FROM {TRIALS}, {ATTRIBUTES} WHERE (\n{where}\n)")  # noqa: S608
        reads, has_queries = list(self._reads), self._n_selects > 1
        self._db.close()
        self._open()
        return [column for column in reads if column[1]], has_queries

    def create(self, kinds: Mapping[Column, str]) -> None:
        """Make the tables, of these columns alone."""
        self._joined = any(table == ATTRIBUTES for table, _ in kinds)
        self._names: dict[str, list[str]] = {TRIALS: ["number"], ATTRIBUTES: [_KEY]}
        for table, names in self._names.items():
            own = [(name, kind) for (at, name), kind in kinds.items() if at == table]
            own = [(name, kind) for name, kind in own if name != "number" or table == ATTRIBUTES]
            names += [name for name, _ in own]
            parts = [f"{_quoted(names[0])} INTEGER PRIMARY KEY"]
            parts += [f"{_quoted(name)} {kind}" for name, kind in own]
            self._db.execute(f"CREATE TABLE {table} ({', '.join(parts)})")

    def choose(self, where: str, loaded: Mapping[Column, pa.Array], first: int, last: int) -> Int64:
        """Return the numbers in [first, last) for which the expression is true."""
        numbers = range(first, last)
        tables = [TRIALS, ATTRIBUTES] if self._joined else [TRIALS]
        for table in tables:
            names = self._names[table]
            values = [loaded[table, name].slice(first, last - first) for name in names[1:]]
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of two names
            self._db.execute("BEGIN")
            self._db.executemany(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})",  # noqa: S608
                zip(numbers, *(column.to_pylist() for column in values), strict=True),
            )
            self._db.execute("COMMIT")
        source = TRIALS
        if self._joined:
            source += f" JOIN {ATTRIBUTES} ON {ATTRIBUTES}.{_quoted(_KEY)} = {TRIALS}.number"
        # An expression, checked to be one; the authorizer lets it read and nothing else.
        rows = self._query(f"SELECT {TRIALS}.number FROM {source} WHERE (\n{where}\n)")  # noqa: S608
        return np.sort(np.array([number for (number,) in rows], np.int64))

    def _query(self, statement: str) -> list[tuple[int]]:
        """Run a statement with the user's expression in it."""
        self._end = time.monotonic() + LIMIT_S
        self._locked = True
        try:
            return self._db.execute(statement).fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise self._refusal(error) from error
        finally:
            self._locked = False

    def _authorize(
        self, action: int, one: str | None, two: str | None, _base: str | None, _by: str | None
    ) -> int:
        """Let the user's statement read the two tables and call known functions."""
        if not self._locked:
            return sqlite3.SQLITE_OK
        allowed = action == sqlite3.SQLITE_SELECT
        if action == sqlite3.SQLITE_SELECT:
            self._n_selects += 1
        elif action == sqlite3.SQLITE_READ and one in (TRIALS, ATTRIBUTES):
            allowed = True
            if two != _KEY:
                self._reads[one, two or ""] = None
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = (two or "").lower() in _FUNCTIONS
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _refusal(self, error: Exception) -> InvalidSpecError:
        reason = str(error)
        remedy = "Wanted an SQL expression such as \"subject = 's07' and n_rows > 500\""
        if "no such column" in reason:
            remedy = f"The columns are: {self._columns.listing()}. Texts go in single quotes"
        elif "ambiguous column name" in reason:
            name = reason.rpartition(" ")[2]
            remedy = f"Write {TRIALS}.{name} for that of the index, or {ATTRIBUTES}.{name}"
        elif "not authorized" in reason or "prohibited" in reason or "no such function" in reason:
            remedy = f"It may read columns and call: {', '.join(sorted(_FUNCTIONS))}"
        elif "interrupted" in reason:
            remedy = f"It took over {LIMIT_S} s; filter Store.trials() instead, and give trials="
        return InvalidSpecError(f"where is {shown(self._where)}: {reason}. {remedy}.")


def _searchable(columns: TrialColumns) -> dict[str, list[str]]:
    """Return the names of each table without those that SQL, blind to case, cannot tell apart."""
    found: dict[str, list[str]] = {}
    for table, names in columns.names.items():
        often = Counter(_folded(name) for name in names)
        clear = [name for name in names if name and often[_folded(name)] == 1]
        found[table] = [name for name in clear if name != _KEY and "\0" not in name]
    return found


def _folded(name: str) -> str:
    return name.translate({code: code + 32 for code in range(65, 91)})  # as SQLite: ASCII alone


def _affinity(column: Column, values: pa.Array) -> str:
    """Return what SQLite shall take a column for."""
    if pa.types.is_integer(values.type):
        return "INTEGER"
    if pa.types.is_floating(values.type):
        return "REAL"
    known = values.drop_null()
    if column[0] != ATTRIBUTES or not len(known):
        return "TEXT"
    return "NUMERIC" if pc.all(pc.match_substring_regex(known, _PLAIN)).as_py() else "TEXT"


def _example(values: pa.Array) -> str:
    """Return a text that is no plain number, if there is one."""
    known = values.drop_null()
    if not len(known) or not pa.types.is_string(known.type):
        return ""
    odd = known.filter(pc.invert(pc.match_substring_regex(known, _PLAIN)))
    return str((odd if len(odd) else known)[0].as_py())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
