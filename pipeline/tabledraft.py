"""The `dataset.yaml` that follows from a Parquet table with a trial column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.spec import DatasetSpec
from pipeline.tablecolumns import TableColumns, dataset_name, find_tables, read_columns
from shards.errors import InvalidSpecError

_HEAD = """\
# Written by `trialshards import`. Edit it, and build it again:
#   trialshards build {path} --store STORE
# What each field means: docs/dataset.md
"""
KINDS = ("forecast", "per_step", "per_trial")
LENGTH = 64


@dataclass(frozen=True)
class ImportOptions:
    """What a user says of a table; None: as an export's metadata say, or the plain thing.

    Attributes:
        trial: Column that tells trials apart.
        time: Column of times.
        targets: Columns that are to be predicted; by default all channels, one step ahead.
        kind: `forecast`, `per_step` or `per_trial`; None: `per_trial` where the one target has one
            value in each trial, else `forecast`.
        length: Rows of a window, by default 64.
        stride: Rows between windows, by default a quarter of the length.
        name: Of the data set, by default that of the file.
    """

    trial: str
    time: str | None = None
    targets: tuple[str, ...] = ()
    kind: str | None = None
    length: int | None = None
    stride: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class TableDraft:
    """A `dataset.yaml` as it follows from a table.

    Attributes:
        root: Folder that it must lie in.
        document: What it says.
        left_out: Column -> why nothing is made of it.
    """

    root: Path
    document: Mapping[str, Any]
    left_out: Mapping[str, str]

    def text(self, path: Path) -> str:
        """Return the file."""
        body = yaml.safe_dump(dict(self.document), sort_keys=False, allow_unicode=True)
        return _HEAD.format(path=path.name) + body


def draft_spec(table: Path, options: ImportOptions, *, root: Path | None = None) -> TableDraft:
    """Derive a `dataset.yaml`: numbers are channels, texts that are one per trial attributes.

    What the metadata of a `trialshards export` say is followed: units, targets, windows, splits,
    normalization, categorical and static columns.

    Args:
        table: A Parquet file, or a folder of them.
        options: What is what.
        root: Folder of the `dataset.yaml`; by default the table's.

    Raises:
        InvalidSpecError: If the table or an option cannot be used.
    """
    root, pattern, files = find_tables(table, root)
    draft = _Draft(read_columns(files, options.trial, options.targets), options)
    told = draft.columns.told
    # What is missing in Parquet is null: no text stands for it.
    source: dict[str, Any] = {"files": pattern, "format": "parquet", "nulls": []}
    source["split_on"] = [options.trial]
    if draft.time is not None:
        source["time"] = draft.time_section()
    document: dict[str, Any] = {
        "name": dataset_name(options.name or told.get("name") or table.resolve().stem),
        "source": source,
        "channels": draft.channels(),
    }
    sections = {
        "categorical": draft.encoded("category", "categorical"),
        "attributes": draft.attributes,
        "static": draft.encoded("attribute", "static"),
        "normalize": draft.normalize(),
        "split": draft.split(),
    }
    document |= {name: section for name, section in sections.items() if section}
    document["windows"] = draft.windows()
    try:
        DatasetSpec.model_validate(document)
    except ValueError as error:
        raise InvalidSpecError(
            f"{table}: no usable dataset.yaml follows from its columns and these options: {error}"
        ) from error
    return TableDraft(root, document, draft.left_out())


class _Draft:
    """The sections of one `dataset.yaml`."""

    def __init__(self, columns: TableColumns, options: ImportOptions) -> None:
        self.columns, self.options = columns, options
        for name in options.targets:
            columns.check("--target", name)
        self.time = options.time or next(iter(columns.role("time")), None)
        if self.time is not None:
            columns.check("--time", self.time)
        self._told_target: Mapping[str, Any] = (
            {} if options.targets else columns.told.get("target", {})
        )

    @cached_property
    def kind(self) -> str:
        """What kind of target it is."""
        targets = self.options.targets
        if self.options.kind or not targets:
            kind: str = self.options.kind or self._told_target.get("kind", "forecast")
            return kind
        return "per_trial" if len(targets) == 1 and targets[0] in self._constant else "forecast"

    @property
    def _constant(self) -> Mapping[str, bool]:
        return self.columns.constant

    def channels(self) -> list[Any]:
        """Return the channels: those of an export, or every column of numbers."""
        told, columns = self.columns.told, self.columns
        units = {e["name"]: e.get("unit", "") for e in told.get("columns", ())}
        names = list(columns.role("channel")) if told else list(columns.types)
        taken = {self.options.trial, self.time}
        if self.kind != "forecast":
            taken |= set(self.options.targets)
        names = [name for name in names if columns.is_number(name) and name not in taken]
        if not names:
            lists = told.get("per") == "trial"
            advice = (
                "Export it with --per step." if lists else f"It has: {', '.join(columns.types)}."
            )
            raise InvalidSpecError(f"the table has no column of numbers to be a channel. {advice}")
        return [{"name": n, "unit": units[n]} if units.get(n) else n for n in names]

    @property
    def _channel_names(self) -> list[str]:
        return [one if isinstance(one, str) else one["name"] for one in self.channels()]

    def time_section(self) -> dict[str, str]:
        """Return `source.time`: dates as ISO 8601, numbers as they are."""
        assert self.time is not None
        kind = self.columns.types[self.time]
        dates = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if dates or self.columns.is_text(self.time):
            return {"column": self.time, "format": "iso"}
        return {"column": self.time}

    def encoded(self, role: str, section: str) -> dict[str, str]:
        """Return what an export says of its categorical columns, or of its static attributes."""
        said: Mapping[str, str] = self.columns.told.get(section, {})
        named = self.columns.role(role)
        if role == "attribute":
            named = {n: n for n, a in self.attributes.items() if named.get(a["column"]) in said}
            return {name: said[name] for name in named if name in said}
        return {name: said[of] for name, of in named.items() if of in said}

    @cached_property
    def attributes(self) -> dict[str, dict[str, str]]:
        """`attributes`: the columns of texts with one value in each trial, and the target."""
        told, columns = self.columns.told, self.columns
        if told:
            named = {**columns.role("attribute"), **columns.role("recording")}
            named |= columns.role("split")
            named = {name: of for name, of in named.items() if name in self._constant}
        else:
            skip = {self.options.trial, self.time}
            named = {
                name: name
                for name in self._constant
                if columns.is_text(name) and name not in skip
            }  # fmt: skip
        if self.kind == "per_trial":
            named.setdefault(self._label_column, self._label_column)
        made: dict[str, dict[str, str]] = {}
        for column, of in named.items():
            entry = {"column": column}
            if not self._constant.get(column, True):
                entry["default"] = ""
            made[column if of in made else of] = entry
        return made

    @cached_property
    def _label_column(self) -> str:
        """The column that a target per trial is read from."""
        if not self._told_target:
            if len(self.options.targets) != 1:
                raise InvalidSpecError(
                    f"--target: got {len(self.options.targets)} columns; a target per trial is one."
                )
            (name,) = self.options.targets
            if name not in self._constant:
                raise InvalidSpecError(
                    f"--target: {name!r} has several values in some trials; a target per trial has "
                    "one. Choose another --kind."
                )
            return name
        wanted = self._told_target["columns"][0]
        found = [name for name, of in self.columns.role("attribute").items() if of == wanted]
        found += list(self.columns.role("label"))
        if not found:
            raise InvalidSpecError(f"the column of the label {wanted!r} is gone; name a --target.")
        return found[0]

    def normalize(self) -> dict[str, Any]:
        """Return `normalize`: nothing is done to what is normalized already."""
        told = self.columns.told
        if not told:
            return {}
        said = told["normalization"]
        if told["units"] != "physical" or said["method"] == "none":
            return {"method": "none"}
        if said["scope"] == "mixed" or said["scope"] == "regime":
            return {}
        return {"method": said["method"], "scope": said["scope"]}

    def split(self) -> dict[str, Any]:
        """Return `split`: that of an export with a train split."""
        if "train" not in self.columns.splits:
            return {"by": "recording"} if "recording" in self.attributes else {}
        (column,) = self.columns.role("split")
        name = next(n for n, entry in self.attributes.items() if entry["column"] == column)
        return {"method": "attribute", "attribute": name}

    def windows(self) -> dict[str, Any]:
        """Return `windows`."""
        said = self.columns.told.get("windows", {})
        length = self.options.length or said.get("length", LENGTH)
        given = None if self.options.length else said.get("stride")
        stride = self.options.stride or given or max(1, length // 4)
        short = {"short": said["short"]} if said.get("short", "pad") != "pad" else {}
        return {"length": length, "stride": stride, **short, "target": self._target(said)}

    def _target(self, said: Mapping[str, Any]) -> dict[str, Any]:
        if self.kind == "per_trial":
            column = self._label_column
            name = next(n for n, entry in self.attributes.items() if entry["column"] == column)
            is_value = pa.types.is_floating(self.columns.types[column])
            task = self._told_target.get("task", "value" if is_value else "class")
            return {"kind": "per_trial", "attribute": name, "task": task}
        if self.kind == "per_step":
            return {
                "kind": "per_step",
                "columns": list(self.options.targets or self.columns.role("target")),
            }
        if not self._told_target:
            return {
                "kind": "forecast", "channels": list(self.options.targets or self._channel_names)
            }  # fmt: skip
        names = {of: name for name, of in self.columns.role("channel").items()}
        channels = [names[of] for of in self._told_target["columns"] if of in names]
        steps = {key: said[key] for key in ("horizon", "steps")}
        return {"kind": "forecast", "channels": channels, **steps}

    def left_out(self) -> dict[str, str]:
        """Return column -> why nothing is made of it."""
        used = {self.options.trial, self.time, *self._channel_names}
        used |= {entry["column"] for entry in self.attributes.values()}
        used |= set(self.encoded("category", "categorical"))
        if self.kind == "per_step":
            used |= set(self._target({})["columns"])
        left = dict(self.columns.odd)
        for name in self.columns.types:
            if name in used:
                continue
            if name in self.columns.beside:
                left[name] = "a build makes it itself"
            elif self.columns.is_text(name):
                left[name] = "text with several values in a trial; for `categorical`, add it there"
            else:
                left[name] = f"type {self.columns.types[name]}; for times, name it with --time"
        return left
