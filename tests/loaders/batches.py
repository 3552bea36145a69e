"""What the tests of loaders say about batches."""

from __future__ import annotations

import torch

from loaders import Batch
from shards.manifest import TargetSchema

LENGTHS = [3, 10, 41, 2, 17, 64]
PER_STEP = TargetSchema("per_step", ("y0", "y1"))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {k: v for k, v in vars(batch).items() if torch.is_tensor(v)}


def assert_same(got: Batch, want: Batch) -> None:
    assert (got.epoch, got.step, got.global_weight) == (want.epoch, want.step, want.global_weight)
    assert tensors(got).keys() == tensors(want).keys()
    for name, tensor in tensors(want).items():
        mine = getattr(got, name)
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), name
        assert mine.numpy().tobytes() == tensor.numpy().tobytes(), name


def rows_of(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (t, s)
        for b in batches
        for t, s in zip(b.trial.tolist(), b.start.tolist(), strict=True)
        if t >= 0
    ]
