"""litData: windows in chunks of 64 MB, as its `optimize` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"

import litdata
import torch
from read_work import BATCH, CHANNELS, LENGTH, STRIDE, Work, once

# Windows decoded at once, and shuffled among themselves: its default, a chunk, one by one.
DECODED: dict[str, tuple[Any, Any]] = {
    "auto": ("auto", "auto"),
    "chunk": ("all", "full"),
    "item": (0, "full"),
}


def windows_of(trial: int, folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    work = Work(folder)
    end = int(work.ends[trial])
    rows = torch.from_numpy(work.rows[end - int(work.lengths[trial]) : end].copy())
    for start in range(0, len(rows) - LENGTH, STRIDE):
        yield {"x": rows[start : start + LENGTH].clone(), "y": rows[start + LENGTH, :1].clone()}


def write(path: Path, work: Work) -> None:
    litdata.optimize(
        fn=partial(windows_of, folder=work.folder), inputs=list(range(len(work.lengths))),
        output_dir=str(path), chunk_bytes="64MB", num_workers=2, verbose=False,
    )  # fmt: skip


def batches(folder: Path, workers: int, decode: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    path = once(folder / "litdata", lambda part: write(part, Work(folder)))
    batch_decode, window = DECODED[decode]
    data = litdata.StreamingDataset(
        str(path), shuffle=True, drop_last=False, batch_decode=batch_decode,
        item_shuffle_window=window,
    )  # fmt: skip
    loader = litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=workers, shuffle=True, persistent_workers=workers > 0
    )
    while True:
        for batch in loader:
            yield batch["x"].view(-1, LENGTH, CHANNELS), batch["y"]
