"""Weights are scored on other stores, on each store of a mixture, as quantiles and as classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from learnable import learnable_store, numpy_network, tiny_config

from shards import InvalidSpecError
from training import TrainConfig, evaluate, train
from training.checkpoint import ResumeError, load_checkpoint
from training.evaluation import score_on
from training.target import target_statistics
from training.targetchecks import BINARY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run on the store beside it, with another store beside that."""
    folder = tmp_path_factory.mktemp("run")
    learnable_store(folder / "store", "per_step", n_trials=20)
    learnable_store(folder / "other", "per_step", n_trials=20, seed=7)
    config = tiny_config(folder, epochs=1)
    train(config)
    return config


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers alone: pictures take most of an evaluation's time."""
    monkeypatch.setattr("training.evaluation._draw", lambda *_, **__: None)


def best(config: TrainConfig) -> Path:
    return config.out / "best.ckpt"


def predicted(folder: Path, column: str) -> Any:
    return pq.read_table(folder / "predictions.parquet")[f"predicted_{column}"].to_numpy()


@pytest.mark.usefixtures("no_pictures")
def test_on_its_own_store_it_says_what_evaluate_says(run: TrainConfig, tmp_path: Path) -> None:
    mine, same = evaluate(run), score_on(run, best(run), tmp_path / "scored")
    assert same.metrics == mine.metrics
    assert same.folder == tmp_path / "scored"
    document = json.loads((same.folder / "metrics.json").read_text())
    assert document["metrics"]["macro"] == same.metrics["macro"]
    names = {path.name for path in same.folder.iterdir()}
    assert names == {"metrics.json", "predictions.parquet", "errors_by_trial.csv"}


def test_another_store_is_scored_by_its_own_mean_and_sd(run: TrainConfig, tmp_path: Path) -> None:
    path = run.store.with_name("other")
    asked = run.model_copy(update={"store": path, "out": tmp_path / "none"})
    with pytest.raises(ResumeError):
        evaluate(asked, checkpoint=best(run))
    scored = score_on(asked, best(run), tmp_path / "scored")
    table = pq.read_table(scored.folder / "predictions.parquet").to_pylist()
    store = learnable_store(tmp_path / "again", "per_step", n_trials=20, seed=7)
    mean, sd = target_statistics(store, "train")
    assert not np.allclose(mean, load_checkpoint(best(run))["run"]["objective"]["mean"])
    offset, scale = store.physical_affine()
    number = store.trial_number(table[0]["trial"])
    x_LC = ((store.trial_rows(number) - offset) / scale)[:16].astype(np.float64)
    want = numpy_network(load_checkpoint(best(run))["model"], x_LC)[:, 0] * sd + mean
    rows = [row for row in table if row["trial"] == table[0]["trial"]][: len(x_LC)]
    np.testing.assert_allclose([row["predicted_effort"] for row in rows], want, rtol=1e-4)
    assert rows[0]["naive_effort"] == pytest.approx(mean[0])
    assert not asked.out.exists()


def test_the_digest_tells_what_was_scored(run: TrainConfig, tmp_path: Path) -> None:
    other = run.model_copy(update={"store": run.store.with_name("other")})
    asked = (run, run, other, run.changed({"data.batches": "trials"}))
    digests = [score_on(each, best(run), tmp_path / "scored").digest for each in asked]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_store_that_the_weights_do_not_fit_is_refused(run: TrainConfig, tmp_path: Path) -> None:
    learnable_store(tmp_path / "seen", "per_step", n_trials=20, missing=True)
    masked = run.model_copy(update={"store": tmp_path / "seen"})
    with pytest.raises(InvalidSpecError, match=r"layers\.0\.weight_ih_l0 is \[64, 2\], wanted"):
        score_on(masked, best(run), tmp_path / "scored")
    learnable_store(tmp_path / "value", "per_trial", n_trials=20)
    value = run.model_copy(update={"store": tmp_path / "value"})
    with pytest.raises(InvalidSpecError, match="has kind per_trial; wanted per_step"):
        score_on(value, best(run), tmp_path / "scored")
    assert not (tmp_path / "scored").exists()


