"""Sweeps, ensembles and folds: run, tabulated, not repeated, and not stopped by one that fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from learnable import learnable_store, tiny_config
from trialfolders import write_spec, write_trials

import training.studyrun
from pipeline.folds import build_folds
from shards import Store
from shards.errors import ResumeError, StoreNotFoundError
from training.checkpoint import BEST, CheckpointNotFoundError
from training.config import TrainConfig
from training.evaluation import FOLDER, score_on
from training.studies import run_study
from training.studyrun import Orders


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the training of these networks."""

    def scored(config: TrainConfig) -> Any:
        return score_on(config, config.out / BEST, config.out / FOLDER)

    monkeypatch.setattr(training.studyrun, "evaluate", scored)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for kind in ("per_step", "class"):
        learnable_store(folder / kind, kind, n_trials=20)
    learnable_store(folder / "other", "per_step", n_trials=20, seed=1)
    return folder


def study(stores: Path, out: Path, kind: str = "per_step", **changes: Any) -> TrainConfig:
    small = {"model": {"hidden": 8, "layers": 1, "head": [4]}, "epochs": 1}
    return tiny_config(stores, **{"store": stores / kind, "out": out, **small, **changes})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_tabulates_what_differs_and_goes_on_after_a_failure(stores, tmp_path):
    sweep = [
        {"data.windows.length": 8},
        {"name": "wild", "optimizer.lr": 1e30, "optimizer.clip_norm": None},
        {"name": "absent", "version": "v0099"},
        {"data.windows.length": 12, "optimizer.lr": 0.005},
    ]
    config = study(stores, tmp_path / "run", sweep=sweep)
    result = run_study(config)
    assert [row["status"] for row in result.rows] == ["finished", "failed", "failed", "finished"]
    assert "the loss is not finite" in result.rows[1]["error"]
    assert "v0099" in result.rows[2]["error"]
    assert result.summary["failed"] == ["wild", "absent"]
    losses = {row["run"]: row["val_loss"] for row in result.rows if row["val_loss"]}
    assert result.summary["best_by_validation"] == min(losses, key=losses.__getitem__)
    table = rows_of(tmp_path / "run" / "study.csv")
    assert list(table[0])[:6] == [
        "run", "data.windows.length", "optimizer.lr", "optimizer.clip_norm", "version", "status",
    ]  # fmt: skip
    assert [row["data.windows.length"] for row in table] == ["8", "", "", "12"]
    assert [row["optimizer.lr"] for row in table] == ["0.01", "1e+30", "0.01", "0.005"]
    alone = study(stores, tmp_path / "alone", data={"batch_size": 32, "windows": {"length": 8}})
    run_study(alone.model_copy(update={"seeds": (alone.seed,)}))
    scored = json.loads((tmp_path / "alone" / "seed-3" / FOLDER / "metrics.json").read_text())
    assert float(table[0]["rmse"]) == scored["metrics"]["rmse"]


def test_finished_runs_are_neither_trained_nor_scored_again(stores, tmp_path, monkeypatch):
    config = study(stores, tmp_path / "run", seeds=[0, 1])
    first = run_study(config)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(training.studyrun, "evaluate", never)
    steps: list[int] = []
    again = run_study(config, Orders(on_metrics=lambda step, _: steps.append(step)))
    assert again.as_dict() == first.as_dict()
    assert steps == []
    with pytest.raises(AssertionError, match="scored again"):
        run_study(config, Orders(fresh=True))


def test_training_and_scoring_can_be_two_calls(stores, tmp_path):
    config = study(stores, tmp_path / "run", seeds=[0, 1])
    with pytest.raises(CheckpointNotFoundError, match="Train first"):
        run_study(config, Orders(train=False))
    trained = run_study(config, Orders(score=False))
    assert trained.summary == {}
    assert "rmse" not in trained.rows[0]
    scored = run_study(config, Orders(train=False))
    assert scored.rows[0]["val_loss"] == trained.rows[0]["val_loss"]
    assert scored.summary["ensemble"]["rmse"] > 0


def test_another_config_is_refused_as_in_a_plain_run(stores, tmp_path):
    run_study(study(stores, tmp_path / "run", seeds=[0]), Orders(score=False))
    other = study(stores, tmp_path / "run", seeds=[0], optimizer={"lr": 0.5})
    with pytest.raises(ResumeError):
        run_study(other, Orders(score=False))
    assert run_study(other, Orders(score=False, renew=True)).status == "finished"


