"""Batches to a trained LSTM: a consumer of `loaders`, and an example of one.

`train` goes from a config file to checkpoints, `evaluate` from a checkpoint to errors and plots.
Names are imported when they are first asked for (PEP 562): who reads a config, as an orchestrator
does, must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.evaluation import Evaluation, evaluate
    from training.loop import train
    from training.record import progress_bar
    from training.state import TrainResult

__all__ = ["Evaluation", "TrainConfig", "TrainResult", "evaluate", "progress_bar", "train"]

# No module may be named like a name in here: importing it would put it in the name's place.
_HOMES = {
    "Evaluation": "evaluation",
    "TrainConfig": "config",
    "TrainResult": "state",
    "evaluate": "evaluation",
    "progress_bar": "record",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
