"""Committed stores as exact batches of windows for PyTorch."""

from loaders.batch import Batch
from loaders.stream import TrialStream
from shards import open_store

__all__ = ["Batch", "TrialStream", "open_store"]
