"""What is derived from what, in which order: everything that needs no trial."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.derive.sql import parse_sql
from pipeline.hooks import HookFile, digest_hooks, find_hook
from pipeline.sections import Calendar, Derivation, Hook, SinceObserved, Sql
from pipeline.sections.inputs import Difference, Lag, RollingMean
from shards.errors import InvalidSpecError


@dataclass(frozen=True)
class Derivations:
    """The derived columns of a data set, in the order written.

    Iterating gives the new columns' names. A column may take the place of one of the files: what
    is written before it reads the file's, what is written after it reads the new one.

    Attributes:
        given: New column -> what the user wrote.
        parsed: New column -> polars expression, for those that are SQL.
        hooks: New column -> the file and function, for those that are hooks. Empty where the
            derivations were made without the data set's folder: they then cannot run.
        inputs: New column -> the columns and attributes that it reads.
        levels: The new columns in groups; no column of a group needs another one of it.
    """

    given: Mapping[str, Derivation]
    parsed: Mapping[str, pl.Expr]
    hooks: Mapping[str, HookFile] = field(default_factory=dict)
    inputs: Mapping[str, frozenset[str]] = field(init=False)
    levels: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        inputs = {name: self._reads(name) for name in self.given}
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "levels", _group(inputs))

    @classmethod
    def of(cls, derive: Mapping[str, Derivation], folder: Path | None = None) -> Derivations:
        """Parse the expressions and, given the folder of `dataset.yaml`, find the hooks' files.

        Raises:
            InvalidSpecError: An expression that polars does not know, or a hook that is not there.
        """
        parsed = {n: parse_sql(n, one.sql) for n, one in derive.items() if isinstance(one, Sql)}
        hooks = {
            name: find_hook(f"derive.{name}.hook", one.hook, folder)
            for name, one in derive.items()
            if isinstance(one, Hook) and folder is not None
        }
        return cls(dict(derive), parsed, hooks)

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)

    def __contains__(self, name: object) -> bool:
        return name in self.given

    @property
    def hook_digest(self) -> str:
        """A digest of all hook files; what was built with another one must not be reused."""
        return digest_hooks(self.hooks.values())

    def source_columns(self, names: Collection[str] | None = None) -> set[str]:
        """Return the columns and attributes that must come from somewhere else than `derive`.

        Args:
            names: Columns that are wanted, derived or not; None for all derived ones.
        """
        needed = set(self if names is None else names)
        for name in reversed(list(self)):
            if name in needed:
                needed = needed - {name} | self.inputs[name]
        return needed

    def _reads(self, name: str) -> frozenset[str]:
        match self.given[name]:
            case Sql():
                return frozenset(self.parsed[name].meta.root_names())
            case Hook(columns=columns):
                return frozenset(columns)
            case Lag(lag=column) | Difference(difference=column):
                return frozenset({column})
            case RollingMean(rolling_mean=column) | SinceObserved(since_observed=column):
                return frozenset({column})
            case Calendar():
                return frozenset()


def _group(inputs: Mapping[str, frozenset[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the new columns in groups that can be computed at once.

    A call into polars costs far more than a short trial's arithmetic, so groups are few: a column
    comes one group after those it needs, and not before those that read what it replaces.
    """
    levels: dict[str, int] = {}
    readers: dict[str, int] = {}  # column -> last group that reads it
    for name, read in inputs.items():
        after = [levels[other] + 1 for other in read if other in levels]
        levels[name] = max([0, *after, readers.get(name, 0)])
        for other in read:
            readers[other] = max(readers.get(other, 0), levels[name])
    n_groups = max(levels.values(), default=-1) + 1
    return tuple(tuple(n for n in levels if levels[n] == group) for group in range(n_groups))


def check_calendar(derivations: Derivations, *, is_date: bool) -> None:
    """Refuse parts of the date where times are none.

    Args:
        derivations: The derived columns.
        is_date: Whether the data set has times that are moments of the calendar.

    Raises:
        InvalidSpecError: Naming the column.
    """
    for name, given in derivations.given.items():
        if isinstance(given, Calendar) and not is_date:
            raise InvalidSpecError(
                f"derive.{name}.calendar: needs dates; set source.time with 'format: iso' or a "
                "pattern such as '%d.%m.%Y %H:%M'."
            )