@pytest.mark.usefixtures("no_pictures")
def test_each_store_of_a_mixture_has_an_evaluation(tmp_path: Path) -> None:
    for seed, name in enumerate(("store", "other")):
        learnable_store(tmp_path / name, "per_step", n_trials=20, seed=seed)
    config = tiny_config(tmp_path, epochs=1, mixture={"stores": [{"store": tmp_path / "other"}]})
    train(config)
    first, second = evaluate(config), evaluate(config, source=1)
    assert [each.folder.name for each in (first, second)] == ["evaluation", "evaluation-1"]
    assert first.metrics != second.metrics
    alone = config.model_copy(update={"store": tmp_path / "other", "mixture": None})
    # A store that was learned from keeps the scale it was learned at.
    assert score_on(alone, best(config), tmp_path / "scored").metrics == second.metrics
    with pytest.raises(InvalidSpecError, match="source is 2; wanted 0 to 1"):
        evaluate(config, source=2)


@pytest.mark.parametrize(
    ("kind", "batches"), [("forecast", "windows"), ("per_trial", "windows"), ("per_step", "lanes")]
)
def test_quantiles_are_written_in_order_and_scored(tmp_path: Path, kind: str, batches: str) -> None:
    store = learnable_store(tmp_path / "store", kind, n_trials=20)
    config = tiny_config(
        tmp_path, epochs=1, target={"loss": "quantile", "quantiles": (0.1, 0.5, 0.9)},
        data={"batch_size": 8, "batches": batches},
    )  # fmt: skip
    train(config)
    scored = score_on(config, best(config), tmp_path / "scored")
    table = pq.read_table(scored.folder / "predictions.parquet")
    for column in store.manifest.target.columns:
        low, middle, high, said, truth = (
            table[name].to_numpy()
            for name in (*(f"predicted_{column}_q{q}" for q in (10, 50, 90)),
                         f"predicted_{column}", f"truth_{column}")
        )  # fmt: skip
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert (low < high).any()
        assert np.array_equal(middle, said)
        there = np.isfinite(truth)
        found = scored.metrics["by_column"][column]["quantiles"]
        for name, level in (("q10", low), ("q90", high)):
            want = np.mean(truth[there] <= level[there])
            assert found[name]["coverage"] == pytest.approx(want)


def test_codes_per_step_are_scored_as_classes(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "binary", n_trials=20)
    loss = {"loss": "cross_entropy", "classes": 3}
    config = tiny_config(tmp_path, epochs=2, target=loss)
    train(config)
    scored = evaluate(config)
    assert scored.kind == "step_class"
    table = pq.read_table(scored.folder / "predictions.parquet")
    truth, said, naive = (
        table[f"{name}_rising"].to_numpy() for name in ("truth", "predicted", "naive")
    )
    chances = np.stack([table[f"probability_{code}"].to_numpy() for code in range(3)], axis=1)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert np.array_equal(chances.argmax(axis=1), said)
    there = np.isfinite(truth)
    assert scored.metrics["n"] == there.sum() < len(truth)
    assert scored.metrics["accuracy"] == pytest.approx(np.mean(truth[there] == said[there]))
    numbers = np.flatnonzero(store.index.split == store.split_code("train"))
    rows = np.concatenate([store.trial_rows(n, "targets") for n in numbers])
    assert set(naive) == {float(np.nanmean(rows) > 0.5)}
    assert scored.baseline == "most frequent train class"
    assert (scored.folder / "predictions.png").exists()


def test_ones_and_zeros_also_get_a_calibration_plot(tmp_path: Path) -> None:
    learnable_store(tmp_path / "store", "binary", n_trials=20)
    config = tiny_config(tmp_path, epochs=1, target={"loss": BINARY})
    train(config)
    scored = evaluate(config)
    assert (scored.folder / "calibration.png").stat().st_size > 5_000
    macro = scored.metrics["macro"]
    assert 0 < macro["n_auroc"] <= macro["n_trials"] == scored.n_trials
    assert 0 <= macro["auroc"] <= 1
