"""The loop: it learns, it stops, it records, and it refuses to mix runs."""

from __future__ import annotations

import csv
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learnable import learnable_store, tiny_config

import training.loop
from shards import CorruptStoreError, Store
from shards.errors import ResumeError
from training import evaluate, progress_bar, train
from training.checkpoint import load_checkpoint
from training.loop import TrainingDivergedError
from training.loss import row_losses
from training.streams import open_stream
from training.target import Objective, target_statistics


@pytest.mark.parametrize("kind", ["forecast", "per_step", "per_trial", "class"])
def test_it_learns_and_beats_the_baseline(tmp_path: Path, kind: str) -> None:
    learnable_store(tmp_path / "store", kind, missing=kind == "forecast")
    quick = {} if kind == "class" else {"epochs": 16, "optimizer": {"lr": 2e-2}}
    config = tiny_config(tmp_path, **{"epochs": 40, **quick})
    result = train(config)
    losses = [row["val_loss"] for row in result.history]
    assert result.status == "finished"
    assert losses[-1] < 0.5 * losses[0]
    metrics = evaluate(config).metrics
    if kind == "class":
        assert metrics["balanced_accuracy"] > 0.9 > metrics["naive_balanced_accuracy"]
        assert metrics["auroc"] > 0.9
    else:
        assert metrics["skill"] > 0.5


def weights(path: Path) -> dict[str, Any]:
    model: dict[str, Any] = load_checkpoint(path)["model"]
    return model


def same_weights(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_same_config_same_weights(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step")
    for name in ("a", "b"):
        train(tiny_config(tmp_path, out=tmp_path / name, epochs=2))
    assert same_weights(tmp_path / "a" / "last.ckpt", tmp_path / "b" / "last.ckpt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_ends_the_same(tmp_path: Path, number: int) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=30)
    whole = tiny_config(tmp_path, out=tmp_path / "whole", checkpoint_steps=None)
    train(whole)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    config = tiny_config(tmp_path, checkpoint_steps=None)
    first = train(config, on_metrics=lambda *_: os.kill(os.getpid(), number))
    assert (first.status, first.epochs) == ("interrupted", 1)
    assert load_checkpoint(config.out / "last.ckpt")["state"]["step_in_epoch"] == 1
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    second = train(config)
    assert (second.status, second.epochs) == ("finished", 3)
    assert same_weights(config.out / "last.ckpt", whole.out / "last.ckpt")
    assert same_weights(config.out / "best.ckpt", whole.out / "best.ckpt")
    with (config.out / "logs" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3]
    losses = [
        row["train_loss"] for row in load_checkpoint(whole.out / "last.ckpt")["state"]["history"]
    ]
    assert [float(row["train_loss"]) for row in rows] == losses


def test_early_stopping_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    losses = iter([0.5, 0.3, 0.4, 0.3, 0.2, 0.3, 0.3, 0.3])
    monkeypatch.setattr(training.loop, "validate", lambda *_: next(losses))
    config = tiny_config(tmp_path, epochs=9, early_stopping={"patience": 2})
    result = train(config)
    assert (result.status, result.epochs) == ("early stopped", 4)
    assert (result.best_epoch, result.best_loss) == (2, 0.3)
    assert load_checkpoint(config.out / "best.ckpt")["state"]["epoch"] == 2
    assert train(config).status == "early stopped"  # asked again, it has nothing to do
    more = tiny_config(tmp_path, epochs=9, early_stopping={"patience": 3})
    later = train(more)  # more patience is no other run
    assert (later.epochs, later.best_epoch, later.best_loss) == (8, 5, 0.2)


def test_validation_loss_is_the_weighted_mean_over_the_split(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "per_trial")
    config = tiny_config(tmp_path, epochs=1)
    loss = train(config).history[0]["val_loss"]
    saved = load_checkpoint(config.out / "last.ckpt")
    model = training.job.build_model(store, config, Objective(**saved["run"]["objective"]))
    model.load_state_dict(saved["model"])
    model.eval()
    total = count = 0.0
    for batch in open_stream(store, config, "val"):
        with torch.no_grad():
            out, _ = model(batch.values, batch.lengths, batch.observed)
        rows, there = row_losses(out, batch, Objective(**saved["run"]["objective"]))
        total += float((batch.weights * rows)[there].sum())
        count += float(batch.weights[there].sum())
    assert any(not math.isfinite(y) for y in store.index.label[store.index.split == 1])
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_train_loss_is_the_mean_over_the_epoch(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step")
    still = tiny_config(
        tmp_path,
        epochs=1,
        model={"hidden": 8, "dropout": 0.0, "head": [4]},
        data={"batch_size": 32, "validation_split": "train"},
        optimizer={"lr": 1e-12, "schedule": "constant"},
    )
    metrics = train(still).history[0]
    assert metrics["train_loss"] == pytest.approx(metrics["val_loss"], rel=1e-5)


def test_without_validation_the_last_epoch_counts(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    config = tiny_config(tmp_path, data={"validation_split": None, "batch_size": 32})
    result = train(config)
    assert (result.best_epoch, result.best_loss) == (3, None)
    assert "val_loss" not in result.history[0]


def test_bounded_epochs_walk_through_all_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = learnable_store(tmp_path / "store", "per_step", n_trials=30)
    config = tiny_config(tmp_path, epochs=6, data={"batch_size": 32, "steps_per_epoch": 2})
    seen: list[tuple[int, int]] = []
    step_loss = training.loop.step_loss

    def spy(output: Any, batch: Any, *rest: Any) -> Any:
        seen.append((batch.epoch, batch.step))
        return step_loss(output, batch, *rest)

    monkeypatch.setattr(training.loop, "step_loss", spy)
    train(config)
    n = len(open_stream(store, config, "train"))
    assert seen == [divmod(step, n) for step in range(12)]
    assert n not in (1, 2, 12)


def test_other_data_or_config_is_refused_with_advice(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    config = tiny_config(tmp_path, epochs=1)
    train(config)
    with pytest.raises(ResumeError, match=r"model.hidden was 16, is 12.*--fresh"):
        train(config.model_copy(update={"model": config.model.model_copy(update={"hidden": 12})}))
    learnable_store(tmp_path / "other", "per_step", n_trials=20, seed=1)
    moved = config.model_copy(update={"store": tmp_path / "other"})
    for job in (train, evaluate):
        with pytest.raises(ResumeError, match=r"other data \(v0001\): split train was .*--fresh"):
            job(moved)
    assert train(moved, fresh=True).steps > 0


def test_what_may_change_on_the_way(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    steady = {"schedule": "constant", "lr": 1e-3}
    assert train(tiny_config(tmp_path, epochs=1, optimizer=steady)).epochs == 1
    more = tiny_config(tmp_path, epochs=2, optimizer=steady, checkpoint_steps=1)
    assert train(more).epochs == 2


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    config = tiny_config(tmp_path, epochs=1)
    train(config)
    (config.out / "last.ckpt").write_bytes(b"PK junk")
    with pytest.raises(CorruptStoreError, match=r"last.ckpt is not a readable checkpoint"):
        train(config)


def test_divergence_is_an_error_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    config = tiny_config(tmp_path)
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(training.loop, "validate", lambda *_: next(losses))
    with pytest.raises(TrainingDivergedError, match=r"epoch 2 .*Lower optimizer.lr"):
        train(config)
    assert load_checkpoint(config.out / "last.ckpt")["state"]["epoch"] == 1


def test_progress_and_metrics_are_reported(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    told: list[tuple[int, float]] = []
    with progress_bar() as progress:
        result = train(
            tiny_config(tmp_path, epochs=2),
            progress=progress,
            on_metrics=lambda step, metrics: told.append((step, metrics["epoch"])),
        )
    assert progress.tasks[0].finished
    assert told == [(result.steps // 2, 1), (result.steps, 2)]
    assert list((tmp_path / "run" / "logs" / "tensorboard").iterdir())


def test_target_statistics_read_the_train_rows_once(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "per_step")
    numbers = np.flatnonzero(store.index.split == 0)
    rows = np.concatenate([store.trial_rows(n, "targets") for n in numbers]).astype(np.float64)
    mean, sd = target_statistics(store, "train")
    np.testing.assert_allclose(mean, np.nanmean(rows, axis=0))
    np.testing.assert_allclose(sd, np.nanstd(rows, axis=0))
    store.__dict__["fit"] = {"target": {"mean": [7.0], "sd": [0.0]}}
    assert [part.tolist() for part in target_statistics(store, "train")] == [[7.0], [1.0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_by_the_same_config(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "forecast")
    config = tiny_config(tmp_path, epochs=6, device={"accelerator": "cuda"})
    on_gpu = train(config).history[-1]["val_loss"]
    on_cpu = train(tiny_config(tmp_path, epochs=6, out=tmp_path / "cpu")).history[-1]["val_loss"]
    assert on_gpu == pytest.approx(on_cpu, rel=0.5)
    assert evaluate(config).metrics["skill"] > 0.5
    half = {"accelerator": "cuda", "precision": "bf16-mixed"}
    assert train(tiny_config(tmp_path, out=tmp_path / "half", device=half)).status == "finished"


def test_store_is_opened_at_the_asked_version(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    config = tiny_config(tmp_path, epochs=1, version="v0001")
    train(config)
    saved = load_checkpoint(config.out / "last.ckpt")["run"]
    assert saved["store_version"] == Store(config.store).version == "v0001"
