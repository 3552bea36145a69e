"""Batches to a trained LSTM: a consumer of `loaders`, and an example of one.

`train` goes from a config file to checkpoints, `evaluate` from a checkpoint to errors and plots.
"""

from training.config import TrainConfig
from training.evaluate import Evaluation, evaluate
from training.loop import train
from training.record import progress_bar
from training.state import TrainResult

__all__ = ["Evaluation", "TrainConfig", "TrainResult", "evaluate", "progress_bar", "train"]
