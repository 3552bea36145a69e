"""The hot index: one row of integers per trial, mapped from Arrow IPC (SPEC section 8)."""

from __future__ import annotations

import bisect
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.arrowfile import count_rows
from shards.errors import CorruptStoreError
from shards.identity import file_promise

_TYPES = {
    "id": pa.large_utf8(),
    "shard": pa.int32(),
    "row_start": pa.int64(),
    "n_rows": pa.int64(),
    "n_windows": pa.int64(),
    "split": pa.int16(),
    "weight": pa.float32(),
    "label": pa.float32(),
}
_PLACES = {"part": pa.int32(), "part_row": pa.int64()}
"""Where each row's cold facts are, if they lie in parts."""
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])
PARTS_SCHEMA = pa.schema(
    [*SCHEMA, *(pa.field(name, kind, nullable=False) for name, kind in _PLACES.items())]
)


@dataclass(frozen=True)
class HotIndex:
    """Arrays of `n_trials`, sorted by id bytes; the position is the trial number.

    Attributes:
        ids: Trial ids.
        shard: Shard number, int32.
        row_start: First row in the shard, int64.
        n_rows: Rows, int64.
        n_windows: Windows at the stored parameters, int64.
        split: Code into the manifest's splits, int16.
        weight: Loss weight, float32.
        label: Class code or value, float32, NaN without label.
        part: Part that holds the cold facts, int32; None where the version has no parts.
        part_row: Row in that part, int64; None likewise.
    """

    ids: Any
    shard: npt.NDArray[np.int32]
    row_start: npt.NDArray[np.int64]
    n_rows: npt.NDArray[np.int64]
    n_windows: npt.NDArray[np.int64]
    split: npt.NDArray[np.int16]
    weight: npt.NDArray[np.float32]
    label: npt.NDArray[np.float32]
    part: npt.NDArray[np.int32] | None = None
    part_row: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self.shard)

    def places(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the part that holds each row's cold facts, and the row in that part.

        Raises:
            CorruptStoreError: If the index does not say.
        """
        if self.part is None or self.part_row is None:
            raise CorruptStoreError("the hot index does not say where cold rows are.")
        return self.part, self.part_row

    def find(self, trial_id: str) -> int | None:
        """Return the number of a trial, by binary search, or None."""
        try:
            wanted = trial_id.encode()
        except UnicodeEncodeError:  # no id holds half a surrogate pair
            return None
        number = self.first_not_below(wanted)
        return number if number < len(self) and self.id_bytes(number) == wanted else None

    def first_not_below(self, key: bytes) -> int:
        """Return the number of the first trial whose id is not below `key`, by binary search."""
        return bisect.bisect_left(range(len(self)), key, key=self.id_bytes)

    def id_of(self, number: int) -> str:
        """Return the id of trial `number`."""
        return self.id_bytes(number).decode()

    def id_bytes(self, number: int) -> bytes:
        """Return the id of trial `number` as it is ordered by."""
        edges, texts = self._spelled
        return bytes(texts[edges[number] : edges[number + 1]])

    @cached_property
    def _spelled(self) -> tuple[memoryview, memoryview]:
        """Where each id begins, and all texts: an Arrow scalar takes 5 times as long."""
        _, edges, texts = self.ids.buffers()
        first = self.ids.offset
        edges = memoryview(edges).cast("B").cast("q")[first : first + len(self) + 1]
        return edges, memoryview(texts if texts is not None else b"")


def index_to_bytes(columns: dict[str, Any]) -> bytes:
    """Return `index.arrow` for equally long columns, already sorted by id bytes."""
    schema = PARTS_SCHEMA if "part" in columns else SCHEMA
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _read_batch(path: Path, promise: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch | None:
    """Return the columns of the one record batch, mapped; None where there are no rows."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if file_promise(raw) != promise:
            raise ValueError(f"its bytes are not those the manifest promises: {dict(promise)}")
        n_rows = count_rows(raw)
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        found = file.schema
        places = [found.get_field_index(name) for name in schema.names]  # -1: none, or several
        types = {
            name: found.field(at).type if at >= 0 else None
            for at, name in zip(places, schema.names, strict=True)
        }
        if wrong := [f.name for f in schema if types[f.name] != f.type]:
            raise ValueError(f"its columns {wrong} are missing or of other types: {types}")
        if not n_rows:
            return None
        batch = file.get_batch(0).select(schema.names)
    batch.validate(full=True)  # offsets of texts, and whether they are texts
    if len(batch) != n_rows or any(column.null_count for column in batch.columns):
        raise ValueError(f"it has {len(batch)} rows and nulls; wanted {n_rows} and none")
    return batch


def open_index(path: Path, promise: Mapping[str, Any], *, in_parts: bool = False) -> HotIndex:
    """Map `index.arrow`.

    Its bytes are checked first: Arrow trusts the offsets in a file, and wrong ones end the process.

    Args:
        path: The file.
        promise: Its `size_bytes` and `xxh3_128` of the manifest.
        in_parts: Whether the version keeps its cold index in parts.

    Raises:
        CorruptStoreError: If it is missing or not the file SPEC section 8 describes.
    """
    schema = PARTS_SCHEMA if in_parts else SCHEMA
    try:
        batch = _read_batch(path, promise, schema)
    except (OSError, KeyError, ValueError, struct.error, pa.ArrowException) as error:
        raise CorruptStoreError(
            f"{path} is not a usable hot index ({error}). Restore it, or open another version."
        ) from error
    columns = {f.name: pa.array([], f.type) if batch is None else batch[f.name] for f in schema}
    numbers = {name: _view(column) for name, column in columns.items() if name != "id"}
    for column in numbers.values():
        column.flags.writeable = False  # also where there are no rows, and so nothing is mapped
    return HotIndex(ids=columns["id"], **numbers)


def _view(column: pa.Array) -> npt.NDArray[Any]:
    """Return numbers without nulls as a read-only view: `to_numpy` would import all of pandas."""
    dtype, buffer = column.type.to_pandas_dtype(), column.buffers()[1]
    if not len(column):
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(column), column.offset * np.dtype(dtype).itemsize)
