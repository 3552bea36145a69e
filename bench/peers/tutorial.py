"""What tutorials write: trials in memory, a list of windows, one item per window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from read_work import BATCH, LENGTH, STRIDE, Float32, Work
from torch.utils.data import DataLoader, Dataset


class TutorialDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Slices tensors in memory."""

    def __init__(self, trials: list[Float32]) -> None:
        self.trials = [torch.from_numpy(trial) for trial in trials]
        self.windows = [
            (i, start)
            for i, trial in enumerate(trials)
            for start in range(0, len(trial) - LENGTH, STRIDE)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        trial, start = self.windows[item]
        end = start + LENGTH
        return self.trials[trial][start:end], self.trials[trial][end, :1]


def batches(folder: Path, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader = DataLoader(
        TutorialDataset(Work(folder).trials()), batch_size=BATCH, shuffle=True,
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader
