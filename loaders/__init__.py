"""Committed stores as exact batches of windows for PyTorch."""

from loaders.batch import Batch
from loaders.stream import TrialStream

__all__ = ["Batch", "TrialStream"]
