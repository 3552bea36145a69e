"""Windows in Parquet: shuffled row groups, some in a pool, permuted within it.

Uncompressed and without statistics, which is what decodes fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from read_work import BATCH, CHANNELS, LENGTH, WIDTH, Work, once
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

GROUP, POOL = 2048, 4
SCHEMA = pa.schema([("x", pa.list_(pa.float32(), WIDTH)), ("y", pa.float32())])

Pair = tuple[torch.Tensor, torch.Tensor]


def write(path: Path, work: Work) -> None:
    """Write all windows, `GROUP` of them a row group."""
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, SCHEMA, **options) as writer:
        for x, y in work.cut():
            windows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
            writer.write_table(
                pa.table([windows, pa.array(y)], schema=SCHEMA), row_group_size=GROUP
            )


class RowGroups(IterableDataset[Pair]):
    """Whole batches; what a pool leaves over goes into the next one."""

    def __init__(self, path: Path) -> None:
        self.path, self.epoch = path, 0

    def __iter__(self) -> Iterator[Pair]:
        info = get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        pa.set_cpu_count(1)
        rng = np.random.default_rng(self.epoch)
        self.epoch += 1
        with pq.ParquetFile(self.path, memory_map=True) as file:
            groups = rng.permutation(file.num_row_groups)[worker::n_workers]
            x, y = np.empty((0, WIDTH), np.float32), np.empty(0, np.float32)
            for first in range(0, len(groups), POOL):
                table = file.read_row_groups(
                    groups[first : first + POOL].tolist(), use_threads=False
                )
                lists = [
                    chunk.flatten().to_numpy().reshape(-1, WIDTH) for chunk in table["x"].chunks
                ]
                x, y = np.concatenate([x, *lists]), np.concatenate([y, table["y"].to_numpy()])
                order = rng.permutation(len(x))
                is_last = first + POOL >= len(groups)
                whole = len(x) if is_last else len(x) // BATCH * BATCH
                for begin in range(0, whole, BATCH):
                    mine = order[begin : begin + BATCH]
                    windows = torch.from_numpy(x[mine]).view(-1, LENGTH, CHANNELS)
                    yield windows, torch.from_numpy(y[mine, None])
                x, y = x[order[whole:]], y[order[whole:]]


def batches(folder: Path, workers: int) -> Iterator[Pair]:
    path = once(folder / "windows.parquet", lambda part: write(part, Work(folder)))
    loader = DataLoader(
        RowGroups(path), batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader
