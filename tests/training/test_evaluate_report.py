"""What a person is shown of an evaluation: micro and macro side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learnable import learnable_store, tiny_config

from shards import Store
from training import Evaluation, TrainConfig
from training.predict import Predictions
from training.score import score_parts
from training.target import Objective
from training.targetchecks import BINARY
from trialshards.report import print_evaluation

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("store")
    learnable_store(folder / "store", "per_step", n_trials=12)
    return tiny_config(folder)


def shown(config: TrainConfig, objective: Objective, part: Predictions, capsys: Any) -> list[str]:
    metrics = score_parts([part], Store(config.store), objective)[1]
    fields = {"split": "test", "at": "all", "baseline": "train mean", "n_trials": 2, "epoch": 1}
    print_evaluation(
        config,
        Evaluation(kind=objective.kind, metrics=metrics, folder=Path("plots"), store_version="v",
                   digest="d", **fields),
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("test split, every window, 2 trials, physical units")
    assert lines[0].endswith("macro: mean over trials")
    return lines[1:-3]


def made(truth: Any, said: Any, naive: float, **more: Any) -> Predictions:
    """Return predictions of trial 0, and of trial 1 for the last element alone."""
    n = len(truth)
    trial, zero = (np.arange(n) == n - 1).astype(np.int64), np.zeros(n, np.int64)
    columns = [np.array(x, np.float64)[:, None] for x in (truth, said, np.full(n, naive))]
    return Predictions(trial, zero, zero, *columns, **more)


def test_errors_and_quantiles(config: TrainConfig, capsys: Any) -> None:
    objective = Objective("per_step", ("effort",), "quantile", quantiles=LEVELS)
    quantiles = np.array([[-1.0, 1, 3]] * 4)[:, None]
    part = made([0, 0, 0, 4], [1, 1, 1, 1], naive=2.0, quantiles=quantiles)
    # RMSE: sqrt((1 + 1 + 1 + 9) / 4) and (1 + 3) / 2 over trials.
    assert shown(config, objective, part, capsys) == [
        "target unit RMSE RMSE of train mean MAE skill macro RMSE",
        "effort 1.732 2 1.5 0.250 2",
        "target quantile pinball loss truths at or below",
        "effort 10% 0.2 0.0%",
        "50% 0.75 75.0%",
        "90% 0.45 75.0%",
    ]


def test_ones_and_zeros(config: TrainConfig, capsys: Any) -> None:
    part = made([0, 1, 0, 1], [0.1, 0.9, 0.95, 0.5], naive=0.5)
    objective = Objective("per_step", ("effort",), BINARY)
    # The trial of one step alone has no AUROC.
    assert shown(config, objective, part, capsys) == [
        "target AUROC macro average precision share of ones RMSE skill",
        "effort 0.500 0.500 0.583 0.5000 0.5414 -0.172",
    ]


def test_classes_of_steps(config: TrainConfig, capsys: Any) -> None:
    objective = Objective("step_class", ("effort",), "cross_entropy", n_classes=3)
    part = made([0, 1, 0, 1], [0, 1, 0, 0], naive=0.0, scores=np.eye(3)[[0, 1, 0, 0]])
    assert shown(config, objective, part, capsys) == [
        "model train mean",
        "accuracy 0.750 0.500",
        "macro accuracy 0.500 0.333",
        "balanced accuracy 0.750 0.500",
        "F1, mean over classes 0.733",
    ]
