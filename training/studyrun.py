"""Running a study: train what is not trained yet, score what is not scored yet, and sum up.

Everything lies below `out`: a folder per run, and `study.csv` and `study.json` beside them. A study
that was killed goes on by running it again, because each of its runs does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from shards import Store
from shards.errors import ResumeError, TrialShardsError
from training.checkpoint import BEST, LAST, digest_run, load_checkpoint
from training.config import TrainConfig
from training.evaluation import FOLDER, Evaluation, evaluate
from training.loop import train
from training.record import Observer
from training.state import RunState
from training.study import Run
from training.studytables import replace_text

log = logging.getLogger(__name__)
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Orders:
    """What to do with each run of a study, and whom to tell.

    Attributes:
        train: Train what is not finished; else score what is there.
        score: Score what was trained.
        fresh: Start every run over.
        renew: Start those over whose checkpoint is of other data or another config.
        on_run: Called with (run, number from 0, number of runs) before each.
        progress: A bar to move.
        on_metrics: As `train` has it.
        on_step: As `train` has it.
    """

    train: bool = True
    score: bool = True
    fresh: bool = False
    renew: bool = False
    on_run: Callable[[Run, int, int], None] | None = None
    progress: Progress | None = None
    on_metrics: Observer | None = None
    on_step: Observer | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run of a study came to.

    Attributes:
        run: Which.
        status: `finished`, `early stopped`, `interrupted`, `unfinished` or `failed`.
        epochs: Finished ones.
        best_epoch: From 1.
        val_loss: Of that epoch, standardised; None without validation.
        seconds: Of all finished epochs, over all calls.
        digest: Of config and train data.
        scores: What `metrics.json` says of it; None if it was not scored.
        error: Why it failed.
    """

    run: Run
    status: str
    epochs: int = 0
    best_epoch: int = 0
    val_loss: float | None = None
    seconds: float = 0.0
    digest: str = ""
    scores: Mapping[str, Any] | None = None
    error: str = ""


Scorer = Callable[[Run], Mapping[str, Any]]


def run_all(
    runs: Sequence[Run], orders: Orders, *, score: Scorer, tolerant: bool = False
) -> list[Outcome]:
    """Train and score runs one after the other; ends early after one that was interrupted.

    Args:
        runs: Which, in order.
        orders: What to do.
        score: Returns the scores of a trained run.
        tolerant: A run that cannot be trained is noted, and the others go on.

    Raises:
        TrialShardsError: What a run raised, unless tolerant.
        ResumeError: In any case, because only who started it can tell what is wanted.
    """
    outcomes: list[Outcome] = []
    for number, run in enumerate(runs):
        if orders.on_run is not None:
            orders.on_run(run, number, len(runs))
        try:
            outcomes.append(run_one(run, orders, score=score))
        except ResumeError:
            raise
        except (TrialShardsError, torch.OutOfMemoryError) as error:
            if not tolerant:
                raise
            log.warning("%s failed: %s", run.name, error)
            outcomes.append(Outcome(run, "failed", error=str(error)))
        if outcomes[-1].status == INTERRUPTED:
            break
    return outcomes


def run_one(run: Run, orders: Orders, *, score: Scorer, fresh: bool = False) -> Outcome:
    """Train a run as far as it is not trained, and score it.

    Args:
        run: Which.
        orders: What to do.
        score: Returns its scores.
        fresh: Start it over, whatever the orders say.
    """
    if orders.train:
        result = train(
            run.config, fresh=fresh or orders.fresh, renew=orders.renew,
            progress=orders.progress, on_metrics=orders.on_metrics, on_step=orders.on_step,
        )  # fmt: skip
        if result.status == INTERRUPTED:
            return _look(run, None, interrupted=True)
    return _look(run, score(run) if orders.score else None)


def _look(run: Run, scores: Mapping[str, Any] | None, *, interrupted: bool = False) -> Outcome:
    """Return what the last checkpoint says of a run."""
    saved = load_checkpoint(run.config.out / LAST)
    state = RunState(**{f.name: saved["state"][f.name] for f in fields(RunState)})
    status = INTERRUPTED if interrupted else state.status(run.config)
    return Outcome(
        run=run,
        status="unfinished" if status == "running" else status,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        val_loss=state.best_loss if state.best_loss < float("inf") else None,
        seconds=sum(row["seconds"] for row in state.history),
        digest=digest_run(saved["run"]),
        scores=scores,
    )


def score_own(run: Run) -> Mapping[str, Any]:
    """Score a run on its own store, below `evaluation`; what was scored already is read."""
    best = run.config.out / BEST
    return score_once(run.config, best, run.config.out / FOLDER, lambda: evaluate(run.config))


def score_once(
    config: TrainConfig, checkpoint: Path, folder: Path, compute: Callable[[], Evaluation]
) -> Mapping[str, Any]:
    """Return `metrics.json` of a folder, made anew unless it is of these weights and these data.

    Raises:
        CheckpointNotFoundError: If there is no checkpoint.
    """
    load_checkpoint(checkpoint)
    said = {
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "config": config.model_dump(mode="json"),
        "data": Store(config.store, config.version).fingerprint,
    }
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    note, metrics = folder / "scored.txt", folder / "metrics.json"
    if not (note.is_file() and metrics.is_file() and note.read_text() == key):
        compute()
        replace_text(note, key)
    scores: Mapping[str, Any] = json.loads(metrics.read_text())
    return scores
