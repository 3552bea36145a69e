"""Our methods of `bench/read.py`: the stream, and the plain copies that it is held against."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from read_work import BATCH, CHANNELS, WIDTH, Work

from loaders import TrialStream
from shards import Store

Pairs = Iterator[tuple[torch.Tensor, Any]]


def batches(folder: Path, kind: str, **setting: Any) -> Pairs:
    return stream(**setting) if kind == "stream" else copies(folder, **setting)


def stream(store: str) -> Pairs:
    """Yield values and targets of whole batches, `Batch` construction included."""
    epochs = TrialStream(store, batch_size=BATCH)
    while True:
        for batch in epochs:
            yield batch.values, batch.targets


def copies(folder: Path, source: str, order: str, store: str = "") -> Pairs:
    """Yield one reused buffer with as many bytes as a batch has.

    Args:
        folder: Of the work.
        source: `map`: the file of a store of one shard. `memory`: all rows, in huge pages where
            the system has them.
        order: `random`: blocks of the size of a window, where windows begin. `sequential`.
        store: Of one shard.
    """
    work = Work(folder)
    array = work.rows.reshape(-1).copy()
    if source == "map":
        array = Store(store).map_array("values", [0]).bytes.view(np.float32)
    with warnings.catch_warnings():  # the map is read-only
        warnings.simplefilter("ignore", UserWarning)
        flat = torch.from_numpy(array)
    out = torch.empty(BATCH, WIDTH)
    if order == "sequential":
        n_batches = work.rows.size // out.numel()
        if not n_batches:
            raise ValueError(f"{work.folder} has {work.rows.size} values, less than one batch")
        whole = flat[: n_batches * out.numel()].view(n_batches, BATCH, WIDTH)
        while True:
            for part in whole:
                yield out.copy_(part), None
    blocks = flat.as_strided((flat.numel() - WIDTH + 1, WIDTH), (1, 1))
    starts = np.random.default_rng(1).permutation(work.windows) * CHANNELS
    turns = torch.from_numpy(starts[: len(starts) // BATCH * BATCH].reshape(-1, BATCH))
    while True:
        for turn in turns:
            torch.index_select(blocks, 0, turn, out=out)
            yield out, None


def facts() -> dict[str, Any]:
    """Say how this process copied, after it has read: the compiled loop is loaded when it pays."""
    return {"compiled": "llvmlite.binding" in sys.modules}
