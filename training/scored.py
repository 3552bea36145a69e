"""What is scored: which weights, on which store, and for what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loaders import TrialStream
from shards import InvalidSpecError, Store
from training.build import build_model, start_fabric
from training.config import TrainConfig, choose_windows
from training.predict import Predictions, Predictor
from training.streams import open_stream
from training.target import Objective, choose_objective, target_statistics
from training.targetchecks import BINARY, check_codes


@dataclass(frozen=True)
class ScoreTask:
    """What is scored: weights, on which store, where the files go.

    Attributes:
        config: Sizes of the network, batches, split.
        saved: The checkpoint.
        where: Which trials of the store, SQL.
    """

    config: TrainConfig
    saved: dict[str, Any]
    store: Store
    objective: Objective
    folder: Path
    where: str | None = None


def open_evaluation(task: ScoreTask) -> TrialStream:
    """Open the split to score; `at: last` needs stride 1, so that a window ends at the last row."""
    config, store, loss = task.config, task.store, task.objective.loss
    if loss == BINARY or task.objective.kind == "step_class":
        n_classes = 2 if loss == BINARY else task.objective.n_classes
        check_codes(store, loss, n_classes, [config.evaluate.split])
    windows = choose_windows(config, store.manifest.windows)
    if config.evaluate.at == "last" and config.data.batches == "windows":
        windows = dataclasses.replace(windows, stride=1, short="pad")
    return open_stream(store, config, config.evaluate.split, windows=windows, where=task.where)


def predict_task(task: ScoreTask) -> Iterator[Predictions]:
    """Return what a network of the task's weights predicts, on one device.

    Raises:
        InvalidSpecError: If the weights do not fit, the split has no window, or targets are not as
            the loss wants them; before the first prediction.
    """
    config, store, objective = task.config, task.store, task.objective
    device = config.device.model_copy(update={"devices": 1})
    fabric = start_fabric(config.model_copy(update={"device": device}))
    network = build_model(store, config, objective)
    check_weights(network, task.saved["model"], store)
    network.load_state_dict(task.saved["model"])
    predictor = Predictor(
        model=fabric.setup_module(network).eval(),
        config=config.model,
        objective=objective,
        naive=naive_constant(store, objective, config.data.train_split),
        last_only=config.evaluate.at == "last",
    )
    return predictor.predict(open_evaluation(task), fabric.device)


def check_weights(
    network: torch.nn.Module, weights: Mapping[str, torch.Tensor], store: Store
) -> None:
    """Refuse weights that do not fit the network that a store's inputs need.

    Raises:
        InvalidSpecError: Naming each parameter that differs.
    """
    own, wrong = network.state_dict(), []
    for name in sorted({*own, *weights}):
        got, wanted = (list(each[name].shape) if name in each else None for each in (weights, own))
        if got != wanted:
            wrong.append(f"{name} is {got}, wanted {wanted}")
    if wrong:
        raise InvalidSpecError(
            f"the weights do not fit {store.path}: {'; '.join(wrong)}. Score a store with the "
            "channels, codes, statics and target that the run was trained on."
        )


def naive_constant(store: Store, objective: Objective, train_split: str) -> tuple[float, ...]:
    """Return the train mean of each column, or the most frequent class of the train trials."""
    if objective.loss == BINARY:  # the network says logits, so the objective has no mean
        return tuple(target_statistics(store, train_split)[0].tolist())
    if not objective.n_classes:
        return objective.mean
    numbers = np.flatnonzero(store.index.split == store.split_code(train_split))
    counts = np.zeros(objective.n_classes, np.int64)
    if objective.kind == "class":
        counts += _count_codes(store.index.label[numbers], objective.n_classes)
    else:
        for number in numbers.tolist():
            counts += _count_codes(store.trial_rows(number, "targets"), objective.n_classes)
    return (float(counts.argmax()),)


def _count_codes(codes: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(codes[np.isfinite(codes)].astype(np.int64), minlength=n_classes)


def objective_on(
    config: TrainConfig, store: Store, run: dict[str, Any], checkpoint: Path
) -> Objective:
    """Return what weights of a run say about a store: as learned if it was there, else anew."""
    learned = [Objective(**said) for said in run["objectives"]]
    split = config.data.train_split
    mine = store.manifest.fingerprints.get(split)
    for number, objective in enumerate(learned):
        if mine == run["fingerprints"].get(f"store {number} {split}" if number else split, ""):
            dense = objective.kind == "forecast" and config.data.batches != "windows"
            return dataclasses.replace(objective, dense=dense)
    objective = choose_objective(config, open_stream(store, config, split, train=True))
    for what in ("kind", "columns", "n_classes"):
        got, wanted = (getattr(each, what) for each in (objective, learned[0]))
        if got != wanted:
            raise InvalidSpecError(
                f"the target of {store.path} has {what} {got}; wanted {wanted}, as {checkpoint} "
                "learned it. Score a store of the same target."
            )
    return objective
