"""Score a trained model on a split: errors in physical units beside those of a naive baseline."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards import InvalidSpecError, Store
from training import plots
from training.checkpoint import (
    BEST,
    LAST,
    check_same_run,
    describe_run,
    digest_run,
    load_checkpoint,
)
from training.config import TrainConfig
from training.score import score_parts
from training.scored import ScoreTask, objective_on, predict_task
from training.streams import open_stores
from training.tables import replacing_files, write_predictions, write_trial_errors
from training.target import Objective
from training.targetchecks import BINARY

log = logging.getLogger(__name__)
FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """How a model did.

    Attributes:
        split: Trials it was scored on.
        at: `all` or `last`.
        kind: `forecast`, `per_step`, `per_trial`, `class` or `step_class`.
        baseline: What it is compared with.
        n_trials: Trials with at least one scored element.
        epoch: Number of the epoch whose weights were used.
        metrics: RMSE, MAE, skill, by column (values; binary ones add AUROC, average precision,
            log loss and the share of ones, quantiles pinball loss and coverage), or accuracies, F1
            and the confusion matrix (classes). Over all elements; those in `macro` are means over
            trials of what is in each.
        folder: Where the files are: `metrics.json`, `predictions.parquet`, `errors_by_trial.csv`
            and, from `evaluate`, three plots or four.
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


def evaluate(config: TrainConfig, *, checkpoint: Path | None = None, source: int = 0) -> Evaluation:
    """Score the best weights of a run and write tables and plots below `out/evaluation`.

    Args:
        config: The one that the run was trained with.
        checkpoint: By default `out/best.ckpt`.
        source: Which store of a mixture; those after the first go to `out/evaluation-<source>`.

    Raises:
        CheckpointNotFoundError: If there is none.
        ResumeError: If it belongs to other data or another config.
        InvalidSpecError: If there is no such source, the split has no window, or targets are not
            as the loss wants them.
    """
    path = checkpoint or config.out / BEST
    saved = load_checkpoint(path)
    objectives = [Objective(**said) for said in saved["run"]["objectives"]]
    stores = open_stores(config)
    check_same_run(saved["run"], describe_run(config, stores, objectives), path)
    if not 0 <= source < len(stores):
        raise InvalidSpecError(
            f"source is {source}; wanted 0 to {len(stores) - 1}, a store of this run. "
            "0 is `store`, the others those of `mixture` in their order."
        )
    others = config.mixture.stores if config.mixture else ()
    task = ScoreTask(
        config=config,
        saved=saved,
        store=stores[source],
        objective=objectives[source],
        folder=config.out / (f"{FOLDER}-{source}" if source else FOLDER),
        where=others[source - 1].where if source else None,
    )
    return _score_task(task, _history(config, saved))


def score_on(config: TrainConfig, checkpoint: Path, folder: Path) -> Evaluation:
    """Score weights of any run on the store of a config; write tables and no plots.

    The network and what it was trained for are those of the checkpoint; store, batches and split
    those of the config. A store that the run learned from keeps the scale it was learned at, any
    other one is given its own, from its train split.

    Args:
        config: What is scored.
        checkpoint: Of this or another run.
        folder: Where `metrics.json`, `predictions.parquet` and `errors_by_trial.csv` go.

    Raises:
        CheckpointNotFoundError: If there is none.
        InvalidSpecError: If the weights do not fit the store.
    """
    saved = load_checkpoint(checkpoint)
    trained = TrainConfig.model_validate(saved["run"]["config"])
    asked = config.model_copy(update={"model": trained.model, "target": trained.target})
    store = Store(config.store, config.version)
    objective = objective_on(asked, store, saved["run"], checkpoint)
    return _score_task(ScoreTask(asked, saved, store, objective, folder))


def _score_task(task: ScoreTask, history: list[dict[str, float]] | None = None) -> Evaluation:
    """Predict, score, write; with a history also draw."""
    config, store, objective, saved = task.config, task.store, task.objective, task.saved
    parts = predict_task(task)
    with replacing_files(task.folder) as folder:
        parts = write_predictions(parts, folder / "predictions.parquet", store, objective)
        sums, metrics = score_parts(parts, store, objective)
        trials = write_trial_errors(sums, store, folder / "errors_by_trial.csv")
        evaluation = Evaluation(
            split=config.evaluate.split,
            at=config.evaluate.at,
            kind=objective.kind,
            baseline=_BASELINES[objective.kind],
            n_trials=trials.num_rows,
            epoch=int(saved["state"]["epoch"]),
            metrics=metrics,
            folder=task.folder,
            store_version=store.version,
            digest=_digest(config, store, saved),
        )
        if history is not None:
            _draw(evaluation, folder, history, trials=trials, objective=objective)
        (folder / "metrics.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    return evaluation


def _digest(config: TrainConfig, store: Store, saved: dict[str, Any]) -> str:
    scored = config.model_dump(mode="json", include={"evaluate", "data"})
    data = store.manifest.fingerprints[config.evaluate.split]
    return digest_run(saved["run"], epoch=saved["state"]["epoch"], scored=scored, data=data)


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
    "step_class": "most frequent train class",
}


def _draw(
    evaluation: Evaluation,
    folder: Path,
    history: list[dict[str, float]],
    *,
    trials: pa.Table,
    objective: Objective,
) -> None:
    plots.learning_curve(history, folder / "learning_curve.png")
    plots.error_by_trial(trials, folder / "error_by_trial.png")
    parquet, picture = folder / "predictions.parquet", folder / "predictions.png"
    if objective.n_classes:
        what = "Steps" if objective.kind == "step_class" else "Trials"
        plots.confusion(evaluation.metrics, picture, what=what)
    else:
        plots.samples(parquet, trials, objective, picture)
    if objective.loss == BINARY:
        plots.calibration(parquet, objective.columns[0], folder / "calibration.png")
