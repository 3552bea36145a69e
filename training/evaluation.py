"""Score a trained model on a split: errors in physical units beside those of a naive baseline."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loaders import TrialStream
from shards import Store
from training import plots
from training.binary import BinaryScores
from training.build import build_model, start_fabric
from training.checkpoint import (
    BEST,
    LAST,
    check_same_run,
    describe_run,
    digest_run,
    load_checkpoint,
)
from training.config import TrainConfig, choose_windows
from training.predict import Predictions, Predictor
from training.score import ErrorSums, class_errors, class_summary
from training.streams import open_stores, open_stream
from training.tables import replacing_files, write_predictions, write_trial_errors
from training.target import Objective, target_statistics
from training.targetchecks import BINARY, check_codes

log = logging.getLogger(__name__)
FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """How a model did.

    Attributes:
        split: Trials it was scored on.
        at: `all` or `last`.
        kind: `forecast`, `per_step`, `per_trial` or `class`.
        baseline: What it is compared with.
        n_trials: Trials with at least one scored element.
        epoch: Number of the epoch whose weights were used.
        metrics: RMSE, MAE, skill, by column (values; binary ones add AUROC, average precision,
            log loss and the share of ones), or accuracies (classes).
        folder: Where the files are: `metrics.json`, `predictions.parquet`,
            `errors_by_trial.csv` and three plots.
        store_version: What it was scored on.
        digest: Of config and data of the run, epoch, and what was scored.
    """

    split: str
    at: str
    kind: str
    baseline: str
    n_trials: int
    epoch: int
    metrics: dict[str, Any]
    folder: Path
    store_version: str
    digest: str

    def as_dict(self) -> dict[str, Any]:
        """Return what `metrics.json` holds."""
        document = dataclasses.asdict(self) | {"folder": str(self.folder)}
        return {name: _without_nan(value) for name, value in document.items()}


def evaluate(config: TrainConfig, *, checkpoint: Path | None = None) -> Evaluation:
    """Score the best weights of a run and write tables and plots below `out/evaluation`.

    Args:
        config: The one that the run was trained with.
        checkpoint: By default `out/best.ckpt`.

    Raises:
        CheckpointNotFoundError: If there is none.
        ResumeError: If it belongs to other data or another config.
        InvalidSpecError: If the split has no window, or targets are not as the loss wants them.
    """
    store = Store(config.store, config.version)
    path = checkpoint or config.out / BEST
    saved = load_checkpoint(path)
    objectives = [Objective(**said) for said in saved["run"]["objectives"]]
    objective = objectives[0]
    check_same_run(saved["run"], describe_run(config, open_stores(config), objectives), path)
    stream = open_evaluation(store, config, objective)
    parts = _predict(config, store, saved, objective=objective, stream=stream)
    with replacing_files(config.out / FOLDER) as folder:
        parts = write_predictions(parts, folder / "predictions.parquet", store, objective.columns)
        sums, metrics = _score(parts, store, objective)
        trials = write_trial_errors(sums, store, folder / "errors_by_trial.csv")
        evaluation = Evaluation(
            split=config.evaluate.split,
            at=config.evaluate.at,
            kind=objective.kind,
            baseline=_BASELINES[objective.kind],
            n_trials=trials.num_rows,
            epoch=int(saved["state"]["epoch"]),
            metrics=metrics,
            folder=config.out / FOLDER,
            store_version=store.version,
            digest=_digest(config, store, saved),
        )
        _draw(evaluation, folder, _history(config, saved), trials=trials, columns=objective.columns)
        (folder / "metrics.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    return evaluation


def _digest(config: TrainConfig, store: Store, saved: dict[str, Any]) -> str:
    scored = config.evaluate.model_dump(mode="json")
    data = store.manifest.fingerprints[config.evaluate.split]
    return digest_run(saved["run"], epoch=saved["state"]["epoch"], scored=scored, data=data)


def _score(
    parts: Iterable[Predictions], store: Store, objective: Objective
) -> tuple[ErrorSums, dict[str, Any]]:
    """Return the errors by trial, and the summary of the whole split."""
    classes = store.manifest.target.classes
    sums, metrics = ErrorSums(len(store.index), objective.columns), {}
    ranks = BinaryScores(objective.columns) if objective.loss == BINARY else None
    for part in parts:
        sums.add(part if classes is None else class_errors(part))
        if classes is not None:  # one part holds all trials
            metrics = class_summary(part, classes)
        if ranks is not None:
            ranks.add(part)
    metrics = metrics or sums.summary()
    return sums, metrics if ranks is None else ranks.extend(metrics)


def _history(config: TrainConfig, saved: dict[str, Any]) -> list[dict[str, float]]:
    """Return the metrics of all epochs, also of those after the best one."""
    last = config.out / LAST
    newest = load_checkpoint(last) if last.exists() else saved
    history: list[dict[str, float]] = newest["state"]["history"]
    return history


def _without_nan(value: Any) -> Any:
    """Return NaN as None, all the way down: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


_BASELINES = {
    "forecast": "persistence",
    "per_step": "train mean",
    "per_trial": "train mean",
    "class": "most frequent train class",
}


def open_evaluation(store: Store, config: TrainConfig, objective: Objective) -> TrialStream:
    """Open the split to score; `at: last` needs stride 1, so that a window ends at the last row."""
    if objective.loss == BINARY or objective.kind == "step_class":
        n_classes = 2 if objective.loss == BINARY else objective.n_classes
        check_codes(store, objective.loss, n_classes, [config.evaluate.split])
    windows = choose_windows(config, store.manifest.windows)
    if config.evaluate.at == "last":
        windows = dataclasses.replace(windows, stride=1, short="pad")
    return open_stream(store, config, config.evaluate.split, windows=windows)


def _predict(
    config: TrainConfig,
    store: Store,
    saved: dict[str, Any],
    *,
    objective: Objective,
    stream: TrialStream,
) -> Iterator[Predictions]:
    device = config.device.model_copy(update={"devices": 1})
    fabric = start_fabric(config.model_copy(update={"device": device}))
    model = fabric.setup_module(build_model(store, config, objective))
    model.load_state_dict(saved["model"])
    model.eval()
    predictor = Predictor(
        model=model,
        config=config.model,
        objective=objective,
        naive=naive_constant(store, objective, config.data.train_split),
        last_only=config.evaluate.at == "last",
    )
    return predictor.predict(stream, fabric.device)


def naive_constant(store: Store, objective: Objective, train_split: str) -> tuple[float, ...]:
    """Return the train mean of each column, or the most frequent class of the train trials."""
    if objective.loss == BINARY:  # the network says logits, so the objective has no mean
        return tuple(target_statistics(store, train_split)[0].tolist())
    if objective.kind != "class":
        return objective.mean
    label = store.index.label[store.index.split == store.split_code(train_split)]
    codes = label[np.isfinite(label)].astype(np.int64)
    return (float(np.bincount(codes).argmax()) if len(codes) else 0.0,)


def _draw(
    evaluation: Evaluation,
    folder: Path,
    history: list[dict[str, float]],
    *,
    trials: pa.Table,
    columns: tuple[str, ...],
) -> None:
    plots.learning_curve(history, folder / "learning_curve.png")
    plots.error_by_trial(trials, folder / "error_by_trial.png")
    if evaluation.kind == "class":
        plots.confusion(evaluation.metrics, folder / "predictions.png")
    else:
        plots.samples(folder / "predictions.parquet", trials, columns, folder / "predictions.png")
