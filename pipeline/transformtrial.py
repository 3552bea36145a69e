"""New trials as a store would hold them, and as a batch would deliver them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.finish import FinishedBatch
from pipeline.trials import Bool, Float32, Float64, Int64
from shards import Store
from shards.affine import Delivery
from shards.codes import FittedInput, encode_statics, fitted_inputs, look_up
from shards.windowscale import rescale_window


@dataclass(frozen=True, eq=False)
class NewTrial:
    """One new trial of n rows.

    Attributes:
        id: The trial's id.
        source: The file that it comes from, as it was named; for a frame the id.
        attributes: All that is known of it.
        values: float32 `[n, C]` as stored, NaN where missing.
        observed: bool `[n, C]`, True where the source held a value; None where the store does not
            say it.
        codes: int64 `[n, N]` by the vocabularies of the store; None without categorical columns.
        statics: float32 `[S]`: numbers and indicator columns; None without.
        static_codes: int64 `[E]`; None without.
        time: float64 `[n]`, when each row was; None without a time column.
        starts: int64, the rows where its segments begin; the first is 0.
        delivery: What a batch does to the values.
        number: Place of the trial in `delivery`.
    """

    id: str
    source: str
    attributes: Mapping[str, str]
    values: Float32
    observed: Bool | None
    codes: Int64 | None
    statics: Float32 | None
    static_codes: Int64 | None
    time: Float64 | None
    starts: Int64
    delivery: Delivery
    number: int

    @cached_property
    def delivered(self) -> Float32:
        """float32 `[n, C]`, normalized as in a batch; 0 where missing.

        Of channels of scope `window` by all rows of the trial: see `deliver`.
        """
        return self.deliver()

    def deliver(self, start: int = 0, length: int | None = None) -> Float32:
        """Return the rows of one window as a batch delivers them.

        Args:
            start: First row.
            length: L of the window, which ends with its segment at the latest; by default all
                rows that follow. Channels of scope `window` have other values in another window,
                all others the same.

        Returns:
            float32 `[valid rows, C]`, without the padding; 0 where missing.
        """
        stop = None
        if length is not None:
            gap = np.searchsorted(self.starts, start, side="right")
            stop = min([start + length, *self.starts[gap : gap + 1].tolist()])
        stored = self.values[start:stop]
        out = self.delivery.apply(stored, self.number)
        if self.delivery.windowed and len(stored):
            rescale_window(self.delivery, stored, out, length or len(stored))
        return np.nan_to_num(out, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)


def trials_of(batch: FinishedBatch, said: Mapping[str, str], store: Store) -> list[NewTrial]:
    """Return the trials of a batch; the segments of each lie one after another in it.

    Args:
        batch: Trials as they are stored.
        said: Source -> what to call it.
        store: The version that they are inputs for.
    """
    if batch.rows is None:
        return []
    names = batch.rows["trial" if "trial" in batch.rows.column_names else "id"].to_pylist()
    first = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    rows, ends = batch.rows.take(pa.array(first)), [*first[1:], len(names)]
    edges = np.append(0, np.cumsum(batch.n_rows))
    known = _attributes(rows)
    delivery = store.parse_delivery(lambda name: [one.get(name) for one in known])
    columns, inputs = fitted_inputs(store)
    statics, static_codes = encode_statics(rows, inputs) if inputs else (None, None)
    trials = []
    for number, (at, end) in enumerate(zip(first, ends, strict=True)):
        mine = slice(int(edges[at]), int(edges[end]))
        trials.append(
            NewTrial(
                id=names[at],
                source=said[rows["source"][number].as_py()],
                attributes=known[number],
                values=batch.arrays["values"][mine],
                observed=_unpack(batch.arrays.get("observed"), mine, len(delivery.entries)),
                codes=_deliver(batch, mine, rows.slice(number, 1), columns) if columns else None,
                statics=None if statics is None else statics[number],
                static_codes=None if static_codes is None else static_codes[number],
                time=None if batch.time is None else batch.time[mine],
                starts=edges[at:end] - mine.start,
                delivery=delivery,
                number=number,
            )
        )
    return trials


def _attributes(rows: pa.Table) -> list[dict[str, str]]:
    """Return what is known of each trial, without what is not."""
    if "attributes" not in rows.column_names:
        return [{} for _ in range(rows.num_rows)]
    return [
        {name: text for name, text in one.items() if text is not None}
        for one in rows["attributes"].to_pylist()
    ]


def _unpack(packed: npt.NDArray[np.uint8] | None, mine: slice, n_channels: int) -> Bool | None:
    if packed is None:
        return None
    flags = np.unpackbits(packed[mine], axis=1, count=n_channels, bitorder="little")
    return flags.view(np.bool_)


def _deliver(
    batch: FinishedBatch, mine: slice, row: pa.Table, columns: Sequence[FittedInput]
) -> Int64:
    """Return codes by the vocabularies, for the codes of a trial by its own words."""
    local: npt.NDArray[np.uint16] = batch.arrays["codes"][mine]
    codes = np.empty(local.shape, np.int64)
    words = row["categories"].to_pylist()[0]
    for place, column in enumerate(columns):
        own = look_up(pa.array(words[place], pa.utf8()), column.vocabulary)
        codes[:, place] = np.append(0, own)[local[:, place]]
    return codes
