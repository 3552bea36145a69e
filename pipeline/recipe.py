"""A specification with everything resolved that does not depend on a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from pathlib import Path

import polars as pl

from pipeline.derive import parse_expressions, source_columns
from pipeline.sections import ColumnAttribute, PerTrialTarget
from pipeline.sources.delimited import DelimitedLayout
from pipeline.spec import DatasetSpec
from shards.errors import InvalidSpecError


@dataclass(frozen=True)
class Recipe:
    """A specification with everything resolved that does not depend on a file."""

    spec: DatasetSpec
    root: Path = Path()

    @cached_property
    def channels(self) -> list[str]:
        """Channel names in column order."""
        return [channel.name for channel in self.spec.channels]

    @cached_property
    def expressions(self) -> dict[str, pl.Expr]:
        """Derived columns, parsed."""
        return parse_expressions(self.spec.derive)

    @cached_property
    def derive_inputs(self) -> list[str]:
        """Columns of the files that `derive` reads: one at least, which tells the rows."""
        read = [*self.layout.numeric, *self.layout.text]
        needed = source_columns(self.expressions)
        return [name for name in read if name in needed] or read[:1]

    @cached_property
    def column_attributes(self) -> dict[str, str]:
        """Attribute -> the column it is read from."""
        return {
            name: attribute.column
            for name, attribute in self.spec.attributes.items()
            if isinstance(attribute, ColumnAttribute)
        }

    @cached_property
    def attribute_names(self) -> list[str]:
        """All attributes that a trial may have, sorted."""
        return sorted({*self.spec.attributes, *self._path_groups()} - {"id"})

    @cached_property
    def layout(self) -> DelimitedLayout:
        """How the files are written, and which columns are needed of them."""
        source = self.spec.source
        numeric, text = self._wanted_columns()
        return DelimitedLayout(
            delimiter=source.resolved_delimiter(),
            header=source.header,
            names=source.columns,
            numeric=numeric,
            text=text,
            comment=source.comment,
            nulls=source.nulls,
            final_newline=source.final_newline,
        )

    def _wanted_columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the numeric and the text columns that the files must have."""
        source, attributes = self.spec.source, set(self.spec.attributes)
        wanted = [*self.channels, *self.spec.target_columns()]
        if source.time is not None:
            wanted.append(source.time.column)
        wanted = [name for name in wanted if name not in self.expressions]
        wanted += sorted(source_columns(self.expressions) - attributes - self._path_groups())
        text = tuple(dict.fromkeys(self.column_attributes.values()))
        return tuple(name for name in dict.fromkeys(wanted) if name not in text), text

    def _path_groups(self) -> set[str]:
        return set(re.compile(self.spec.source.trial_id or "").groupindex)

    def check(self) -> Recipe:
        """Return itself, after looking for mistakes that need no file.

        Raises:
            InvalidSpecError: A bad expression, or an attribute that nothing provides.
        """
        known = set(self.spec.attributes) | self._path_groups()
        target = self.spec.windows.target
        wanted = {"split.attribute": self.spec.split.attribute}
        if self.spec.split.by != "trial":
            wanted["split.by"] = self.spec.split.by
        if isinstance(target, PerTrialTarget):
            wanted["windows.target.attribute"] = target.attribute
        for where, name in wanted.items():
            if name is not None and name not in known:
                raise InvalidSpecError(
                    f"{where}: no attribute {name!r}; known: {', '.join(sorted(known)) or 'none'}. "
                    "Name a group in source.trial_id, or add it under attributes."
                )
        self._check_columns()
        return self

    def _check_columns(self) -> None:
        spec = self.spec
        time = [spec.source.time.column] if spec.source.time else []
        columns = [*self.channels, *spec.target_columns(), *time]
        attributes = set(spec.attributes) | self._path_groups()
        twice = sorted((attributes | set(self.column_attributes.values())) & set(columns))
        if twice:
            raise InvalidSpecError(
                f"{twice[0]!r} is both an attribute (or the column of one) and a channel, target "
                "or time column. Name the attribute otherwise, or drop the channel."
            )
        numeric, text = self._wanted_columns()
        if not numeric:
            raise InvalidSpecError(
                "no number is read from the files: all channels are derived from attributes. "
                "Name a column of the files in channels or derive."
            )
        listed = spec.source.columns
        for name in [] if spec.source.header else [*numeric, *text]:
            if listed.count(name) != 1:
                raise InvalidSpecError(
                    f"source.columns: {name!r} is needed and listed {listed.count(name)} times; "
                    f"wanted once. Got: {', '.join(listed)}."
                )
