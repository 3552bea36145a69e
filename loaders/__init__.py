"""Committed stores as exact batches for PyTorch: windows, whole trials or stateful lanes."""

from loaders.batch import Batch
from loaders.choices import (
    Balance,
    BlockShuffle,
    LaneBatches,
    LossWeights,
    TrialBatches,
    WindowBatches,
)
from loaders.mix import mix
from loaders.stream import TrialStream
from shards import open_store

__all__ = [
    "Balance",
    "Batch",
    "BlockShuffle",
    "LaneBatches",
    "LossWeights",
    "TrialBatches",
    "TrialStream",
    "WindowBatches",
    "mix",
    "open_store",
]
