"""Hugging Face datasets, tuned by hand: whole batches as Arrow, and no copy after that.

Windows lie in an Arrow stream file, which is the library's own format. `ds[indices]` with format
"arrow" gathers them; the tensor is a view of what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from read_work import BATCH, CHANNELS, LENGTH, WIDTH, Work, once
from torch.utils.data import DataLoader, Dataset

Pair = tuple[torch.Tensor, torch.Tensor]


def write(path: Path, work: Work, kind: str) -> None:
    """Write all windows: as lists of numbers, or as bytes."""
    x_type = pa.list_(pa.float32(), WIDTH) if kind == "list" else pa.large_binary()
    schema = pa.schema([("x", x_type), ("y", pa.float32())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for x, y in work.cut():
            if kind == "list":
                windows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
            else:
                windows = pa.array([row.tobytes() for row in x], pa.large_binary())
            writer.write_batch(pa.record_batch([windows, pa.array(y)], schema=schema))


class Tuned(Dataset[Pair]):
    """A map-style data set that takes the indices of a whole batch."""

    def __init__(self, path: Path) -> None:
        self.data = datasets.Dataset.from_file(str(path)).with_format("arrow")

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, items: list[int]) -> Pair:
        table = self.data[items]
        column = table["x"].combine_chunks()
        if pa.types.is_large_binary(column.type):
            starts, data = column.buffers()[1:]
            first = int(np.frombuffer(starts, np.int64)[column.offset])
        else:
            flat = column.flatten()
            data, first = flat.buffers()[1], flat.offset * 4
        x = torch.frombuffer(data, dtype=torch.float32, offset=first, count=len(column) * WIDTH)
        return x.view(-1, LENGTH, CHANNELS), torch.tensor(table["y"].to_numpy())[:, None]


def as_it_is(batch: Pair) -> Pair:
    return batch


def batches(folder: Path, workers: int, kind: str) -> Iterator[Pair]:
    path = once(folder / f"windows-{kind}.arrow", lambda part: write(part, Work(folder), kind))
    loader = DataLoader(
        Tuned(path), batch_size=BATCH, shuffle=True, collate_fn=as_it_is,
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader
