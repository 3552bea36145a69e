"""`renew`: go on or keep where that is right, start over where it is not, without being asked."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
from learnable import learnable_store, tiny_config

from shards.errors import ResumeError
from training import evaluate, train
from training import record as recording
from training.checkpoint import BEST, LAST, load_checkpoint
from training.config import TrainConfig
from training.state import SAME_WISH_S, watch_signals


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    learnable_store(tmp_path / "store", "per_step", n_trials=20)
    return tiny_config(tmp_path, epochs=2)


def test_a_finished_run_is_kept_as_it_is(config: TrainConfig) -> None:
    first = train(config, renew=True)
    before = (config.out / LAST).read_bytes()
    told: list[int] = []
    again = train(config, renew=True, on_metrics=lambda step, _: told.append(step))
    assert (again.status, again.steps, told) == ("finished", first.steps, [])
    assert (again.history, again.digest) == (first.history, first.digest)
    assert (config.out / LAST).read_bytes() == before
    assert again.rows_per_s() == pytest.approx(first.rows_per_s())


def test_an_unfinished_run_goes_on(config: TrainConfig) -> None:
    stopped = train(config, on_metrics=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert stopped.status == "interrupted"
    told: list[float] = []
    train(config, renew=True, on_metrics=lambda _, metrics: told.append(metrics["epoch"]))
    assert told == [2]


def test_other_data_start_over(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(config)
    learnable_store(tmp_path / "other", "per_step", n_trials=20, seed=1)
    moved = config.model_copy(update={"store": tmp_path / "other"})
    with pytest.raises(ResumeError):
        train(moved)
    with caplog.at_level(logging.INFO, "training"):
        second = train(moved, renew=True)
    assert len(second.history) == 2
    assert second.digest != first.digest
    assert any("starting over" in line and "other data" in line for line in caplog.messages)
    assert evaluate(moved).metrics["n"] > 0


def test_another_config_starts_over(config: TrainConfig) -> None:
    first = train(config)
    other = config.model_copy(update={"seed": 4})
    second = train(other, renew=True)
    assert second.digest != first.digest
    assert load_checkpoint(other.out / LAST)["run"]["config"]["seed"] == 4


@pytest.mark.parametrize("damage", ["junk", "old version", "no best"])
def test_what_cannot_be_read_starts_over(
    config: TrainConfig, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config)
    if damage == "junk":
        (config.out / LAST).write_bytes(b"PK junk")
    elif damage == "no best":
        (config.out / BEST).unlink()
    else:
        monkeypatch.setattr("training.checkpoint.VERSION", 3)
    told: list[float] = []
    second = train(config, renew=True, on_metrics=lambda _, metrics: told.append(metrics["epoch"]))
    assert told == [1, 2]
    assert second.digest == first.digest
    assert evaluate(config).epoch == second.best_epoch


def test_evaluations_of_other_weights_or_splits_are_told_apart(config: TrainConfig) -> None:
    train(config)
    first = evaluate(config)
    other = config.evaluate.model_copy(update={"split": "val"})
    val = config.model_copy(update={"evaluate": other})
    assert evaluate(config).digest == first.digest != evaluate(val).digest
    assert first.store_version == "v0001"


def test_a_long_epoch_is_not_silent(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "OBSERVE_EVERY_S", 0.0)
    told: list[tuple[int, float]] = []
    result = train(
        config, on_step=lambda step, metrics: told.append((step, metrics["step_in_epoch"]))
    )
    n = result.steps // 2
    assert told == [(step + 1, step % n + 1.0) for step in range(result.steps)]


def test_a_short_epoch_says_nothing_within(config: TrainConfig) -> None:
    told: list[int] = []
    train(config, on_step=lambda step, _: told.append(step))
    assert told == []


def test_two_signals_of_one_wish_count_once() -> None:
    with watch_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the terminal's, and the parent's that forwards it
        assert stop.requested


def test_a_later_signal_acts_as_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_twice() -> None:
        with watch_signals():
            signal.raise_signal(signal.SIGINT)
            later = time.monotonic() + 2 * SAME_WISH_S
            monkeypatch.setattr(time, "monotonic", lambda: later)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ask_twice()
