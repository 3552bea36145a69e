"""Trials as rows of a plain table: which columns there are, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.clock import row_times
from shards.reader import Store

METADATA = b"trialshards"
"""Key of the Parquet schema metadata that says what each column is."""
_COLD = ("label", "trial", "categories", "time_step", "segment_start")


@dataclass(frozen=True)
class Column:
    """One column of an export.

    Attributes:
        name: In the file.
        role: `trial`, `recording`, `split`, `row`, `time`, `label`, `channel`, `observed`,
            `target`, `category` or `attribute`.
        of: What the store calls it.
        type: Of one value.
    """

    name: str
    role: str
    of: str
    type: pa.DataType

    @property
    def is_constant(self) -> bool:
        """Whether it says one thing for all rows of a trial."""
        return self.role in ("trial", "recording", "split", "label", "attribute")


class TrialTable:
    """The trials of a store as tables, one trial or a part of one at a time.

    Attributes:
        store: The version.
        physical: Values in physical units; else as delivered.
        per: A row per time `step`, or a row with lists per `trial`.
        attributes: Name -> texts, one per trial number.

    Args:
        observed: Add a column `<channel>.observed` per channel, where the store knows it.
    """

    def __init__(
        self, store: Store, *, physical: bool, per: str = "step", observed: bool = False
    ) -> None:
        self.store, self.physical, self.per = store, physical, per
        self._observed = observed and store.manifest.observed
        known = store.cold_index
        self._cold = {name: known.column(name) for name in _COLD if name in known.types}
        self.attributes = {name: known.attribute(name) for name in known.attributes}

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in order; names differ also where case is ignored, as SQL does."""
        text, manifest = pa.utf8(), self.store.manifest
        channels = [channel.name for channel in manifest.channels]
        per_trial = manifest.target.kind == "per_trial"
        label = pa.float32() if manifest.target.classes is None else text
        wanted = [
            ("trial", "trial", text),
            *([("recording", "recording", text)] if "trial" in self._cold else []),
            ("split", "split", text),
            ("row", "row", pa.int64()),
            *([("time", "time", pa.float64())] if self.has_time else []),
            *([("label", "label", label)] if per_trial else []),
            *(("channel", name, pa.float32()) for name in channels),
            *(("observed", name, pa.bool_()) for name in channels if self._observed),
            *(("target", name, pa.float32()) for name in self._targets),
            *(("category", entry.name, text) for entry in manifest.codes),
            *(("attribute", name, text) for name in self.attributes),
        ]
        taken: set[str] = set()
        return tuple(Column(_free_name(r, of, taken), r, of, kind) for r, of, kind in wanted)

    @property
    def renamed(self) -> dict[str, str]:
        """Name in the export -> name in the store, where another column had the name before."""
        return {
            column.name: column.of
            for column in self.columns
            if column.name not in (column.of, f"{column.of}.observed")
        }

    @property
    def _targets(self) -> Sequence[str]:
        target = self.store.manifest.target
        return target.columns if target.kind == "per_step" else ()

    @cached_property
    def has_time(self) -> bool:
        """Whether any trial says when its rows were."""
        if not {"segment_start", "time_step"} <= set(self._cold):
            return False
        starts = self._cold["segment_start"].to_numpy(zero_copy_only=False)
        return bool(np.isfinite(starts).any())

    def time(self, number: int, rows: slice) -> npt.NDArray[np.float64] | None:
        """Return float64 `[rows]`, the times of some rows of a trial; None where nobody knows."""
        if not self.has_time:
            return None
        start = self._cold["segment_start"][number].as_py()
        step = self._cold["time_step"][number].as_py()
        if start is None or np.isnan(start):
            return None
        if step is None or np.isnan(step):
            return np.asarray(self.store.trial_rows(number, "time")[rows, 0], np.float64)
        return row_times(start, step, int(self.store.index.n_rows[number]))[rows]

    def values(self, number: int, rows: slice) -> npt.NDArray[np.float32]:
        """Return float32 `[rows, channels]`, NaN where missing."""
        read = self.store.physical_rows if self.physical else self.store.deliver_rows
        return read(number, rows)

    def observed(self, number: int, rows: slice) -> npt.NDArray[np.bool_] | None:
        """Return bool `[rows, channels]`: the source held the value; None where nobody knows."""
        if not self.store.manifest.observed:
            return None
        bits = self.store.trial_rows(number, "observed")[rows]
        n_channels = len(self.store.manifest.channels)
        return np.unpackbits(bits, axis=1, count=n_channels, bitorder="little").astype(np.bool_)

    def categories(self, number: int) -> list[list[str]]:
        """Return the words of each categorical column that the trial's codes count from 1."""
        found: list[list[str]] = self._cold["categories"][number].as_py()
        return found

    def label(self, number: int) -> str | float | None:
        """Return the class by name, or the value; None without one."""
        target, value = self.store.manifest.target, float(self.store.index.label[number])
        if target.classes is None:
            return None if np.isnan(value) else value
        text: str | None = self._label_texts[number].as_py()
        if text is None and not np.isnan(value):
            return target.classes[int(value)]
        return text

    @cached_property
    def _label_texts(self) -> pa.Array:
        # The attribute also names classes that no train trial has, which have no code.
        if "label" in self._cold:
            return self._cold["label"]
        name = self.store.manifest.target.columns[0]
        return self.attributes.get(name, pa.nulls(len(self.store.index), pa.utf8()))

    def attribute(self, number: int) -> dict[str, str | None]:
        """Return the attributes of a trial."""
        return {name: texts[number].as_py() for name, texts in self.attributes.items()}

    def constants(self, number: int) -> dict[tuple[str, str], Any]:
        """Return (role, name in the store) -> value of the columns that are one per trial."""
        split = self.store.manifest.splits[int(self.store.index.split[number])]
        found: dict[tuple[str, str], Any] = {
            ("trial", "trial"): self.store.index.id_of(number),
            ("split", "split"): split,
            ("label", "label"): self.label(number),
        }
        if "trial" in self._cold:
            found["recording", "recording"] = self._cold["trial"][number].as_py()
        return found | {("attribute", k): v for k, v in self.attribute(number).items()}

    def series(self, number: int, rows: slice) -> dict[tuple[str, str], pa.Array]:
        """Return (role, name in the store) -> array of the columns that have a value per row."""
        start, stop, _ = rows.indices(int(self.store.index.n_rows[number]))
        found: dict[tuple[str, str], pa.Array] = {("row", "row"): pa.array(np.arange(start, stop))}
        if self.has_time:
            time = self.time(number, rows)
            found["time", "time"] = (
                pa.nulls(stop - start, pa.float64()) if time is None else pa.array(time)
            )
        channels = [channel.name for channel in self.store.manifest.channels]
        found |= _by_column("channel", channels, self.values(number, rows))
        if self._observed:
            found |= _by_column("observed", channels, self.observed(number, rows))
        if self._targets:
            targets = self.store.trial_rows(number, "targets")[rows]
            found |= _by_column("target", self._targets, targets)
        if self.store.manifest.codes:
            codes = self.store.trial_rows(number, "codes")[rows]
            for j, words in enumerate(self.categories(number)):
                name = self.store.manifest.codes[j].name
                texts = pa.array([None, *words], pa.utf8())
                found["category", name] = texts.take(pa.array(codes[:, j].astype(np.int32)))
        return found

    def describe(self) -> dict[str, Any]:
        """Return what the schema metadata say: how an import finds the way back."""
        manifest = self.store.manifest
        units = {channel.name: channel.unit for channel in manifest.channels}
        described = []
        for column in self.columns:
            entry = {"name": column.name, "role": column.role, "of": column.of}
            if column.role == "channel" and units[column.of]:
                entry["unit"] = units[column.of]
            described.append(entry)
        return {
            "name": manifest.name,
            "per": self.per,
            "units": "physical" if self.physical else "delivered",
            "columns": described,
            "target": {"kind": manifest.target.kind, "columns": list(manifest.target.columns),
                       "task": "value" if manifest.target.classes is None else "class"},
            "windows": manifest.windows.as_dict(),
            "normalization": dict(manifest.normalization),
            "categorical": {entry.name: entry.encoding for entry in manifest.codes},
            "static": {entry.name: entry.encoding for entry in manifest.statics},
            "fingerprint": manifest.fingerprint,
        }  # fmt: skip

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema of the files."""
        fields = [
            pa.field(c.name, c.type if self.per == "step" or c.is_constant else pa.list_(c.type))
            for c in self.columns
            if self.per == "step" or c.role != "row"
        ]
        said = json.dumps(self.describe(), separators=(",", ":"), sort_keys=True)
        return pa.schema(fields, metadata={METADATA: said.encode()})

    def batches(self, number: int, n_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a trial as record batches of `n_rows` rows at most, or as one with lists."""
        total, by_step = int(self.store.index.n_rows[number]), self.per == "step"
        constants = self.constants(number)
        step = n_rows if by_step else max(total, 1)
        for start in range(0, total, step):
            series = self.series(number, slice(start, start + step))
            length = len(series["row", "row"])
            arrays = []
            for column in self.columns:
                key = column.role, column.of
                if column.is_constant:
                    one = pa.scalar(constants[key], column.type)
                    arrays.append(pa.repeat(one, length if by_step else 1))
                elif by_step:
                    arrays.append(series[key])
                elif column.role != "row":
                    ends = pa.array([0, length], pa.int32())
                    arrays.append(pa.ListArray.from_arrays(ends, series[key]))
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _by_column(
    role: str, names: Sequence[str], rows: npt.NDArray[Any] | None
) -> Mapping[tuple[str, str], pa.Array]:
    """Return `[rows, columns]` by column; NaN becomes null, which no reader takes for a number."""
    if rows is None:
        return {}
    columns = np.ascontiguousarray(rows.T)
    return {(role, n): pa.array(columns[j], from_pandas=True) for j, n in enumerate(names)}


def _free_name(role: str, of: str, taken: set[str]) -> str:
    """Return a name that no earlier column has: with its role in front where it is taken."""
    name = f"{of}.observed" if role == "observed" else of
    while name.casefold() in taken:
        name = f"{role}.{name}"
    taken.add(name.casefold())
    return name
