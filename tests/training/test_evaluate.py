"""Evaluation against a second computation: the LSTM's equations in NumPy, window by window."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from learnable import OFFSET, SCALE, learnable_store, numpy_network, sigmoid, tiny_config

from shards import Store
from training import Evaluation, TrainConfig, evaluate, train
from training.checkpoint import CheckpointNotFoundError, load_checkpoint
from training.evaluation import score_on

LENGTH, STRIDE, HORIZON, STEPS = 16, 6, 3, 2
Rows = list[tuple[str, int, int, list[float], list[float], list[float]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """One briefly trained run for each kind of target."""
    configs = {}
    for kind in ("forecast", "per_step", "per_trial", "class"):
        folder = tmp_path_factory.mktemp(kind)
        learnable_store(folder / "store", kind, n_trials=40, missing=kind == "forecast")
        clip = (None, 120) if kind == "per_step" else None
        configs[kind] = tiny_config(folder, target={"clip": clip}, epochs=1)
        train(configs[kind])
    return configs


def score(config: TrainConfig, at: str = "all") -> Evaluation:
    """Return what `evaluate` does, without its pictures, which take most of its time."""
    folder = config.out / f"scored-{at}"
    return score_on(config.changed({"evaluate.at": at}), config.out / "best.ckpt", folder)


def windows_of(n: int, at: str, ahead: int) -> list[tuple[int, int]]:
    """Return (start, end) of a trial's windows, from the definition."""
    if n < LENGTH + ahead:
        return [(0, n - ahead)]
    starts = range(0, n - LENGTH - ahead + 1, STRIDE)
    return [(n - LENGTH - ahead, n - ahead)] if at == "last" else [(s, s + LENGTH) for s in starts]


def expected(config: TrainConfig, kind: str, at: str) -> Rows:
    """Return (id, row, ahead, truth, predicted, naive) of everything that is to be scored."""
    store = Store(config.store)
    saved = load_checkpoint(config.out / "best.ckpt")
    objective = saved["run"]["objective"]
    splits = np.array(store.manifest.splits)[store.index.split]
    naive = naive_constant(store, splits == "train", kind)
    found: Rows = []
    for number in np.flatnonzero(splits == "test").tolist():
        name, raw = store.index.id_of(number), store.trial_rows(number).astype(np.float64)
        x = np.nan_to_num((raw - OFFSET) / SCALE)
        seen = np.isfinite(raw)
        inputs = np.concatenate([x, seen], axis=1) if kind == "forecast" else x
        covered, votes = 0, []
        for start, end in windows_of(len(x), at, HORIZON - 1 + STEPS if kind == "forecast" else 0):
            out = numpy_network(saved["model"], inputs[start:end])
            if kind == "forecast":
                found += forecast_rows(name, raw, (start, end), out[-1], objective)
            elif kind == "per_step":
                y = store.trial_rows(number, "targets").astype(np.float64)
                physical = out * objective["sd"][0][0] + objective["mean"][0]
                first = end - 1 if at == "last" else max(start, covered)
                found += [
                    (name, row, 0, y[row].tolist(), physical[row - start].tolist(), naive)
                    for row in range(first, end)
                ]
                covered = end
            else:
                votes.append(out[-1])
        if votes:
            found.append(trial_row(name, store, number, np.array(votes), objective, naive))
    return found


def naive_constant(store: Store, train_trials: Any, kind: str) -> list[float]:
    numbers = np.flatnonzero(train_trials).tolist()
    if kind == "per_step":
        rows = [store.trial_rows(n, "targets").astype(np.float64) for n in numbers]
        return [float(np.nanmean(np.concatenate(rows)))]
    if kind == "per_trial":
        return [float(np.nanmean(store.index.label[numbers].astype(np.float64)))]
    return [0.0]  # two in three are slow; a forecast has its own


def forecast_rows(
    name: str, raw: Any, window: tuple[int, int], out: Any, objective: dict[str, Any]
) -> Rows:
    start, end = window
    part = raw[start:end]
    last = [
        c[np.isfinite(c)][-1] if np.isfinite(c).any() else OFFSET[k] for k, c in enumerate(part.T)
    ]
    change = out.reshape(STEPS, 2) * np.array(objective["sd"]) * SCALE
    return [
        (name, end - 1 + HORIZON + s, HORIZON + s, raw[end - 1 + HORIZON + s].tolist(),
         (np.array(last) + change[s]).tolist(), list(last))
        for s in range(STEPS)
    ]  # fmt: skip


def trial_row(
    name: str, store: Store, number: int, votes: Any, objective: dict[str, Any], naive: list[float]
) -> Any:
    truth = [float(store.index.label[number])]
    if votes.shape[1] == 2:
        fast = sigmoid(votes[:, 1] - votes[:, 0]).mean()  # softmax of two
        predicted = [float(fast > 0.5)]
    else:
        predicted = [float(votes.mean() * objective["sd"][0][0] + objective["mean"][0])]
    return name, int(store.index.n_rows[number]) - 1, 0, truth, predicted, naive


@pytest.mark.parametrize("at", ["all", "last"])
@pytest.mark.parametrize("kind", ["forecast", "per_step", "per_trial", "class"])
def test_numbers_are_those_of_a_second_computation(
    runs: dict[str, TrainConfig], kind: str, at: str
) -> None:
    config = runs[kind]
    evaluation = score(config, at)
    want = expected(config, kind, at)
    table = pq.read_table(evaluation.folder / "predictions.parquet").to_pydict()
    assert list(zip(table["trial"], table["row"], table["ahead"], strict=True)) == [
        row[:3] for row in want
    ]
    columns = {"forecast": ["q", "p"], "per_step": ["effort"], "per_trial": ["size"]}.get(
        kind, ["tempo"]
    )
    truth, predicted, naive = (np.array([row[i] for row in want]) for i in (3, 4, 5))
    for k, column in enumerate(columns):
        for name, values in (("truth", truth), ("predicted", predicted), ("naive", naive)):
            np.testing.assert_allclose(
                table[f"{name}_{column}"], values[:, k], rtol=1e-4, atol=1e-4
            )
    assert evaluation.n_trials == len(
        {row[0] for row, y in zip(want, truth, strict=True) if np.isfinite(y).any()}
    )
    if kind == "class":
        there = np.isfinite(truth[:, 0])
        hits = predicted[there] == truth[there]
        assert evaluation.metrics["accuracy"] == pytest.approx(hits.mean())
        assert evaluation.metrics["naive_accuracy"] == pytest.approx((truth[there] == 0).mean())
        return
    check_errors(evaluation.metrics, truth - predicted, truth - naive)
    for k, column in enumerate(columns):
        parts = (truth - predicted)[:, k], (truth - naive)[:, k]
        check_errors(evaluation.metrics["by_column"][column], *parts)


def check_errors(metrics: dict[str, Any], error: Any, naive: Any) -> None:
    assert metrics["n"] == np.isfinite(error).sum()
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=1e-3)
    assert metrics["mae"] == pytest.approx(np.nanmean(np.abs(error)), rel=1e-3)
    assert metrics["naive_rmse"] == pytest.approx(np.sqrt(np.nanmean(naive**2)), rel=1e-4)
    assert metrics["naive_mae"] == pytest.approx(np.nanmean(np.abs(naive)), rel=1e-4)
    skill = 1 - np.nanmean(error**2) / np.nanmean(naive**2)
    assert metrics["skill"] == pytest.approx(skill, abs=1e-3)


@pytest.mark.parametrize("kind", ["forecast", "per_step"])
def test_macro_is_the_mean_over_trials_of_the_error_in_each(
    runs: dict[str, TrainConfig], kind: str
) -> None:
    config = runs[kind]
    metrics = score(config).metrics
    errors: dict[str, list[Any]] = {}
    for name, _, _, truth, predicted, naive in expected(config, kind, "all"):
        errors.setdefault(name, []).append(
            (np.subtract(truth, predicted), np.subtract(truth, naive))
        )
    for which, prefix in enumerate(("", "naive_")):
        parts = [np.array([pair[which] for pair in pairs]) for pairs in errors.values()]
        for k, column in enumerate([None, *Store(config.store).manifest.target.columns]):
            chosen = [part[:, k - 1] if k else part for part in parts]
            chosen = [part for part in chosen if np.isfinite(part).any()]
            macro = (metrics["by_column"][column] if column else metrics)["macro"]
            assert macro["n_trials"] == len(chosen)
            rmse = np.mean([np.sqrt(np.nanmean(part**2)) for part in chosen])
            mae = np.mean([np.nanmean(np.abs(part)) for part in chosen])
            assert macro[f"{prefix}rmse"] == pytest.approx(rmse, rel=1e-3)
            assert macro[f"{prefix}mae"] == pytest.approx(mae, rel=1e-3)


def test_truth_is_never_clipped(runs: dict[str, TrainConfig]) -> None:
    config = runs["per_step"]
    assert config.target.clip == (None, 120)
    table = pq.read_table(score(config).folder / "predictions.parquet")
    assert max(y for y in table["truth_effort"].to_pylist() if np.isfinite(y)) > 125


@pytest.mark.parametrize("kind", ["per_trial", "class"])
def test_every_file_is_written(runs: dict[str, TrainConfig], kind: str) -> None:
    evaluation = evaluate(runs[kind])
    assert evaluation.folder == runs[kind].out / "evaluation"
    assert evaluation.metrics == score(runs[kind]).metrics
    names = {path.name for path in evaluation.folder.iterdir()}
    assert names == {
        "metrics.json", "predictions.parquet", "errors_by_trial.csv",
        "learning_curve.png", "error_by_trial.png", "predictions.png",
    }  # fmt: skip
    document = json.loads((evaluation.folder / "metrics.json").read_text())
    assert document == json.loads(json.dumps(evaluation.as_dict()))
    with (evaluation.folder / "errors_by_trial.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == evaluation.n_trials
    if kind != "class":
        squares = sum(float(row["rmse"]) ** 2 * int(row["n"]) for row in rows)
        total = sum(int(row["n"]) for row in rows)
        assert np.sqrt(squares / total) == pytest.approx(evaluation.metrics["rmse"])


def test_without_a_checkpoint_it_says_what_to_do(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=10)
    with pytest.raises(CheckpointNotFoundError, match="Train first"):
        evaluate(tiny_config(tmp_path))
