"""Grain over a raw map: a window per element as its guide has it, or a whole batch at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import torch
from absl import flags
from read_work import BATCH, CHANNELS, LENGTH, WIDTH, Work


class Windows:
    """Random access to windows; opens the map where it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_windows = folder, len(Work(folder).windows)
        self.work: Work | None = None

    def __len__(self) -> int:
        return self.n_windows

    def _opened(self) -> Work:
        if self.work is None:
            self.work = Work(self.folder)
        return self.work

    def __getitem__(self, item: int) -> dict[str, Any]:
        work = self._opened()
        start = work.windows[item]
        return {
            "x": work.rows[start : start + LENGTH],
            "y": work.rows[start + LENGTH, :1],
        }

    def gather(self, items: list[int]) -> dict[str, Any]:
        """Return a whole batch, as one who has tuned it by hand would."""
        work = self._opened()
        start = work.windows[np.asarray(items)]
        blocks = np.lib.stride_tricks.as_strided(
            work.rows, (len(work.rows) - LENGTH, WIDTH), (work.rows.strides[0], 4), writeable=False
        )
        return {
            "x": blocks[start].reshape(-1, LENGTH, CHANNELS),
            "y": work.rows[start + LENGTH, :1],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "work": None}


def as_list(items: list[int]) -> list[int]:
    return list(items)


def batches(
    folder: Path, workers: int, kind: str, threads_ahead: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
    source, epoch = Windows(folder), 0
    while True:
        if kind == "element":
            data = grain.MapDataset.source(source).seed(epoch).shuffle().batch(BATCH)
        else:
            data = grain.MapDataset.range(len(source)).seed(epoch).shuffle()
            data = data.batch(BATCH, batch_fn=as_list).map(source.gather)
        threads = 1 if workers else threads_ahead
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 if threads else 0)
        loop = data.to_iter_dataset(options)
        if workers:
            loop = loop.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
            )
        for batch in loop:
            yield torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])
        epoch += 1
