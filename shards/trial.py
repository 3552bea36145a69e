"""One trial by its id: its rows, its time, what is known of it, and nothing of any other trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.affine import Delivery, scope_kind
from shards.clock import row_times
from shards.errors import CorruptStoreError, InvalidSpecError
from shards.identity import pairs_digest

if TYPE_CHECKING:
    from shards.reader import Store

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[Any]

_FACTS = ("digest", "source", "attributes", "time_step", "segment_start")
_UNITS = ("physical", "delivered")


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """A trial of an open store; `store["s07/0031"]`.

    Rows are read when they are asked for. Where gaps cut the trial into segments, its rows are
    those of all segments, one after another: a copy, in which `time` jumps at each gap. Of one
    segment, and so of a trial without gaps, `values` is a view of the map.

    Attributes:
        store: The open version.
        id: The trial's id, or that of one segment, such as `s07/0031#2`.
        numbers: Trial numbers of its segments, in order of time: what `Batch.trial` says.
    """

    store: Store
    id: str
    numbers: tuple[int, ...]

    @property
    def number(self) -> int:
        """Trial number of its first segment."""
        return self.numbers[0]

    @cached_property
    def segments(self) -> tuple[Trial, ...]:
        """Its segments, each a trial of its own; the trial itself where there is one."""
        if len(self.numbers) == 1:
            return (self,)
        id_of = self.store.index.id_of
        return tuple(Trial(self.store, id_of(number), (number,)) for number in self.numbers)

    @property
    def n_rows(self) -> int:
        """Rows of all segments."""
        return int(self.store.index.n_rows[list(self.numbers)].sum())

    @property
    def n_windows(self) -> int:
        """Windows at the stored parameters."""
        return int(self.store.index.n_windows[list(self.numbers)].sum())

    @property
    def split(self) -> str:
        """Name of its split."""
        return self.store.manifest.splits[int(self.store.index.split[self.number])]

    @property
    def weight(self) -> float:
        """Loss weight of its windows."""
        return float(self.store.index.weight[self.number])

    @property
    def label(self) -> str | float | None:
        """Class name, or value; None without one, or of a class that no train trial has."""
        label, classes = (
            float(self.store.index.label[self.number]),
            self.store.manifest.target.classes,
        )
        if math.isnan(label):
            return None
        return label if classes is None else classes[int(label)]

    @property
    def attributes(self) -> dict[str, str | None]:
        """What its name, folder or table says of it."""
        return dict(self._facts.get("attributes") or {})

    @property
    def source(self) -> str | None:
        """Path of the file it came from, below the source root."""
        return self._facts.get("source")

    @property
    def digest(self) -> str:
        """Its digest (SPEC section 7); of several segments, SHA-256 over their (id, digest) pairs.

        It changes if and only if something does that a model could see of it.
        """
        if len(self.numbers) == 1:
            return str(self._facts.get("digest") or "")
        return pairs_digest((segment.id, segment.digest) for segment in self.segments)

    # Rows

    @property
    def values(self) -> Float32:
        """float32 `[rows, channels]` as stored, read-only; NaN where missing."""
        return self._rows("values")

    def delivered(self) -> Float32:
        """Return float32 `[rows, channels]` as a stream delivers them, but NaN where missing.

        Channels of scope `window` stay in physical units: rows alone make no window.
        """
        delivery, number = self._delivery
        return _joined([delivery.apply(s.values, number) for s in self.segments])

    def physical(self) -> Float32:
        """Return float32 `[rows, channels]` in physical units, NaN where missing."""
        own, values = self._delivery[0].own, self.values
        if not len(own):
            return values
        constants = self._read("offset", "scale")
        offset, scale = (np.full(values.shape[1], x, np.float32) for x in (0, 1))
        for name, out in (("offset", offset), ("scale", scale)):
            found = np.array(constants.get(name) or [], np.float32)
            if found.shape != out.shape:
                raise self._broken(f"{len(found)} of {name} for {len(out)} channels")
            out[own] = found[own]
        physical: Float32 = values * scale + offset
        return physical

    @property
    def observed(self) -> npt.NDArray[np.bool_] | None:
        """Flags `[rows, channels]`: what the source held; None where the store does not keep it."""
        if not self.store.manifest.observed:
            return None
        n_channels = len(self.store.manifest.channels)
        bits = np.unpackbits(self._rows("observed"), axis=1, count=n_channels, bitorder="little")
        return bits.view(np.bool_)

    @property
    def targets(self) -> Float32 | None:
        """float32 `[rows, columns]` of a target per step; None for other targets."""
        return self._rows("targets") if self.store.manifest.target.kind == "per_step" else None

    @property
    def codes(self) -> npt.NDArray[np.uint16] | None:
        """uint16 `[rows, categorical columns]`: 0, or 1 + place in `categories`; None without."""
        return self._rows("codes") if self.store.manifest.codes else None

    @cached_property
    def categories(self) -> tuple[tuple[str, ...], ...]:
        """The trial's own words of each categorical column."""
        announced = self.store.manifest.codes
        lists = self._read("categories").get("categories") or [] if announced else []
        if len(lists) != len(announced) or None in lists:
            raise self._broken(f"{len(lists)} lists of words for {len(announced)} columns")
        return tuple(tuple(words) for words in lists)

    def texts(self) -> dict[str, pa.Array]:
        """Return each categorical column as text, `[rows]` utf8, null where missing."""
        codes, names = self.codes, [entry.name for entry in self.store.manifest.codes]
        if codes is None:
            return {}
        columns = zip(names, self.categories, codes.T, strict=True)
        try:
            return {name: _decode(words, column) for name, words, column in columns}
        except pa.ArrowException as error:
            raise self._broken(f"codes without words ({error})") from error

    @property
    def time(self) -> npt.NDArray[np.float64] | None:
        """float64 `[rows]`, when each row was measured; None where the store does not say."""
        times = [segment._segment_time() for segment in self.segments]
        known = [time for time in times if time is not None]
        return _joined(known) if len(known) == len(times) else None

    def frame(self, units: str = "physical") -> pa.Table:
        """Return the rows as an Arrow table, null where missing.

        Columns: `time` where it is known, `segment` (from 0) where there are several, the
        channels, the targets per step, and the categorical columns as text. A name that is taken
        already gets its role in front: `target.q1`, `category.time`.

        Args:
            units: `physical`, or `delivered` (normalized).

        Raises:
            InvalidSpecError: If `units` is another word.
        """
        if units not in _UNITS:
            raise InvalidSpecError(f"units is {units!r}; wanted 'physical' or 'delivered'.")
        values = self.physical() if units == "physical" else self.delivered()
        manifest, clock, targets = self.store.manifest, self.time, self.targets
        named: list[tuple[str, str, Any]] = []
        if clock is not None:
            named.append(("row", "time", clock))
        if len(self.numbers) > 1:
            named.append(("row", "segment", self._segment_of_rows()))
        named += [("channel", c.name, v) for c, v in zip(manifest.channels, values.T, strict=True)]
        if targets is not None:
            names = manifest.target.columns
            named += [("target", n, t) for n, t in zip(names, targets.T, strict=True)]
        named += [("category", name, texts) for name, texts in self.texts().items()]
        columns: dict[str, Any] = {}
        for role, name, part in named:
            free = f"{role}.{name}" if name in columns else name
            columns[free] = part if isinstance(part, pa.Array) else pa.array(part, from_pandas=True)
        return pa.table(columns)

    def __repr__(self) -> str:
        """Return one line that says what it is."""
        rows = f"{self.n_rows} rows x {len(self.store.manifest.channels)} channels"
        parts = [repr(self.id), rows, f"split {self.split!r}"]
        if self.label is not None:
            parts.append(f"label {self.label!r}")
        if len(self.numbers) > 1:
            parts.append(f"{len(self.numbers)} segments")
        return f"<Trial {', '.join(parts)}>"

    # What it is made of

    def _rows(self, array: str) -> Rows:
        if self.store.manifest.layout == "windows":
            raise InvalidSpecError(
                f"{self.store.path} has layout 'windows': it holds windows, not the rows of trial "
                f"{self.id!r}. Read it with loaders.TrialStream, or build a store with "
                "shards.layout: rows."
            )
        return _joined([self.store.trial_rows(number, array) for number in self.numbers])

    def _segment_time(self) -> npt.NDArray[np.float64] | None:
        step, start = self._facts.get("time_step"), self._facts.get("segment_start")
        if step is None or start is None or math.isnan(start):
            return None
        if not math.isnan(step):
            return row_times(start, step, self.n_rows)
        shard = self.store.manifest.shards[int(self.store.index.shard[self.number])]
        if "time" not in shard.arrays and self.store.manifest.layout == "rows":
            raise self._broken("irregular times that its shard does not hold")
        clock: npt.NDArray[np.float64] = self._rows("time")[:, 0]
        return clock

    def _segment_of_rows(self) -> npt.NDArray[np.int32]:
        n_rows = self.store.index.n_rows[list(self.numbers)]
        return np.repeat(np.arange(len(n_rows), dtype=np.int32), n_rows)

    @cached_property
    def _delivery(self) -> tuple[Delivery, int]:
        """How its rows are delivered, and its number there."""
        scopes = {scope_kind(scope) for _, scope in self.store.entries}
        if "group" not in scopes:
            return self.store.delivery, self.number
        # Its own group is all that matters here; `Store.delivery` knows that of every trial.
        return self.store.parse_delivery(lambda name: [self.attributes.get(name)]), 0

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        return self._read(*_FACTS)

    def _broken(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self.store.path} {self.store.version}: trial {self.id!r} has {what}. "
            f"Run: trialshards verify {self.store.path}"
        )

    def _read(self, *columns: str) -> Mapping[str, Any]:
        return self.store.cold_index.facts(self.number, columns)


def _joined(parts: Sequence[Rows]) -> Rows:
    """Return arrays below each other, read-only; one alone as it is."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    whole.flags.writeable = False
    return whole


def _decode(words: Sequence[str], codes: npt.NDArray[np.uint16]) -> pa.Array:
    places = pa.array(codes.astype(np.int64) - 1, mask=codes == 0)
    return pa.array(words, pa.utf8()).take(places)
