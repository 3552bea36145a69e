"""The hot index: one row of integers per trial, mapped from Arrow IPC (SPEC section 8)."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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

    def find(self, trial_id: str) -> int | None:
        """Return the number of a trial, by binary search, or None."""
        try:
            wanted, low, high = trial_id.encode(), 0, len(self)
        except UnicodeEncodeError:  # no id holds half a surrogate pair
            return None
        while low < high:
            middle = (low + high) // 2
            if self.id_of(middle).encode() < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self.id_of(low) == trial_id else None

    def id_of(self, number: int) -> str:
        """Return the id of trial `number`."""
        return str(self.ids[number].as_py())


def index_to_bytes(columns: dict[str, Any]) -> bytes:
    """Return `index.arrow` for equally long columns, already sorted by id bytes."""
    schema = PARTS_SCHEMA if "part" in columns else SCHEMA
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _check_bytes(raw: mmap.mmap, promise: Mapping[str, Any]) -> None:
    if file_promise(raw) != promise:
        raise ValueError(f"its bytes are not those the manifest promises: {dict(promise)}")


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
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            _check_bytes(raw, promise)
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        table = table.select(schema.names).cast(schema).combine_chunks()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorruptStoreError(
            f"{path} is not a usable hot index ({error}). Restore it, or open another version."
        ) from error
    columns = {
        f.name: (table[f.name].chunk(0) if table.num_rows else pa.array([], f.type)) for f in schema
    }
    numbers = {
        name: column.to_numpy(zero_copy_only=True)
        for name, column in columns.items()
        if name != "id"
    }
    return HotIndex(ids=columns["id"], **numbers)
