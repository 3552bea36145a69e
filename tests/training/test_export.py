"""An exported model says of raw values what evaluation says of the store's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from exported import SCOPES, check_parity, full_store, in_python, opened, raw_inputs
from learnable import learnable_store, tiny_config

from loaders import TrialStream
from shards import InvalidSpecError, Store
from shards.errors import ResumeError
from training import TrainConfig, train
from training.evaluation import score_on
from training.export import export_model, open_standalone
from training.rawunits import Normalize
from training.streams import open_stream

TINY = {"hidden": 8, "layers": 2, "head": [6]}
BOTH = {**TINY, "bidirectional": True}
TRIALS = {"batch_size": 8, "batches": "trials"}
LANES = {"batch_size": 3, "batches": "lanes", "lanes": {"chunk": 7}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "forecast": ("forecast", {}),
    "quantiles": ("forecast", {"target": {"loss": "quantile"}}),
    "plain quantiles": ("forecast", {
        "target": {"loss": "quantile"}, "model": {**TINY, "residual": False}}),
    "forecast of trials": ("forecast", {"data": TRIALS}),
    "per_step": ("per_step", {"target": {"loss": "huber"}, "model": {**TINY, "layer_norm": True}}),
    "quantiles per step": ("per_step", {"target": {"loss": "quantile"}, "model": BOTH}),
    "binary": ("binary", {"target": {"loss": "binary_cross_entropy"}, "data": TRIALS}),
    "class per step": ("binary", {"target": {"classes": 2}}),
    "per_trial": ("per_trial", {"model": {**BOTH, "pool": "mean_max", "layers": 1}}),
    "class": ("class", {"model": {**BOTH, "pool": "attention", "layer_norm": True}}),
}  # fmt: skip
# A trace takes a second, an ONNX three: one of each in the gate, all with SOAK=1.
SOAK = bool(os.environ.get("SOAK"))
FILES = {"pt2": tuple(KINDS) if SOAK else ("class",), "onnx": tuple(KINDS) if SOAK else ()}
RTOL = {"pt2": 1e-6, "onnx": 1e-5}


def trained(folder: Path, kind: str, **changes: Any) -> tuple[TrainConfig, Path]:
    """Return the config of a finished run whose predictions are written, and its checkpoint."""
    missing = kind in ("forecast", "class")
    learnable_store(folder / "store", kind, n_trials=15, missing=missing)
    config = tiny_config(folder, **{"epochs": 1, "model": TINY, **changes})
    return config, scored(config)


def scored(config: TrainConfig) -> Path:
    train(config)
    checkpoint = config.out / "best.ckpt"
    score_on(config, checkpoint, config.out / "scored")
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_evaluation(tmp_path: Path, kind: str) -> None:
    name, changes = KINDS[kind]
    config, checkpoint = trained(tmp_path, name, **changes)
    assert check_parity(config, *in_python(checkpoint), 1e-6) > 2
    for suffix, kinds in FILES.items():
        if kind in kinds:
            file = tmp_path / f"model.{suffix}"
            export_model(checkpoint, file, "onnx" if suffix == "onnx" else "torch")
            assert check_parity(config, *opened(file), RTOL[suffix]) > 2


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path, Store]:
    """A run on a store with every scope and every kind of input."""
    folder = tmp_path_factory.mktemp("full")
    store = full_store(folder)
    config = tiny_config(folder, epochs=1, model={**TINY, "statics": "head"})
    return config, scored(config), store


def test_a_file_holds_every_scope_and_every_kind_of_input(full: Any, tmp_path: Path) -> None:
    config, checkpoint, store = full
    run, description = in_python(checkpoint)
    assert [port["name"] for port in description["inputs"]] == [
        "values", "lengths", "observed", "codes", "numbers", "words", "groups", "offset", "scale",
    ]  # fmt: skip
    assert {entry["scope"] for entry in description["normalization"]} == set(SCOPES.values())
    n_rows = check_parity(config, run, description, 1e-5)
    assert n_rows > 15
    for suffix in ("pt2", "onnx") if SOAK else ():
        done = export_model(
            checkpoint, tmp_path / f"m.{suffix}", "onnx" if suffix == "onnx" else "torch"
        )
        run, said = opened(done.path)
        assert said == done.description == description
        assert check_parity(config, run, said, 1e-5) == n_rows
    assert description["fingerprint"] == store.manifest.fingerprint
    assert description["target"] == {
        "kind": "forecast",
        "columns": ["a", "b", "c", "d"],
        "classes": [],
    }


@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
def test_what_enters_the_network_is_what_a_stream_delivers(
    full: Any, tmp_path: Path, method: str
) -> None:
    store = full[2] if method == "zscore" else full_store(tmp_path, method)
    normalize = Normalize(store)
    names = ("values", "groups", "offset", "scale")
    groups = [{"name": known.attribute, "words": known.values} for known in normalize.groups]
    asked = {"inputs": [{"name": name} for name in names], "groups": groups}
    exact = [scope in ("train", "group:machine", "regime") for scope in SCOPES.values()]
    stream = TrialStream(store, split="test", batch_size=7, shuffle="none")
    for batch in stream:
        raw = {k: torch.from_numpy(x) for k, x in raw_inputs(store, batch, asked).items()}
        own = (raw["offset"], raw["scale"])
        got, (offset, scale) = normalize(raw["values"], batch.valid, raw["groups"], own)
        assert torch.equal(got[:, :, exact], batch.values[:, :, exact])
        # The others are stored rounded, or summed in another order.
        torch.testing.assert_close(got, batch.values, rtol=1e-5, atol=1e-5)
        assert len(batch) == len(offset)
        places = [place for place, scope in enumerate(SCOPES.values()) if scope != "regime"]
        there = batch.trial >= 0
        back = (batch.values * scale[:, None] + offset[:, None])[there][:, :, places]
        columns = [name for name, scope in SCOPES.items() if scope != "regime"]
        want = stream.to_physical(batch.values[:, :, places], batch, columns)[there]
        torch.testing.assert_close(back, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["per_step", "forecast"])
def test_calls_that_go_on_from_the_state_say_what_one_call_says(tmp_path: Path, kind: str) -> None:
    config, checkpoint = trained(tmp_path, kind, data=LANES)
    run, description = in_python(checkpoint)
    if kind == "per_step" or SOAK:
        done = export_model(checkpoint, tmp_path / "m.onnx", "onnx")
        run, said = opened(done.path)
        assert said == done.description == description
        assert not list(tmp_path.glob(".tmp-*"))
    store = Store(config.store)
    row = pq.read_table(config.out / "scored" / "predictions.parquet").to_pylist()[-1]
    batches = open_stream(store, config.changed({"data.batches": "trials"}), "test")
    wanted = {}
    for batch in batches:
        feed = raw_inputs(store, batch, description)
        zeros = np.zeros((2, 2, len(batch), TINY["hidden"]), np.float32)
        whole = run({**feed, "state": zeros})
        parts, state = [], zeros
        n_steps, start = batch.values.shape[1], 0
        for length in (1, 5, 1, n_steps):
            stop = min(start + length, n_steps)
            piece = {k: x[:, start:stop] for k, x in feed.items() if k in ("values", "observed")}
            said = run({**piece, "lengths": (feed["lengths"] - start).clip(0, stop - start),
                        "state": state})  # fmt: skip
            state, start = said["next_state"], stop
            parts.append(said["predicted"])
        np.testing.assert_allclose(np.concatenate(parts, 1), whole["predicted"], atol=1e-4)
        for at, trial in enumerate(batch.trial.tolist()):
            wanted[trial] = whole["predicted"][at]
    said_by_lanes = wanted[store.trial_number(row["trial"])]
    column, place = description["target"]["columns"][0], row["row"] - row["ahead"]
    found = said_by_lanes[place]
    if kind == "forecast":
        found = found[row["ahead"] - description["windows"]["horizon"]]
    assert found[0] == pytest.approx(row[f"predicted_{column}"], rel=1e-5)


def test_what_cannot_be_exported_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config, checkpoint = trained(tmp_path, "per_step", model=BOTH)
    with pytest.raises(InvalidSpecError, match="bidirectional"):
        open_standalone(checkpoint, state=True)
    learnable_store(tmp_path / "other", "per_step", n_trials=15, seed=1)
    with pytest.raises(ResumeError, match=r"other data than .*other .*split train, val"):
        open_standalone(checkpoint, store=tmp_path / "other")
    (config.store).rename(tmp_path / "moved")
    run, description = in_python(checkpoint, store=tmp_path / "moved")
    assert description["store_version"] == Store(tmp_path / "moved").version
    assert run is not None
