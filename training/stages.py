"""One data set after the other, the weights going on, and what is forgotten on the way.

A stage starts from the best weights of the one before, with a state of zero, a fresh optimizer, and
a learning rate that rises and falls by the stage's own schedule. With `replay` r a share r of its
steps repeats the data sets before it, each of them alike, in batches of their own; an epoch then
has as many more steps, so that it still goes once through the stage's own data.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards import CorruptStoreError, Store
from training.checkpoint import BEST, LAST, load_checkpoint
from training.config import TrainConfig
from training.evaluation import score_on
from training.forgetting import Matrix
from training.sections import MixtureConfig, OtherStore, StartConfig
from training.streams import check_alike, open_stream
from training.study import Run
from training.studyrun import Orders, Outcome, run_one, score_once

log = logging.getLogger(__name__)
# Below the folder of a stage: its weights scored on every data set.
SCORES = "on"
# Store, version, and which of its trials.
_DataSet = tuple[Path, str | None, str | None]


def data_sets(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the data sets of a sequence by the name of the first stage that learns each."""
    known: dict[_DataSet, str] = {}
    for run in runs:
        known.setdefault(_data_set(run.config), run.name)
    return {run.name: run for run in runs if run.name in known.values()}


def _data_set(config: TrainConfig) -> _DataSet:
    return config.store, config.version, config.data.where


def run_stages(
    runs: Sequence[Run], orders: Orders, *, replay: float
) -> tuple[list[Outcome], Matrix | None]:
    """Train the stages in order; after each, score its best weights on every data set.

    Returns:
        The stages as far as they came, and the matrix of scores: None where not all are scored.

    Raises:
        InvalidSpecError: If one network cannot learn from all stores, before any is trained.
    """
    stores = [Store(run.config.store, run.config.version) for run in runs]
    for run, store in zip(runs[1:], stores[1:], strict=True):
        check_alike(stores[0], store, run.config)
    sets = data_sets(runs)
    names = {_data_set(run.config): name for name, run in sets.items()}

    def score(run: Run) -> Mapping[str, Any]:
        found = {name: _score(run, name, each) for name, each in sets.items()}
        digests = [scores["digest"] for scores in found.values()]
        own = found[names[_data_set(run.config)]]["metrics"]
        return {"metrics": own, "digest": digests, "sets": found}

    outcomes: list[Outcome] = []
    for number, run in enumerate(runs):
        if orders.on_run is not None:
            orders.on_run(run, number, len(runs))
        linked, fresh = run, False
        if orders.train:
            linked, fresh = link_stage(runs, number, replay=replay)
            if fresh:
                log.warning("starting %s over: it began with other weights than are best now",
                            run.name)  # fmt: skip
        outcomes.append(run_one(linked, orders, score=score, fresh=fresh))
        if outcomes[-1].status == "interrupted":
            break
    if len(outcomes) < len(runs) or any(outcome.scores is None for outcome in outcomes):
        return outcomes, None
    return outcomes, _matrix(outcomes, names)


def _score(run: Run, name: str, on: Run) -> Mapping[str, Any]:
    """Return the scores of a stage's best weights on a data set, by that data set's batches."""
    best, folder = run.config.out / BEST, run.config.out / SCORES / name
    return score_once(on.config, best, folder, lambda: score_on(on.config, best, folder))


def _matrix(outcomes: Sequence[Outcome], names: Mapping[_DataSet, str]) -> Matrix:
    sets = [(outcome.scores or {})["sets"] for outcome in outcomes]
    return Matrix.of(
        [outcome.run.name for outcome in outcomes],
        [names[_data_set(outcome.run.config)] for outcome in outcomes],
        [{name: scores["metrics"] for name, scores in found.items()} for found in sets],
    )


def link_stage(runs: Sequence[Run], number: int, *, replay: float) -> tuple[Run, bool]:
    """Return a stage as the plain run that it is, and whether it must start over.

    The weights it starts from are copied into its folder under a name that tells their content: a
    stage is gone on with only if it began with the very same weights.
    """
    run = runs[number]
    config = _with_replay(runs, number, replay)
    if number == 0:
        return Run(run.name, config, run.changes), False
    path = _keep_weights(runs[number - 1].config.out / BEST, config.out)
    before = config.start or StartConfig(checkpoint=path)
    start = before.model_copy(update={"checkpoint": path, "new_head": False})
    config = config.model_copy(update={"start": start})
    return Run(run.name, config, run.changes), _began_elsewhere(config.out / LAST, path)


def _keep_weights(best: Path, out: Path) -> Path:
    """Copy a checkpoint to where its content has a name; return that."""
    load_checkpoint(best)
    content = best.read_bytes()
    path = out / f"start-{hashlib.sha256(content).hexdigest()[:12]}.ckpt"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        building = path.with_name(f".tmp-{path.name}-{os.getpid()}")  # every rank does this
        building.write_bytes(content)
        building.replace(path)
    for other in out.glob("start-*.ckpt"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _began_elsewhere(last: Path, start: Path) -> bool:
    """Return whether a checkpoint is of a run that began with other weights."""
    if not last.is_file():
        return False
    try:
        said = load_checkpoint(last)["run"]["config"]["start"]
    except CorruptStoreError:  # training says so, with what to do
        return False
    return said is None or Path(said["checkpoint"]).name != start.name


def _with_replay(runs: Sequence[Run], number: int, replay: float) -> TrainConfig:
    """Return a stage's config with the data sets before it mixed in."""
    config = runs[number].config
    own = _data_set(config)
    earlier = [
        run.config for run in data_sets(runs[:number]).values() if _data_set(run.config) != own
    ]
    if not replay or not earlier:
        return config
    others = tuple(
        OtherStore(store=each.store, version=each.version, where=each.data.where)
        for each in earlier
    )
    shares = (1 - replay, *[replay / len(others)] * len(others))
    mixture = MixtureConfig(stores=others, by=shares, stop="cycle")
    data = config.data
    if data.steps_per_epoch is None:
        store = Store(config.store, config.version)
        n_own = len(open_stream(store, config, data.train_split, train=True))
        data = data.model_copy(update={"steps_per_epoch": math.ceil(n_own / (1 - replay))})
    return config.model_copy(update={"mixture": mixture, "data": data})
