"""The same weights say the same of whole trials, of lanes, and of windows as long as a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from learnable import OFFSET, SCALE, learnable_store, numpy_network, tiny_config

from shards import Store
from training import TrainConfig, train
from training.checkpoint import load_checkpoint
from training.evaluation import score_on

HORIZON, STEPS = 3, 2
AHEAD = HORIZON - 1 + STEPS
LONGEST = 60
KINDS = ("forecast", "per_step", "per_trial", "class")
BATCHES: dict[str, dict[str, Any]] = {
    # Longer than any trial, so that each is one window, from its first row.
    "windows": {
        "data.batches": "windows",
        "data.windows": {"length": LONGEST, "stride": 1, "short": "pad"},
    },
    "trials": {"data.batches": "trials", "data.batch_size": 5},
    "lanes": {"data.batches": "lanes", "data.batch_size": 3, "data.lanes": {"chunk": 7}},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return (config, table of predictions), scored by other batches than it was trained by."""
    configs: dict[str, TrainConfig] = {}
    tables: dict[tuple[str, str, str], pa.Table] = {}

    def score(kind: str, batches: str, at: str) -> tuple[TrainConfig, pa.Table]:
        if kind not in configs:
            folder = tmp_path_factory.mktemp(kind)
            learnable_store(folder / "store", kind, n_trials=30)
            configs[kind] = tiny_config(folder, epochs=1)
            train(configs[kind])
        config, key = configs[kind], (kind, batches, at)
        if key not in tables:
            asked = config.changed({**BATCHES[batches], "evaluate.at": at})
            where = config.out / f"{batches}-{at}"
            folder = score_on(asked, config.out / "best.ckpt", where).folder
            keys = [(name, "ascending") for name in ("trial", "row", "ahead")]
            tables[key] = pq.read_table(folder / "predictions.parquet").sort_by(keys)
        return config, tables[key]

    return score


def outputs(config: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield id, rows and what the LSTM's equations say at each row, of the test trials."""
    store = Store(config.store)
    weights = load_checkpoint(config.out / "best.ckpt")["model"]
    for number in np.flatnonzero(store.index.split == store.split_code("test")).tolist():
        raw = store.trial_rows(number).astype(np.float64)
        yield store.index.id_of(number), raw, numpy_network(weights, (raw - OFFSET) / SCALE)


def expected(config: TrainConfig, kind: str, at: str) -> list[tuple[Any, ...]]:
    """Return (id, row, ahead, predicted, naive or None) of each element, from the definition."""
    objective = load_checkpoint(config.out / "best.ckpt")["run"]["objective"]
    sd, mean = np.array(objective["sd"]), np.array(objective["mean"])
    found: list[tuple[Any, ...]] = []
    for name, raw, out in outputs(config):
        n = len(raw)
        if kind == "forecast":
            for origin in range(n) if at == "all" else [n - 1 - AHEAD]:
                change = out[origin].reshape(STEPS, 2) * sd * SCALE
                found += [
                    (name, origin + HORIZON + s, HORIZON + s, raw[origin] + change[s], raw[origin])
                    for s in range(STEPS)
                    if origin >= 0 and origin + HORIZON + s < n
                ]
        elif kind == "per_step":
            rows = range(n) if at == "all" else [n - 1]
            found += [(name, row, 0, out[row] * sd[0] + mean, None) for row in rows]
        else:
            last = [float(out[-1].argmax())] if kind == "class" else out[-1] * sd[0] + mean
            found.append((name, n - 1, 0, last, None))
    return sorted(found, key=lambda row: row[:3])


@pytest.mark.parametrize("at", ["all", "last"])
@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_equations_over_whole_trials(
    scored: Callable[..., Any], kind: str, batches: str, at: str
) -> None:
    config, table = scored(kind, batches, at)
    # A window as long as its trial forecasts from its end alone.
    want = expected(config, kind, "last" if kind == "forecast" and batches == "windows" else at)
    rows = table.to_pylist()
    assert [(r["trial"], r["row"], r["ahead"]) for r in rows] == [row[:3] for row in want]
    columns = Store(config.store).manifest.target.columns
    for k, column in enumerate(columns):
        said = [row[3][k] for row in want]
        np.testing.assert_allclose(table[f"predicted_{column}"], said, rtol=1e-4, atol=1e-4)
        if kind == "forecast":
            naive = [row[4][k] for row in want]
            np.testing.assert_allclose(table[f"naive_{column}"], naive, rtol=1e-5, atol=1e-5)
            store = Store(config.store)
            trials = {r["trial"]: store.trial_rows(store.trial_number(r["trial"])) for r in rows}
            truth = [trials[r["trial"]][r["row"], k] for r in rows]
            np.testing.assert_allclose(table[f"truth_{column}"], truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", ["start", "end"])
def test_a_trial_that_is_cut_off_is_judged_at_its_last_delivered_row(
    scored: Callable[..., Any], tmp_path: Path, cut: str
) -> None:
    config, _ = scored("per_step", "trials", "last")
    trials = {"data.batches": "trials", "data.trials": {"max_length": 10, "truncate": cut}}
    asked = config.changed({**trials, "evaluate.at": "last"})
    folder = score_on(asked, config.out / "best.ckpt", tmp_path / "scored").folder
    store = Store(config.store)
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(rows) == (store.index.split == store.split_code("test")).sum()
    for row in rows:
        n = store.index.n_rows[store.trial_number(row["trial"])]
        assert row["row"] == (min(n, 10) if cut == "end" else n) - 1


def test_a_forecast_needs_no_whole_chunk_behind_its_last_row(tmp_path: Path) -> None:
    """The last row to forecast from may lie in another chunk than the last row of the trial."""
    store = learnable_store(tmp_path / "store", "forecast", n_trials=30)
    lanes = {"batches": "lanes", "batch_size": 4, "lanes": {"chunk": 3}}
    config = tiny_config(tmp_path, epochs=1, data=lanes)
    train(config)
    asked = config.changed({"evaluate.at": "last"})
    folder = score_on(asked, config.out / "best.ckpt", tmp_path / "scored").folder
    table = pq.read_table(folder / "predictions.parquet")
    rows = store.index.n_rows[store.index.split == store.split_code("test")]
    assert table.num_rows == STEPS * int((rows > AHEAD).sum()) > 0


def test_a_missing_value_leaves_persistence_at_the_last_seen_one(tmp_path: Path) -> None:
    store = learnable_store(tmp_path / "store", "forecast", n_trials=20, missing=True)
    config = tiny_config(tmp_path, epochs=1, data={"batches": "trials", "batch_size": 8})
    train(config)
    folder = score_on(config, config.out / "best.ckpt", tmp_path / "scored").folder
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        rows = store.trial_rows(store.trial_number(row["trial"])).astype(np.float64)
        for k, name in enumerate(("q", "p")):
            past = rows[: row["row"] - row["ahead"] + 1, k]
            seen = past[np.isfinite(past)]
            want = seen[-1] if len(seen) else OFFSET[k]
            np.testing.assert_allclose(row[f"naive_{name}"], want, rtol=1e-5, atol=1e-5)
