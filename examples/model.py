"""The model and the loss of all examples: an LSTM that says what follows a window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loaders import Batch, TrialStream


class Forecaster(nn.Module):
    """float32 `[B, L, C]` -> `[B, steps, K]`."""

    def __init__(self, stream: TrialStream, hidden: int = 16) -> None:
        super().__init__()
        self.shape = (stream.windows.steps or 1, stream.n_targets)
        self.lstm = nn.LSTM(stream.n_channels, hidden, batch_first=True)
        self.head = nn.Linear(hidden, self.shape[0] * self.shape[1])

    def forward(self, values: Tensor) -> Tensor:
        states, _ = self.lstm(values)
        return self.head(states[:, -1]).unflatten(1, self.shape)


def batch_loss(model: nn.Module, batch: Batch, world_size: int = 1) -> Tensor:
    """Return this rank's loss; its mean over the ranks is the loss of the whole step.

    `global_weight` is the weight of the step over all ranks, so that neither the filler rows at the
    end of an epoch nor an uneven split among the ranks count for anything.
    """
    error = torch.nan_to_num(model(batch.values) - batch.targets)  # missing targets are NaN
    by_row = error.square().mean(dim=(1, 2))
    return (by_row * batch.weights).sum() * world_size / batch.global_weight


def open_stream(store: str) -> TrialStream:
    """Return the training windows of a store; 64 per step, over all ranks together."""
    return TrialStream(store, batch_size=64, seed=0)
