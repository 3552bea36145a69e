"""A specification with everything resolved that does not depend on a raw file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.causal import check_causal
from pipeline.derive import Derivations, check_calendar
from pipeline.normalize import check_normalization
from pipeline.rowwise import is_row_wise
from pipeline.sections import ColumnAttribute, PerTrialTarget, RunsAttribute
from pipeline.sources.columnar import ColumnarLayout
from pipeline.sources.delimited import DelimitedLayout
from pipeline.spec import DatasetSpec
from pipeline.tables import JoinedTables, read_tables
from pipeline.timeline import check_format
from shards.errors import InvalidSpecError


@dataclass(frozen=True)
class Recipe:
    """A specification with everything resolved that does not depend on a raw file.

    Attributes:
        spec: What the user wrote.
        root: Folder of `dataset.yaml`, which tables and hooks are below.
    """

    spec: DatasetSpec
    root: Path = Path()

    @cached_property
    def channels(self) -> list[str]:
        """Channels that are read or derived, in column order."""
        return [channel.name for channel in self.spec.channels]

    @cached_property
    def since(self) -> list[str]:
        """Channels whose age is a channel too, behind the others."""
        chosen = self.spec.clean.time_since_observed
        names = self.channels if chosen is True else chosen or ()
        return [name for name in self.channels if name in names]

    @cached_property
    def entries(self) -> list[tuple[str, str]]:
        """Method and scope of normalization of each stored channel."""
        return [self.spec.normalize.of_channel(channel.name) for channel in self.spec.inputs()]

    @cached_property
    def derivations(self) -> Derivations:
        """Derived columns, parsed."""
        return Derivations.of(self.spec.derive, self.root)

    @cached_property
    def is_row_wise(self) -> bool:
        """Whether every derived column looks at its own row alone."""
        return is_row_wise(self.derivations)

    @cached_property
    def derive_inputs(self) -> list[str]:
        """Columns of a trial that `derive` reads: one at least, which tells the rows."""
        read = [*self._numeric, *self._text]
        needed = self.derivations.source_columns()
        return [name for name in read if name in needed] or read[:1]

    @cached_property
    def column_attributes(self) -> dict[str, ColumnAttribute]:
        """Attributes that are read from columns."""
        return {
            name: attribute
            for name, attribute in self.spec.attributes.items()
            if isinstance(attribute, ColumnAttribute)
        }

    @cached_property
    def runs_attributes(self) -> dict[str, RunsAttribute]:
        """Attributes that follow from a trial's place in its file."""
        return {
            name: attribute
            for name, attribute in self.spec.attributes.items()
            if isinstance(attribute, RunsAttribute)
        }

    @cached_property
    def attribute_names(self) -> list[str]:
        """All attributes that a trial may have, sorted."""
        return sorted({*self.spec.attributes, *self._found_groups()} - {"id"})

    @cached_property
    def has_segments(self) -> bool:
        """Whether a trial may lie in several index rows."""
        time = self.spec.source.time
        return time is not None and time.max_gap is not None

    @cached_property
    def tables(self) -> JoinedTables:
        """Attribute tables, for trials that are only known once their file is read.

        Raises:
            InvalidSpecError: If one cannot be used.
        """
        return read_tables(self.root, self.spec.attributes)

    @cached_property
    def besides(self) -> dict[str, str]:
        """What decides a bucket's content and is neither in the specification nor in its files."""
        found = {"hooks": self.derivations.hook_digest}
        if self.spec.source.holds_many:
            found["tables"] = self.tables.digest
        return found

    @cached_property
    def time_is_text(self) -> bool:
        """Whether the time column is read as text."""
        time = self.spec.source.time
        return time is not None and time.format != "number"

    @cached_property
    def pivoted(self) -> list[str]:
        """Columns that a pivot shall make."""
        pivot = self.spec.source.pivot
        return [name for name in self._numeric if pivot is not None and name != pivot.index]

    @cached_property
    def layout(self) -> DelimitedLayout | ColumnarLayout:
        """How the files are written, and which columns are needed of them."""
        source, family = self.spec.source, self.spec.source.family
        numeric, text = self._file_columns
        if family != "delimited":
            return ColumnarLayout(
                family=family, names=source.columns, numeric=numeric, text=text, nulls=source.nulls
            )
        return DelimitedLayout(
            delimiter=source.resolved_delimiter(),
            header=source.has_names,
            names=source.columns,
            numeric=numeric,
            text=text,
            comment=source.comment,
            nulls=source.nulls,
            final_newline=source.final_newline,
            encoding=source.encoding,
        )

    @cached_property
    def _file_columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The numeric and the text columns that are needed of the files themselves."""
        pivot = self.spec.source.pivot
        if pivot is None:
            return self._numeric, self._text
        if self.time_is_text:
            return (pivot.values,), (pivot.columns, pivot.index)
        return (pivot.index, pivot.values), (pivot.columns,)

    @cached_property
    def _text(self) -> tuple[str, ...]:
        """Columns of a trial that are read as text."""
        source = self.spec.source
        if source.pivot is not None:
            return (source.pivot.index,) if self.time_is_text else ()
        columns = [attribute.column for attribute in self.column_attributes.values()]
        columns += [*self.spec.categorical, *source.split_on]
        if source.time is not None and self.time_is_text:
            columns.append(source.time.column)
        return tuple(dict.fromkeys(columns))

    @cached_property
    def _numeric(self) -> tuple[str, ...]:
        """Columns of a trial that are read as numbers."""
        spec = self.spec
        wanted = [*self.channels, *spec.target_columns()]
        if spec.source.time is not None:
            wanted.append(spec.source.time.column)
        wanted = [name for name in wanted if name not in self.derivations]
        if spec.source.pivot is not None:
            wanted += [spec.source.pivot.index]
            wanted += [attribute.column for attribute in self.column_attributes.values()]
        known = set(spec.attributes) | self._found_groups()
        wanted += sorted(self.derivations.source_columns() - known)
        return tuple(name for name in dict.fromkeys(wanted) if name not in self._text)

    def _found_groups(self) -> set[str]:
        """Return attributes that the path or the file itself names."""
        source = self.spec.source
        groups = set(re.compile(source.trial_id or "").groupindex) | set(source.split_on)
        if source.blocks is not None and source.blocks.head is not None:
            groups |= set(re.compile(source.blocks.head).groupindex)
        return groups

    def check(self) -> Recipe:
        """Return itself, after looking for mistakes that need no file.

        Raises:
            InvalidSpecError: A bad expression, or an attribute that nothing provides.
        """
        known = set(self.spec.attributes) | self._found_groups()
        for where, name in self._wanted_attributes().items():
            if name not in known:
                raise InvalidSpecError(
                    f"{where}: no attribute {name!r}; known: {', '.join(sorted(known)) or 'none'}. "
                    "Name a group in source.trial_id, or add it under attributes."
                )
        self._check_columns()
        check_normalization(self.spec)
        time = self.spec.source.time
        check_calendar(self.derivations, is_date=time is not None and time.is_date)
        if time is not None:
            check_format(time)
        if self.spec.causal:
            check_causal(self.spec)
        return self

    def _wanted_attributes(self) -> dict[str, str]:
        """Return field -> the attribute it names."""
        spec, target = self.spec, self.spec.windows.target
        wanted: dict[str, Any] = {
            "split.attribute": spec.split.attribute,
            "split.by": None if spec.split.by == "trial" else spec.split.by,
            "split.stratify": spec.split.stratify,
            **{f"static.{name}": name for name in spec.static},
        }
        if isinstance(target, PerTrialTarget):
            wanted["windows.target.attribute"] = target.attribute
        for _, scope in self.entries:
            if scope.startswith("group:"):
                wanted[f"normalize.scope {scope!r}"] = scope.removeprefix("group:")
        return {where: name for where, name in wanted.items() if name is not None}

    def _check_columns(self) -> None:
        spec = self.spec
        time = [spec.source.time.column] if spec.source.time else []
        columns = [*self.channels, *spec.target_columns(), *time]
        attributes = set(spec.attributes) | self._found_groups()
        sources = {attribute.column for attribute in self.column_attributes.values()}
        twice = sorted((attributes | sources) & set(columns))
        if twice:
            raise InvalidSpecError(
                f"{twice[0]!r} is both an attribute (or the column of one) and a channel, target "
                "or time column. Name the attribute otherwise, or drop the channel."
            )
        numeric, text = self._file_columns
        if not numeric:
            raise InvalidSpecError(
                "no number is read from the files: all channels are derived from attributes. "
                "Name a column of the files in channels or derive."
            )
        listed = spec.source.columns
        for name in [] if spec.source.has_names else [*numeric, *text]:
            if listed.count(name) != 1:
                raise InvalidSpecError(
                    f"source.columns: {name!r} is needed and listed {listed.count(name)} times; "
                    f"wanted once. Got: {', '.join(listed)}."
                )