def test_an_ensemble_over_seeds_is_the_mean_of_its_members(stores, tmp_path):
    config = study(stores, tmp_path / "run", seeds=[0, 1, 2])
    result = run_study(config)
    parts = [
        pq.read_table(tmp_path / "run" / f"seed-{seed}" / FOLDER / "predictions.parquet")
        for seed in (0, 1, 2)
    ]
    together = pq.read_table(tmp_path / "run" / "ensemble" / "predictions.parquet")
    said = np.stack([part.sort_by([(k, "ascending") for k in ("trial", "row")])["predicted_effort"]
                     for part in parts])  # fmt: skip
    assert np.allclose(together["predicted_effort"].to_numpy(), said.mean(axis=0))
    assert np.allclose(together["sd_effort"].to_numpy(), said.std(axis=0, ddof=1))
    truth, predicted = (together[f"{k}_effort"].to_numpy() for k in ("truth", "predicted"))
    rmse = np.sqrt(np.nanmean((truth - predicted) ** 2))
    assert result.summary["ensemble"]["rmse"] == pytest.approx(rmse)
    alone = [row["rmse"] for row in result.rows]
    assert result.summary["runs"]["rmse"]["mean"] == pytest.approx(np.mean(alone))
    assert result.summary["runs"]["rmse"]["sd"] == pytest.approx(np.std(alone, ddof=1))
    # The mean prediction's squared error is never above the mean of the squared errors.
    assert rmse**2 <= np.mean(np.square(alone)) + 1e-9


def test_members_learn_their_own_data_and_are_scored_on_the_common_one(stores, tmp_path):
    members = [{"name": "same", "store": stores / "per_step"},
               {"name": "other", "store": stores / "other"}]  # fmt: skip
    result = run_study(study(stores, tmp_path / "run", members=members))
    for name in ("same", "other"):
        scored = json.loads((tmp_path / "run" / name / FOLDER / "metrics.json").read_text())
        assert scored["metrics"]["n"] > 0
    together = pq.read_table(tmp_path / "run" / "ensemble" / "predictions.parquet")
    store = Store(stores / "per_step")
    wanted = {t for t, s in zip(store.index.ids.to_pylist(), store.index.split, strict=True)
              if store.manifest.splits[s] == "test"}  # fmt: skip
    assert set(together["trial"].to_pylist()) == wanted
    assert set(result.summary["mean_spread"]) == {"effort"}


def test_an_ensemble_of_classes_votes_by_probability(stores, tmp_path):
    result = run_study(study(stores, tmp_path / "run", "class", seeds=[0, 1]))
    assert set(result.summary["mean_spread"]) == {"slow", "fast"}
    assert 0 <= result.summary["ensemble"]["accuracy"] <= 1


def test_a_fold_that_is_not_there_is_told_before_any_training(stores, tmp_path):
    with pytest.raises(StoreNotFoundError, match="fold-7"):
        run_study(study(stores, tmp_path / "run", folds=["v0001", "fold-7"]))
    assert not (tmp_path / "run").exists()


def test_folds_are_trained_each_and_their_predictions_pooled(tmp_path):
    write_trials(tmp_path, 14)
    split = {"method": "folds", "folds": 2, "validation": {"fraction": 0.2}}
    spec = write_spec(tmp_path, split=split, normalize={"scope": "train"})
    tags = [fold.tag for fold in build_folds(spec, tmp_path / "store", n_workers=1)]
    config = study(tmp_path, tmp_path / "run", store=tmp_path / "store", folds=tags)
    result = run_study(config)
    pooled = pq.read_table(tmp_path / "run" / "pooled" / "predictions.parquet")
    assert set(pooled["fold"].to_pylist()) == set(tags)
    assert result.summary["trials_in_several_folds"] == 0
    n = [pooled["fold"].to_pylist().count(tag) for tag in tags]
    mse = [row["rmse"] ** 2 for row in result.rows]
    assert result.summary["pooled"]["rmse"] == pytest.approx(np.sqrt(np.average(mse, weights=n)))

    twice = run_study(study(tmp_path, tmp_path / "again", store=tmp_path / "store",
                            folds=["fold-0", "v0001"]))  # fmt: skip
    assert twice.summary["trials_in_several_folds"] > 0
    assert "pooled" not in twice.summary
    assert twice.files == ()
