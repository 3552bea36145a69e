"""The kinds of studies, from a config to a table: what `trialshards train` calls for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import Store
from training.checkpoint import BEST, load_checkpoint
from training.config import TrainConfig
from training.ensemble import PREDICTIONS, average_predictions, shared_trials, write_whole
from training.evaluation import FOLDER, score_on
from training.stages import run_stages
from training.study import ENSEMBLE, POOLED, Run, plain_config, plan_runs
from training.studyrun import INTERRUPTED, Orders, Outcome, run_all, score_once, score_own
from training.studytables import StudyResult, json_text, mean_and_sd, replace_text, shown_metrics
from training.target import Objective


def run_study(config: TrainConfig, orders: Orders | None = None) -> StudyResult:
    """Train and score the runs of a config's study, and write its tables.

    What is trained or scored already is not done again.

    Args:
        config: With one of `config.STUDIES`.
        orders: What to do, and whom to tell; by default train and score.

    Raises:
        StoreNotFoundError: If a store or version is absent; a sweep notes that and goes on.
        InvalidSpecError: If a run does not fit the config or its store, before any is trained.
        ResumeError: If a folder holds a run of other data or another config.
        TrainingDivergedError: If a run diverged; a sweep notes that and goes on.
    """
    orders, runs = orders or Orders(), plan_runs(config)
    kinds = {
        "stages": _stages, "sweep": _sweep, "seeds": _seeds, "members": _members, "folds": _folds,
    }  # fmt: skip
    if config.study != "sweep":
        for run in runs:
            Store(run.config.store, run.config.version)  # what is absent is told at once
    outcomes, summary, files = kinds[config.study or "sweep"](config, runs, orders)
    stopped = any(outcome.status == INTERRUPTED for outcome in outcomes)
    digests = json.dumps([[o.run.name, o.digest, (o.scores or {}).get("digest")] for o in outcomes])
    return StudyResult(
        kind=config.study or "sweep",
        folder=config.out,
        status=INTERRUPTED if stopped else "finished",
        rows=tuple(_row(outcome, _fields(runs)) for outcome in outcomes),
        summary=summary,
        files=files,
        digest=hashlib.sha256(digests.encode()).hexdigest(),
    ).write()


_Found = tuple[list[Outcome], dict[str, Any], tuple[str, ...]]
_Together = tuple[dict[str, float], tuple[str, ...]]
METRICS = "metrics.json"


def _stages(config: TrainConfig, runs: Sequence[Run], orders: Orders) -> _Found:
    outcomes, matrix = run_stages(runs, orders, replay=config.replay)
    if matrix is None:
        return outcomes, {}, ()
    return outcomes, matrix.summary(), matrix.write(config.out)


def _sweep(_: TrainConfig, runs: Sequence[Run], orders: Orders) -> _Found:
    outcomes = run_all(runs, orders, score=score_own, tolerant=True)
    losses = {o.run.name: o.val_loss for o in outcomes if o.val_loss is not None and not o.error}
    best = min(losses, key=lambda name: losses[name]) if losses else None
    failed = [outcome.run.name for outcome in outcomes if outcome.error]
    return outcomes, {"best_by_validation": best, "failed": failed}, ()


def _seeds(config: TrainConfig, runs: Sequence[Run], orders: Orders) -> _Found:
    outcomes = run_all(runs, orders, score=score_own)
    return _ensemble(config, outcomes)


def _members(config: TrainConfig, runs: Sequence[Run], orders: Orders) -> _Found:
    common = plain_config(config)

    def score(run: Run) -> Mapping[str, Any]:
        best, folder = run.config.out / BEST, run.config.out / FOLDER
        return score_once(common, best, folder, lambda: score_on(common, best, folder))

    outcomes = run_all(runs, orders, score=score)
    return _ensemble(config, outcomes)


def _ensemble(config: TrainConfig, outcomes: list[Outcome]) -> _Found:
    """Return the members with the metrics of their mean prediction, whose table is written."""
    if not _all_scored(outcomes):
        return outcomes, {}, ()
    table = average_predictions({outcome.run.name: _read(outcome) for outcome in outcomes})
    store = Store(config.store, config.version)
    metrics, files = _write(table, outcomes[0], store, config.out / ENSEMBLE)
    spread = {
        name.removeprefix("sd_"): pc.mean(table[name]).as_py()
        for name in table.column_names
        if name.startswith("sd_") and len(outcomes) > 1
    }
    summary = {"ensemble": metrics, "runs": _mean_and_sd(outcomes), "mean_spread": spread}
    return outcomes, summary, files


def _folds(config: TrainConfig, runs: Sequence[Run], orders: Orders) -> _Found:
    outcomes = run_all(runs, orders, score=score_own)
    if not _all_scored(outcomes):
        return outcomes, {}, ()
    summary: dict[str, Any] = {"runs": _mean_and_sd(outcomes)}
    tables = [_read(outcome) for outcome in outcomes]
    shared = shared_trials(tables)
    summary["trials_in_several_folds"] = shared
    if shared or len({tuple(table.column_names) for table in tables}) > 1:
        return outcomes, summary, ()
    pooled = pa.concat_tables(
        table.append_column("fold", pa.array([o.run.name] * table.num_rows, pa.utf8()))
        for o, table in zip(outcomes, tables, strict=True)
    )
    store = Store(config.store, outcomes[0].run.config.version)
    summary["pooled"], files = _write(pooled, outcomes[0], store, config.out / POOLED)
    return outcomes, summary, files


def _all_scored(outcomes: Sequence[Outcome]) -> bool:
    return bool(outcomes) and all(outcome.scores is not None for outcome in outcomes)


def _read(outcome: Outcome) -> pa.Table:
    return pq.read_table(outcome.run.config.out / FOLDER / PREDICTIONS)


def _write(table: pa.Table, like: Outcome, store: Store, folder: Path) -> _Together:
    """Write predictions of all runs together, and their metrics."""
    saved = load_checkpoint(like.run.config.out / BEST)
    objective = Objective(**saved["run"]["objectives"][0])
    metrics = write_whole(table, folder, store, objective)
    replace_text(folder / METRICS, json_text({"metrics": metrics}))
    files = (f"{folder.name}/{PREDICTIONS}", f"{folder.name}/{METRICS}")
    return shown_metrics(metrics), files


def _mean_and_sd(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float | None]]:
    return mean_and_sd([(outcome.scores or {}).get("metrics", {}) for outcome in outcomes])


def _fields(runs: Sequence[Run]) -> list[str]:
    """Return the dotted fields in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.changes)
    return [
        name for name in names if len({str(_value(run.config, name)) for run in runs}) > 1
    ] or list(names)


def _value(config: TrainConfig, field: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _row(outcome: Outcome, fields: Sequence[str]) -> dict[str, Any]:
    """Return a run's row of the table."""
    run, metrics = outcome.run, (outcome.scores or {}).get("metrics", {})
    return {
        "run": run.name,
        **{field: _value(run.config, field) for field in fields},
        "status": outcome.status,
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        "val_loss": outcome.val_loss,
        **shown_metrics(metrics),
        "seconds": round(outcome.seconds, 2),
        **({"error": outcome.error} if outcome.error else {}),
    }
